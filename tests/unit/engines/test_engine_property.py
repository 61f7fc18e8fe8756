"""Random work on a fake model, step by step: whatever the scheduler shares, copies and moves, each text is right."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import EngineError
from batcher.types import SamplingParams, TokenLogprob
from tests.support.fake_model import END, FakeModel, complete_alone, next_token
from workers.engines.base import SequenceDelta, SequenceRequest, SequenceResult, Ticket
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.kv_cache import MIN_SHARED_TOKENS, KvCache

CELLS = 192

#: All of ASCII.
VOCAB_SIZE = 128

#: Beginnings that nest: each is long enough to be shared, the second starts with the first, the third with neither.
SYSTEM = "system " * 5
STEMS = ("", SYSTEM, SYSTEM + "first task: " * 4, SYSTEM + "second task " * 3, "another " * 6)
assert len(SYSTEM) >= MIN_SHARED_TOKENS


@dataclass(frozen=True)
class Arrival:
    """Prompts that come together, after so many steps, and how many steps later they are cancelled, if at all.

    Of each its stem, its tail, its max_tokens, and whether it is to be echoed with log-probabilities.
    """

    prompts: list[tuple[int, str, int, bool]]
    delay: int
    cancelled_after: int | None
    is_alone: bool
    is_live: bool
    client: str


@dataclass
class Caller:
    """Who submitted an arrival, and what it got."""

    arrival: Arrival
    ticket: Ticket
    results: dict[int, SequenceResult]
    deltas: dict[int, str] = field(default_factory=dict)
    listed: dict[int, list[TokenLogprob]] = field(default_factory=dict)
    cancel_at: int = -1


arrivals = st.lists(
    st.builds(
        Arrival,
        prompts=st.lists(
            st.tuples(
                st.integers(0, len(STEMS) - 1),
                st.text("abc", min_size=1, max_size=12),
                st.integers(0, 30),
                st.booleans(),
            ),
            min_size=1,
            max_size=8,
        ),
        delay=st.integers(0, 12),
        cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 20)),
        is_alone=st.sampled_from([False, False, False, True]),
        is_live=st.booleans(),
        client=st.sampled_from("abc"),
    ),
    min_size=1,
    max_size=6,
)


def make_engine(model: FakeModel, *, slots: int, batch: int, is_deduplicating: bool, is_sharing: bool) -> LlamaEngine:
    cache = KvCache(num_slots=slots, cells_per_sequence=CELLS, is_sharing=is_sharing)
    return LlamaEngine("fake", model, cache=cache, max_batch_tokens=batch, is_deduplicating=is_deduplicating)  # type: ignore[arg-type]


def submit(engine: LlamaEngine, arrival: Arrival) -> Caller:
    results: dict[int, SequenceResult] = {}
    deltas: dict[int, str] = defaultdict(str)
    listed: dict[int, list[TokenLogprob]] = defaultdict(list)
    is_alone = arrival.is_alone and not arrival.is_live

    def hear(delta: SequenceDelta) -> None:
        assert delta.key[0] not in results, "text came after the end"
        deltas[delta.key[0]] += delta.text
        listed[delta.key[0]] += delta.logprobs or ()

    def take(result: SequenceResult | EngineError) -> None:
        assert isinstance(result, SequenceResult)
        assert result.key[0] not in results, "an answer came twice"
        results[result.key[0]] = result

    requests = [
        SequenceRequest(
            (n, 0),
            STEMS[stem] + tail,
            SamplingParams(max_tokens=max_tokens, temperature=0, seed=0, logprobs=2 if is_scored else None),
            is_alone=is_alone,
            is_live=arrival.is_live,
            client=arrival.client,
            is_echoing=is_scored,
            scores_prompt=is_scored,
        )
        for n, (stem, tail, max_tokens, is_scored) in enumerate(arrival.prompts)
    ]
    ticket = engine.submit(requests, take, is_alone=is_alone, on_delta=hear if arrival.is_live else None)
    return Caller(arrival, ticket, results, deltas, listed)


def check_logprobs(found: tuple[TokenLogprob, ...] | None, text: str, *, num_prompt: int, max_tokens: int) -> None:
    """Each by the logits that the model gives after all tokens before it, and those alone."""
    assert found is not None
    ends = len(text) - num_prompt < max_tokens
    tokens = [ord(character) for character in text] + [END] * ends
    assert [one.token for one in found] == [chr(token).encode() for token in tokens]
    assert (found[0].logprob, found[0].top) == (None, ())
    log_total = math.log(math.e + VOCAB_SIZE - 1)
    for at, one in enumerate(found[1:], start=1):
        likeliest = next_token(tokens[:at], VOCAB_SIZE)
        assert one.top[0][0] == chr(likeliest).encode()
        assert one.logprob is not None
        assert math.isclose(one.logprob, (tokens[at] == likeliest) - log_total, abs_tol=1e-5)


def check(engine: LlamaEngine, model: FakeModel) -> None:
    """The scheduler's books balance, and the cells hold what they say."""
    engine._scheduler.check_integrity()
    cache = engine._cache
    for sequence in engine._scheduler.running():
        num_computed = int(cache.num_computed[sequence.slot])
        assert model.cells[sequence.slot] == cache.tokens[sequence.slot, :num_computed].tolist()


@given(arrivals, st.integers(1, 6), st.integers(6, 64), st.booleans(), st.booleans())
def test_every_text_is_what_the_prompt_alone_gives(
    work: list[Arrival], slots: int, batch: int, is_deduplicating: bool, is_sharing: bool
) -> None:
    """Random arrivals, lengths, prefixes, duplicates, cancellations: books hold at each step, all come out once."""
    model = FakeModel(num_slots=slots, vocab_size=VOCAB_SIZE, can_cut=is_sharing)
    engine = make_engine(model, slots=slots, batch=batch, is_deduplicating=is_deduplicating, is_sharing=is_sharing)
    coming = list(work)
    callers: list[Caller] = []
    steps = since = 0
    while coming or engine.is_busy:
        if not engine.is_busy:
            engine._right.leave()  # as its thread does before it waits
        # While a request is alone, nobody else gets to submit.
        if coming and (since >= coming[0].delay or not engine.is_busy) and not engine._right.is_exclusive:
            callers.append(submit(engine, coming.pop(0)))
            after = callers[-1].arrival.cancelled_after
            callers[-1].cancel_at = -1 if after is None else steps + after
            since = 0
        for caller in callers:
            if caller.cancel_at == steps:
                caller.ticket.cancel()
        if engine.is_busy:  # It is not where all that came was answered at once.
            engine._wait_for_work()
            engine.step()
        check(engine, model)
        steps, since = steps + 1, since + 1
        assert steps < 5000

    assert max(model.batch_sizes, default=0) <= batch
    for caller in callers:
        for n, (stem, tail, max_tokens, is_scored) in enumerate(caller.arrival.prompts):
            prompt = STEMS[stem] + tail
            result = caller.results.get(n)
            if result is None:
                assert caller.ticket.is_cancelled
                continue
            assert result.choice is not None
            text = complete_alone(prompt, max_tokens=max_tokens, vocab_size=VOCAB_SIZE)
            assert result.choice.text == (prompt + text if is_scored else text)
            if is_scored:
                found = result.choice.logprobs
                check_logprobs(found, prompt + text, num_prompt=len(prompt), max_tokens=max_tokens)
            if caller.arrival.is_live:
                assert caller.deltas.get(n, "") == result.choice.text
                assert caller.listed.get(n, []) == list(result.choice.logprobs or ())
            assert 0 <= result.choice.usage.cached_tokens <= result.choice.usage.prompt_tokens
