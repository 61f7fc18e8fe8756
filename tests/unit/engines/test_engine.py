"""The engine on a real llama.cpp context: a tiny random GGUF, compared with llama-cpp-python's own completion."""

import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from batcher.errors import EngineError, ModelError
from batcher.types import EngineConfig, ErrorCode, FinishReason, SamplingParams
from tests.support.tiny_engine import WAIT_S, choices_of, results_of, running
from tests.support.tiny_gguf import write_tiny_gguf
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.gate import Gate
from workers.engines.llama.loader import load_engine, load_tokenizer

PROMPTS = [
    "hello world",
    "a",
    "The quick brown fox " * 5,
    "日本語のテキスト",
    "emoji 😀 and é",
    "\x00NUL and \n newline",
    "x" * 300,
    "one two three four",
]

GREEDY = SamplingParams(max_tokens=24, temperature=0, seed=0)

StartEngine = Callable[..., LlamaEngine]


@pytest.fixture
def start(tiny: Path) -> Iterator[StartEngine]:
    """Starts engines on the tiny model and closes them."""
    with contextlib.ExitStack() as engines:

        def make(num_slots: int = 8, path: Path = tiny, context_length: int = 512) -> LlamaEngine:
            return engines.enter_context(running(path, num_slots=num_slots, context_length=context_length))

        yield make


@pytest.fixture(scope="module")
def reference(tiny: Path) -> Iterator[llama_cpp.Llama]:
    llama = llama_cpp.Llama(str(tiny), n_ctx=512, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False)
    yield llama
    llama.close()


def test_one_slot_at_temperature_zero_equals_create_completion(start: StartEngine, reference: llama_cpp.Llama) -> None:
    ours = choices_of(start(num_slots=1), [(prompt, GREEDY) for prompt in PROMPTS])

    for prompt, choice in zip(PROMPTS, ours, strict=True):
        theirs = reference.create_completion(prompt, max_tokens=24, temperature=0)
        assert isinstance(theirs, dict)
        assert choice.text == theirs["choices"][0]["text"]
        assert choice.usage.prompt_tokens == theirs["usage"]["prompt_tokens"]
        assert choice.finish_reason.value == theirs["choices"][0]["finish_reason"]


def test_many_slots_give_what_one_slot_gives(start: StartEngine) -> None:
    requests = [(f"{prompt} {n}", GREEDY) for prompt in PROMPTS for n in range(8)]

    alone, together = choices_of(start(num_slots=1), requests), choices_of(start(num_slots=16), requests)

    # Float order differs with the batch's composition, so a rare row may differ.
    same = sum(a.text == b.text for a, b in zip(alone, together, strict=True))
    assert same >= 0.95 * len(requests)


def test_default_max_tokens_is_16(start: StartEngine) -> None:
    (choice,) = choices_of(start(), [("hello", SamplingParams(temperature=0, seed=0))])
    assert (choice.usage.completion_tokens, choice.finish_reason) == (16, FinishReason.LENGTH)


def test_defaults_draw_from_the_models_whole_softmax(start: StartEngine, tmp_path: Path) -> None:
    """The first token of 4,000 seeds against the softmax of llama.cpp's own logits: no top_k, min_p or penalty."""
    flat = write_tiny_gguf(tmp_path / "flat.gguf", sharpness=1.0)
    reference = llama_cpp.Llama(str(flat), n_ctx=512, n_threads=1, verbose=False)
    reference.eval(reference.tokenize(b"hello world", add_bos=False))
    raw = llama_cpp.llama_get_logits_ith(reference.ctx, -1)
    logits = np.ctypeslib.as_array(raw, (reference.n_vocab(),)).astype(np.float64)
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    reference.close()

    num_draws, vocabulary = 4000, load_tokenizer(flat)
    engine = start(num_slots=32, path=flat)
    found = choices_of(engine, [("hello world", SamplingParams(max_tokens=1, seed=seed)) for seed in range(num_draws)])

    counts = Counter(choice.text for choice in found)
    pieces = {vocabulary.piece(token): expected[token] * num_draws for token in range(len(expected))}
    common = {piece.decode(): mean for piece, mean in pieces.items() if piece.isascii() and piece and mean >= 5}
    chi2 = sum((counts[text] - mean) ** 2 / mean for text, mean in common.items())
    assert len(common) > 60
    assert chi2 < len(common) + 5.2 * (2 * len(common)) ** 0.5 + 27


