"""The engine on every architecture of the zoo, by regret: its own tokens beside what llama.cpp alone finds likely."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from batcher.errors import ModelError
from batcher.types import EngineConfig, FinishReason, SamplingParams
from tests.support.regret import Decoded, Reference, decode
from tests.support.tiny_engine import choices_of, running
from tests.support.vocabularies import Vocabulary, byte_pairs, pieces, word_pieces
from tests.support.zoo import WINDOW, ZOO, write_zoo_model
from workers.engines.base import SequenceRequest
from workers.engines.llama import model
from workers.engines.llama.loader import load_engine

#: Of plain 32-bit toys, whose logits deviate by about 4.
MAX_REGRET = 0.01
#: Memory that llama.cpp can't cut, so that nothing is copied.
RECURRENT = frozenset({"mamba", "rwkv7", "lfm2", "granitehybrid", "falcon-h1"})

GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)

#: Longer than the windows of the zoo, by far, and a block of cells.
STEM = "The quick brown fox jumps over the lazy dog, and says hello world. " * 5
#: From a token to more than a micro-batch, in no order; among them some that begin alike.
PROMPTS = (
    "hello",
    STEM + "One.",
    "x",
    "ragged " * 3,
    STEM + "Two, and more of it.",
    STEM[: 2 * WINDOW],
    "Zwölf Boxkämpfer jagen 🙂",
    STEM + STEM[:200],
    "a" * 90,
)


def requests_of(prompts: Sequence[str]) -> list[SequenceRequest]:
    return [SequenceRequest((number, 0), prompt, GREEDY, seed=0) for number, prompt in enumerate(prompts)]


def worst_regret(path: Path, decoded: Sequence[Decoded], *, context_length: int) -> float:
    with Reference(path, context_length=context_length) as reference:
        return max(float(reference.regrets(each).max()) for each in decoded)


@pytest.mark.parametrize("architecture", ZOO)
def test_ragged_prompts_with_beginnings_in_common_are_computed_right(tmp_path: Path, architecture: str) -> None:
    path = write_zoo_model(tmp_path / "model.gguf", architecture)

    with running(path, num_slots=4, context_length=768, is_deduplicating=False) as engine:
        decoded = decode(engine, requests_of(PROMPTS))
        # What is left in the slots is taken up by others.
        decoded += decode(engine, requests_of([STEM + "Three?", STEM[:150] + "else", "hello"]))

    assert {len(each.completion) for each in decoded} == {GREEDY.max_tokens}
    assert len({tuple(each.completion) for each in decoded}) > len(decoded) // 2, "the model is not one that repeats"
    most_cached = max(each.num_cached for each in decoded)
    assert most_cached == 0 if architecture in RECURRENT else most_cached > 4 * WINDOW
    assert worst_regret(path, decoded, context_length=768) <= MAX_REGRET


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mamba"])
def test_another_token_would_be_regretted(tmp_path: Path, architecture: str) -> None:
    """The judge condemns: what a model says after another prompt is not likely after this one."""
    path = write_zoo_model(tmp_path / "model.gguf", architecture)
    with running(path, num_slots=2, context_length=768) as engine:
        one, two = decode(engine, requests_of([STEM + "One.", STEM + "Two, and more of it."]))

    swapped = [Decoded(one.prompt, two.completion, 0), Decoded(two.prompt, one.completion, 0)]

    with Reference(path, context_length=768) as reference:
        assert min(float(np.max(reference.regrets(each))) for each in swapped) > 10 * MAX_REGRET


@pytest.mark.parametrize(
    "vocabulary",
    [
        pytest.param(byte_pairs(more_ends=["<|im_end|>"]), id="byte pairs, two ends"),
        pytest.param(byte_pairs(adds_bos=True), id="byte pairs behind a BOS"),
        pytest.param(pieces(adds_space_prefix=True), id="pieces behind a space"),
        pytest.param(pieces(adds_space_prefix=False), id="pieces without a space"),
        pytest.param(word_pieces(), id="word pieces"),
    ],
)
def test_texts_are_taken_apart_and_put_together_as_llama_cpp_does(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = write_zoo_model(tmp_path / "model.gguf", "llama", vocabulary=vocabulary)

    with running(path, num_slots=4, context_length=768, is_deduplicating=False) as engine:
        decoded = decode(engine, requests_of(PROMPTS))
        texts = [
            choice.text.rstrip("\N{REPLACEMENT CHARACTER}")
            for choice in choices_of(engine, [(prompt, GREEDY) for prompt in PROMPTS])
        ]
        ended = [
            choices_of(engine, [("hello", SamplingParams(max_tokens=5, logit_bias=((end, 100.0),)))])[0]
            for end in vocabulary.ends
        ]

    assert worst_regret(path, decoded, context_length=768) <= MAX_REGRET
    assert {(choice.text, choice.finish_reason) for choice in ended} == {("", FinishReason.STOP)}
    with Reference(path, context_length=768) as reference:
        assert [each.prompt.tolist() for each in decoded] == [reference.tokenize(prompt) for prompt in PROMPTS]
        # A character whose bytes have not all come is no text yet.
        assert texts == [reference.text_of(each).rstrip("\N{REPLACEMENT CHARACTER}") for each in decoded]


def test_model_without_memory_is_refused_where_its_header_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp has the last word, once the context is open, on an architecture that is in no list of ours."""
    monkeypatch.setattr(model, "check_completes_text", lambda path: None)
    path = write_zoo_model(tmp_path / "model.gguf", "dream", like="qwen2")

    with pytest.raises(ModelError, match=r"dream .* has no memory of what it read, .* completes no text"):
        load_engine("dream", path, EngineConfig(num_slots=2, context_length=256))
