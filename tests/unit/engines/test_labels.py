"""Labels that are scored, not drawn, against llama.cpp alone."""

import itertools
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from batcher import constraints
from batcher.types import Choice, ErrorCode, FinishReason, SamplingParams
from tests.support.regret import Decoded, Reference, Tokens
from tests.support.tiny_engine import WAIT_S, complete, running
from tests.support.vocabularies import Vocabulary, byte_pairs, pieces, word_pieces
from tests.support.zoo import write_zoo_model
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.labels import Scoring, label_tokens

#: Of one token and of many, some that others begin with.
LABELS = ("a", "ab", "no", "not so", "nothing", "Zwölf 🙂", " hello", "hello", "x y z")
SCORED = constraints.scored_choice(LABELS)

STEM = "The quick brown fox jumps over the lazy dog. " * 4
PROMPTS = ("hello", STEM + "One", "x", STEM + "Two, and more", STEM + "One", "ragged " * 9)


def scored(engine: LlamaEngine, prompts: Sequence[str], **params: float) -> list[Choice]:
    requests = [
        SequenceRequest((row, 0), prompt, SamplingParams(constraint=SCORED, **params), seed=row)  # type: ignore[arg-type]
        for row, prompt in enumerate(prompts)
    ]
    results = complete(engine, requests)
    assert [result.error for result in results] == [None] * len(prompts)
    return [result.choice for result in results if result.choice is not None]


def tokens_of(labels: Sequence[str], engine: LlamaEngine) -> list[tuple[int, ...]]:
    return [label_tokens(label, engine._vocabulary) for label in labels]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "deepseek2", "mamba", "falcon-h1"])
def test_labels_are_as_likely_as_llama_cpp_has_their_tokens(tmp_path: Path, architecture: str) -> None:
    path = write_zoo_model(tmp_path / "model.gguf", architecture)

    with running(path, num_slots=3, context_length=512) as engine:
        choices = scored(engine, PROMPTS)
        tokens = tokens_of(LABELS, engine)
        prompts = [engine._prompts.tokenize(SequenceRequest((0, 0), text, SamplingParams())) for text in PROMPTS]

    assert max(map(len, tokens)) > 3
    with Reference(path, context_length=512) as reference:
        for prompt, choice in zip(prompts, choices, strict=True):
            assert isinstance(prompt, np.ndarray)
            expected = [logprob(reference, prompt, label) for label in tokens]
            assert choice.label_logprobs == pytest.approx(expected, abs=0.02)
            best = int(np.argmax(expected))
            assert choice.text == LABELS[best]
            assert choice.finish_reason is FinishReason.STOP
            assert choice.usage.prompt_tokens == len(prompt)
            assert choice.usage.completion_tokens == len(tokens[best])


def logprob(reference: Reference, prompt: Tokens, label: tuple[int, ...]) -> float:
    found = reference.logprobs(Decoded(prompt, np.array(label, np.int32), 0))
    return float(found[np.arange(len(label)), label].sum())