def test_same_seed_gives_the_same_text_in_any_company(start: StartEngine) -> None:
    params = SamplingParams(max_tokens=12, seed=5)
    engine = start(num_slots=4)

    (alone,) = choices_of(engine, [("hello", params)])
    among = choices_of(
        engine, [(p, SamplingParams(max_tokens=12, seed=i)) for i, p in enumerate(PROMPTS)] + [("hello", params)]
    )

    assert among[-1].text == alone.text


@pytest.mark.parametrize("as_array", [False, True])
def test_stop_ends_the_text_before_it(start: StartEngine, as_array: bool) -> None:
    engine = start()
    (free,) = choices_of(engine, [("hello world", GREEDY)])
    stop = free.text[5:9]
    first = free.text.find(stop)

    params = SamplingParams(max_tokens=24, temperature=0, stop=(stop, "never this") if as_array else (stop,), seed=0)
    (stopped,) = choices_of(engine, [("hello world", params)])

    assert stopped.text == free.text[:first]
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.usage.completion_tokens < free.usage.completion_tokens


def test_end_of_text_token_stops_and_is_not_counted(start: StartEngine, tmp_path: Path) -> None:
    """Given a model that soon ends, when sampled, then the reason is `stop` and the end token is not in the usage."""
    eager = write_tiny_gguf(tmp_path / "eager.gguf", end_bias=10.0)
    found = choices_of(start(path=eager), [(f"{n}", SamplingParams(max_tokens=200, seed=n)) for n in range(20)])
    stopped = [choice for choice in found if choice.finish_reason is FinishReason.STOP]
    assert stopped
    assert all(choice.usage.completion_tokens < 200 for choice in stopped)
    assert all("endoftext" not in choice.text for choice in found)


def test_ignored_end_of_text_is_a_token_without_text(start: StartEngine, tmp_path: Path) -> None:
    """Given a model that soon ends, one that ignores it goes on to max_tokens, one with min_tokens up to there."""
    eager = write_tiny_gguf(tmp_path / "eager.gguf", end_bias=14.0)
    engine = start(path=eager)
    end = int(np.flatnonzero(engine._vocabulary.is_end)[0])
    prompts = [f"{n}" for n in range(12)]
    plain, ignoring, patient, stopping = (
        choices_of(engine, [(prompt, replace(GREEDY, max_tokens=40, **params)) for prompt in prompts])
        for params in (
            {},
            {"ignore_eos": True},
            {"min_tokens": 30},
            {"ignore_eos": True, "stop_token_ids": (end,), "include_stop_str_in_output": True},
        )
    )

    assert any(choice.finish_reason is FinishReason.STOP for choice in plain)
    assert all(choice.finish_reason is FinishReason.LENGTH for choice in ignoring)
    assert all(choice.usage.completion_tokens == 40 for choice in ignoring)
    assert all(choice.usage.completion_tokens >= 30 for choice in patient)
    for short, long in zip(plain, ignoring, strict=True):
        assert long.text.startswith(short.text)
        assert "endoftext" not in long.text
    assert [c.usage for c in stopping] == [c.usage for c in plain], "as a token to stop at it ends what it ended"


def test_bad_words_are_not_generated_by_the_models_own_tokens(start: StartEngine) -> None:
    """Given a word of a free completion that is several tokens, the completion differs from its last token on."""
    engine = start()
    (free,) = choices_of(engine, [("hello world", GREEDY)])
    word = free.text[:3]
    assert len(engine._vocabulary.tokenize(word)) == 3

    (clean,) = choices_of(engine, [("hello world", replace(GREEDY, bad_words=(word, "hello")))])

    assert clean.text.startswith(word[:2])
    assert word not in clean.text
    assert len(clean.text) > 3


def test_prompt_over_the_context_is_an_error_row_and_spares_its_neighbours(start: StartEngine) -> None:
    engine = start(context_length=256)
    results = results_of(engine, [("a", GREEDY), ("b" * 4000, GREEDY), ("c", GREEDY)])

    assert [result.error is None for result in results] == [True, False, True]
    error = results[1].error
    assert error is not None
    assert error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert error.message.startswith("This model's maximum context length is 256 tokens, but you asked for 4024 tokens")
    assert "4000 in the prompt" in error.message
    assert "--ctx" in error.message


@pytest.mark.parametrize("context_length", [100, 1000])
def test_context_of_any_length_is_filled_to_the_end_and_no_further(start: StartEngine, context_length: int) -> None:
    engine = start(num_slots=1, context_length=context_length)
    limit = engine.stats().num_cells

    fits, too_long = results_of(
        engine, [(f"{'z' * number}", replace(GREEDY, max_tokens=1)) for number in (limit - 2, limit)]
    )

    assert fits.choice is not None
    assert too_long.error is not None
    assert too_long.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED


