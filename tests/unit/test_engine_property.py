"""Random work on a fake model, step by step: whatever the scheduler shares, copies and moves, each text is right."""

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import EngineError
from batcher.types import SamplingParams
from tests.fake_model import FakeModel, complete_alone
from workers.engine.engine import Engine, Ticket
from workers.engine.kv_cache import MIN_SHARED_TOKENS, KvCache
from workers.engine.sequence import SequenceDelta, SequenceRequest, SequenceResult

CELLS = 192

#: Beginnings that nest: each is long enough to be shared, the second starts with the first, the third with neither.
SYSTEM = "system " * 5
STEMS = ("", SYSTEM, SYSTEM + "first task: " * 4, SYSTEM + "second task " * 3, "another " * 6)
assert len(SYSTEM) >= MIN_SHARED_TOKENS


@dataclass(frozen=True)
class Arrival:
    """Prompts that come together, after so many steps, and how many steps later they are cancelled, if at all."""

    prompts: list[tuple[int, str, int]]
    delay: int
    cancelled_after: int | None
    is_alone: bool
    is_live: bool


@dataclass
class Caller:
    """Who submitted an arrival, and what it got."""

    arrival: Arrival
    ticket: Ticket
    results: dict[int, SequenceResult]
    deltas: dict[int, str] = field(default_factory=dict)
    cancel_at: int = -1


arrivals = st.lists(
    st.builds(
        Arrival,
        prompts=st.lists(
            st.tuples(st.integers(0, len(STEMS) - 1), st.text("abc", min_size=1, max_size=12), st.integers(1, 30)),
            min_size=1,
            max_size=8,
        ),
        delay=st.integers(0, 12),
        cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 20)),
        is_alone=st.sampled_from([False, False, False, True]),
        is_live=st.booleans(),
    ),
    min_size=1,
    max_size=6,
)


def make_engine(model: FakeModel, *, slots: int, batch: int, is_deduplicating: bool, is_sharing: bool) -> Engine:
    cache = KvCache(num_slots=slots, cells_per_sequence=CELLS, is_sharing=is_sharing)
    return Engine("fake", model, cache=cache, max_batch_tokens=batch, is_deduplicating=is_deduplicating)  # type: ignore[arg-type]


def submit(engine: Engine, arrival: Arrival) -> Caller:
    results: dict[int, SequenceResult] = {}
    deltas: dict[int, str] = defaultdict(str)
    is_alone = arrival.is_alone and not arrival.is_live

    def hear(delta: SequenceDelta) -> None:
        assert delta.key[0] not in results, "text came after the end"
        deltas[delta.key[0]] += delta.text

    def take(result: SequenceResult | EngineError) -> None:
        assert isinstance(result, SequenceResult)
        assert result.key[0] not in results, "an answer came twice"
        results[result.key[0]] = result

    requests = [
        SequenceRequest(
            (n, 0),
            STEMS[stem] + tail,
            SamplingParams(max_tokens=max_tokens, temperature=0, seed=0),
            is_alone=is_alone,
            is_live=arrival.is_live,
        )
        for n, (stem, tail, max_tokens) in enumerate(arrival.prompts)
    ]
    ticket = engine.submit(requests, take, is_alone=is_alone, on_delta=hear if arrival.is_live else None)
    return Caller(arrival, ticket, results, deltas)


def check(engine: Engine, model: FakeModel) -> None:
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
    model = FakeModel(num_slots=slots, can_cut=is_sharing)
    engine = make_engine(model, slots=slots, batch=batch, is_deduplicating=is_deduplicating, is_sharing=is_sharing)
    coming = list(work)
    callers: list[Caller] = []
    steps = since = 0
    while coming or engine.is_busy:
        if not engine.is_busy:
            engine._leave_gate()  # as its thread does before it waits
        # While a request is alone, nobody else gets to submit.
        if coming and (since >= coming[0].delay or not engine.is_busy) and not engine._has_gate:
            callers.append(submit(engine, coming.pop(0)))
            after = callers[-1].arrival.cancelled_after
            callers[-1].cancel_at = -1 if after is None else steps + after
            since = 0
        for caller in callers:
            if caller.cancel_at == steps:
                caller.ticket.cancel()
        engine._wait_for_work()
        engine.step()
        check(engine, model)
        steps, since = steps + 1, since + 1
        assert steps < 5000

    assert max(model.batch_sizes, default=0) <= batch
    for caller in callers:
        for n, (stem, tail, max_tokens) in enumerate(caller.arrival.prompts):
            result = caller.results.get(n)
            if result is None:
                assert caller.ticket.is_cancelled
                continue
            assert result.choice is not None
            assert result.choice.text == complete_alone(STEMS[stem] + tail, max_tokens=max_tokens)
            if caller.arrival.is_live:
                assert caller.deltas.get(n, "") == result.choice.text
            assert 0 <= result.choice.usage.cached_tokens <= result.choice.usage.prompt_tokens