@pytest.mark.parametrize(
    "vocabulary",
    [byte_pairs(), byte_pairs(adds_bos=True), pieces(adds_space_prefix=True), pieces(adds_space_prefix=False)],
    ids=["BPE", "BPE with BOS", "SPM with a space in front", "SPM"],
)
def test_tokens_of_a_label_spell_it_and_nothing_else(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = write_zoo_model(tmp_path / "model.gguf", "llama", vocabulary=vocabulary)

    with running(path) as engine:
        tokens = tokens_of(LABELS, engine)

        assert [engine._vocabulary.detokenize(np.array(label)).decode() for label in tokens] == list(LABELS)


def test_labels_that_no_vocabulary_spells_are_an_error_of_their_row(tmp_path: Path) -> None:
    path = write_zoo_model(tmp_path / "model.gguf", "llama", vocabulary=word_pieces())

    with running(path) as engine:
        [result] = complete(engine, [SequenceRequest((0, 0), "hello", SamplingParams(constraint=SCORED))])

    assert result.error is not None
    assert result.error.code is ErrorCode.INVALID_REQUEST
    assert result.error.message.startswith("choice: ")


def test_nothing_of_it_is_left_to_chance_or_to_those_beside_it(model: Path) -> None:
    drawn = SequenceRequest((99, 0), STEM, SamplingParams(max_tokens=30), seed=1)

    with running(model, num_slots=3, is_deduplicating=False) as engine:
        [alone] = scored(engine, PROMPTS[:1])
        many = scored(engine, PROMPTS * 3, temperature=0.2)
        complete(engine, [drawn])
        engine._scheduler.check_integrity()

    for first, later in itertools.pairwise(many[:: len(PROMPTS)]):
        assert first.label_logprobs == pytest.approx(later.label_logprobs, abs=1e-3)
    assert many[0].label_logprobs == pytest.approx(alone.label_logprobs, abs=1e-3)


def test_live_request_that_takes_its_slot_changes_nothing(model: Path) -> None:
    """Prompts that give way between two labels go on where they were."""
    with running(model, num_slots=4, is_deduplicating=False) as engine:
        expected = [choice.label_logprobs for choice in scored(engine, PROMPTS)] * 20
        rows: queue.SimpleQueue[object] = queue.SimpleQueue()
        has_begun = threading.Event()
        params = SamplingParams(constraint=SCORED)
        engine.submit(
            [SequenceRequest((row, 0), PROMPTS[row % len(PROMPTS)], params) for row in range(len(expected))],
            rows.put,
            on_start=lambda request: has_begun.set(),
        )
        assert has_begun.wait(WAIT_S)
        for number in range(10):
            complete(engine, [SequenceRequest((number, 0), "live", SamplingParams(max_tokens=3), is_live=True)] * 4)
        results = [rows.get(timeout=WAIT_S) for _ in expected]
        assert engine.stats().num_preempted > 0

    for result in results:
        assert isinstance(result, SequenceResult)
        assert result.choice is not None
        assert result.choice.label_logprobs == pytest.approx(expected[result.key[0]], abs=1e-3)


def test_labels_need_room_for_the_longest(model: Path) -> None:
    long = constraints.scored_choice(["a", "b" * 600])

    with running(model, context_length=512) as engine:
        [result] = complete(engine, [SequenceRequest((0, 0), "hello", SamplingParams(constraint=long))])

    assert result.error is not None
    assert result.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
    assert "tokens, and the labels go on for " in result.error.message
    assert "max_tokens" not in result.error.message


def test_long_labels_take_a_step_each_of_as_many_tokens_as_there_is_room_for(model: Path) -> None:
    """More places at once than llama.cpp has rows for their logits."""
    labels = ["a" * 90, "b" * 90, "a" * 45 + "c" * 45]
    params = SamplingParams(constraint=constraints.scored_choice(labels))
    requests = [SequenceRequest((row, 0), text, params) for row, text in enumerate(PROMPTS)]

    with running(model, num_slots=6, context_length=512, is_deduplicating=False) as engine:
        before = engine.num_steps
        complete(engine, requests[:1])
        num_steps_alone = engine.num_steps - before
        results = complete(engine, requests)
        tokens = tokens_of(labels, engine)
        prompts = [engine._prompts.tokenize(request) for request in requests]

    # A result may come before its step is counted.
    assert len(labels) - 1 <= num_steps_alone <= len(labels)
    assert sum(map(len, tokens)) > 256
    with Reference(model, context_length=512) as reference:
        for prompt, result in zip(prompts, results, strict=True):
            assert isinstance(prompt, np.ndarray)
            assert result.choice is not None
            expected = [logprob(reference, prompt, label) for label in tokens]
            assert result.choice.label_logprobs == pytest.approx(expected, abs=0.02)


def test_each_place_is_looked_at_once_and_after_what_lies_before_it() -> None:
    scoring = Scoring([(1,), (1, 2), (1, 2, 3), (2, 1), (1, 3, 1)])
    paths = []
    while not scoring.is_done:
        paths.append((scoring.path, scoring.num_wanted))
        for _ in range(scoring.num_wanted):
            scoring.note(np.zeros(4, np.float32))

    assert paths == [((1, 2), 3), ((1, 3), 1), ((2,), 1)]
    assert scoring.logprobs == pytest.approx([-np.log(4) * n for n in (1, 2, 3, 2, 3)])
    assert scoring.longest == 2