def test_prompt_that_is_far_too_long_is_refused_without_its_tokens(start: StartEngine) -> None:
    engine = start(context_length=256)
    longest = engine._vocabulary.most_bytes

    (result,) = results_of(engine, [("b" * (256 * max(longest, 16) + 1), GREEDY)])

    assert longest >= max(len(engine._vocabulary.piece(token)) for token in range(engine._vocabulary.size))
    assert result.error is not None
    assert result.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert result.error.message.startswith("This model's maximum context length is 256 tokens, but")
    assert "at least" in result.error.message


def test_max_tokens_that_nobody_asked_for_are_as_many_as_there_is_room_for(start: StartEngine) -> None:
    engine = start(num_slots=2, context_length=256)
    loose = replace(GREEDY, max_tokens=1024, clips_max_tokens=True)

    short, full, over = results_of(engine, [("a", loose), ("b" * 255, loose), ("c" * 256, loose)])

    for result in (short, full):
        assert result.choice is not None
        assert result.choice.finish_reason is FinishReason.LENGTH, "this model does not end by itself"
        assert result.choice.usage.total_tokens == 256
    assert over.error is not None
    assert over.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert over.error.message.startswith("This model's maximum context length is 256 tokens, but")
    assert "room for an answer" in over.error.message


def test_prompt_and_max_tokens_may_fill_the_context_exactly(start: StartEngine) -> None:
    engine = start(num_slots=2, context_length=256)
    exactly, too_many = (SamplingParams(max_tokens=n, temperature=0, seed=0) for n in (56, 57))
    fits, over = results_of(engine, [("b" * 200, exactly), ("b" * 200, too_many)])
    assert fits.choice is not None
    assert fits.choice.usage.total_tokens == 256
    assert over.error is not None


def test_empty_prompt_starts_from_the_beginning_of_text(start: StartEngine) -> None:
    (choice,) = choices_of(start(), [("", GREEDY)])
    assert choice.usage.prompt_tokens == 1


def test_cancelled_ticket_frees_its_slots_for_others(start: StartEngine) -> None:
    engine = start(num_slots=1)
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    endless = SamplingParams(max_tokens=450, temperature=0, seed=0)
    ticket = engine.submit([SequenceRequest((i, 0), "a", endless) for i in range(500)], inbox.put)

    ticket.cancel()

    assert len(choices_of(engine, [("hello", GREEDY)])) == 1
    assert inbox.qsize() < 500


def test_closing_tells_those_who_wait(start: StartEngine) -> None:
    engine = start(num_slots=1)
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    endless = SamplingParams(max_tokens=450, temperature=0, seed=0)
    engine.submit([SequenceRequest((i, 0), "a", endless) for i in range(500)], inbox.put)

    engine.close()

    results = [inbox.get(timeout=WAIT_S) for _ in range(inbox.qsize())]
    assert isinstance(results[-1], EngineError)
    with pytest.raises(EngineError):
        engine.submit([SequenceRequest((0, 0), "a", GREEDY)], inbox.put)


def test_several_callers_share_one_engine(start: StartEngine) -> None:
    engine = start(num_slots=4)
    first: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    second: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    requests = [SequenceRequest((i, 0), p, GREEDY) for i, p in enumerate(PROMPTS)]

    engine.submit(requests, first.put)
    engine.submit(requests, second.put)

    def texts(inbox: "queue.SimpleQueue[SequenceResult | EngineError]") -> dict[tuple[int, int], str]:
        got = [inbox.get(timeout=WAIT_S) for _ in requests]
        return {r.key: r.choice.text for r in got if isinstance(r, SequenceResult) and r.choice}

    assert texts(first) == texts(second)


@pytest.mark.parametrize(
    ("content", "why"), [(b"", "can't load"), (b"GGUF" + b"\0" * 20, "can't load"), (b"not a model", "can't load")]
)
def test_broken_model_file_is_a_clear_error(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=why):
        load_engine("broken", path, EngineConfig())


def test_truncated_model_is_a_clear_error(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "truncated.gguf"
    path.write_bytes(tiny.read_bytes()[:-5000])
    with pytest.raises(ModelError, match="can't load"):
        load_engine("truncated", path, EngineConfig())


def test_slots_out_of_range_are_refused(tiny: Path) -> None:
    with pytest.raises(ModelError, match="--slots is 257"):
        load_engine("tiny", tiny, EngineConfig(num_slots=257))


def test_starts_are_told_before_anything_is_computed(start: StartEngine) -> None:
    engine = start(num_slots=2)
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    steps: dict[int, int] = {}
    requests = [SequenceRequest((i, 0), f"hello {i}", replace(GREEDY, max_tokens=4)) for i in range(4)]

    def note(request: SequenceRequest) -> None:
        steps[request.key[0]] = engine.num_steps

    engine.submit(requests, inbox.put, on_start=note)
    for _ in requests:
        inbox.get(timeout=WAIT_S)

    assert set(steps) == {0, 1, 2, 3}
    assert steps[0] == steps[1] == 0
    assert min(steps[2], steps[3]) >= 3


def test_alone_is_alone_among_all_engines_of_the_process(tiny: Path) -> None:
    gate = Gate()
    config = EngineConfig(num_slots=4, num_threads=1, context_length=512)
    engines = [load_engine(name, tiny, config, gate=gate) for name in ("one", "two")]
    for engine in engines:
        engine.start()
    one, two = engines
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    ended: list[int] = []
    try:
        long = SequenceRequest((9, 0), "b", replace(GREEDY, max_tokens=400), is_alone=True)

        def watch(result: SequenceResult | EngineError) -> None:
            ended.append(two.num_steps)
            inbox.put(result)

        began: list[int] = []
        two.submit([SequenceRequest((i, 0), "hello", replace(GREEDY, max_tokens=400)) for i in range(4)], inbox.put)
        one.submit([long], watch, on_start=lambda _: began.append(two.num_steps), is_alone=True)
        results = [inbox.get(timeout=WAIT_S) for _ in range(5)]

        assert all(isinstance(result, SequenceResult) and result.choice is not None for result in results)
        assert began == ended, "the other engine stood still meanwhile"
    finally:
        for engine in engines:
            engine.close()


def test_others_wait_until_all_requests_that_must_be_alone_are_tokenized(tiny: Path) -> None:
    events: list[str] = []

    class WatchedGate(Gate):
        @contextlib.contextmanager
        def exclusive(self) -> Iterator[None]:
            with super().exclusive():
                events.append("alone")
                yield
                events.append("not alone")

    def take() -> Iterator[SequenceRequest]:
        for number in range(2):
            events.append(str(number))
            yield SequenceRequest((0, number), "a", GREEDY, is_alone=True)
        events.append("end")

    engine = load_engine("one", tiny, EngineConfig(num_slots=1, num_threads=1, context_length=512), gate=WatchedGate())
    try:
        # It is not started, so that it computes nothing.
        engine.submit(take(), lambda result: None, is_alone=True)
    finally:
        engine.close()

    assert events == ["alone", "0", "1", "end", "not alone"]


def test_cancelled_request_that_was_alone_lets_the_others_go_on(start: StartEngine) -> None:
    engine = start(num_slots=2)
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    started = threading.Event()
    alone = SequenceRequest((0, 0), "a", replace(GREEDY, max_tokens=500), is_alone=True)

    ticket = engine.submit([alone], inbox.put, on_start=lambda _: started.set(), is_alone=True)
    assert started.wait(WAIT_S)
    ticket.cancel()

    assert len(results_of(engine, [("hello", GREEDY)])) == 1


def test_completion_that_takes_too_long_is_a_timeout_and_its_neighbour_is_not(start: StartEngine) -> None:
    engine = start(num_slots=2)
    engine._clock = iter(range(10_000)).__next__
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    slow = SequenceRequest((0, 0), "a", replace(GREEDY, max_tokens=400), timeout_s=100)
    quick = SequenceRequest((1, 0), "a", replace(GREEDY, max_tokens=4), timeout_s=100)

    engine.submit([slow, quick], inbox.put)
    results = sorted((inbox.get(timeout=WAIT_S) for _ in range(2)), key=lambda result: result.key)  # type: ignore[union-attr]

    assert [getattr(result, "error", None) is None for result in results] == [False, True]
    error = getattr(results[0], "error", None)
    assert error is not None
    assert error.code is ErrorCode.TIMEOUT
    assert "not finished after 100 s" in error.message
    assert len(results_of(engine, [("hello", GREEDY)])) == 1


def test_model_that_computes_no_numbers_is_refused_at_the_start(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "nan.gguf", sharpness=float("nan"))

    engine = load_engine("nan", path, EngineConfig(num_slots=1, num_threads=1, context_length=64))

    with pytest.raises(ModelError, match=r"nan.gguf: loaded, but can't compute: its logits are no numbers"):
        engine.start()
    engine.close()
