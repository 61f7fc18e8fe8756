"""Echoed prompts with log-probabilities, on a real llama.cpp context, beside llama-cpp-python's own."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from batcher import constraints
from batcher.openai.answers import logprobs_object
from batcher.types import Choice, FinishReason, SamplingParams
from tests.support.tiny_engine import complete, running
from tests.support.tiny_gguf import END_OF_TEXT, write_tiny_gguf
from workers.engines.base import SequenceRequest
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.scores import NUM_TOP, ScoreTable, max_scored_tokens

CONTEXT = 512

SCORE = SamplingParams(max_tokens=1, temperature=0, logprobs=5)

TEXTS = [
    "hello world",
    "The quick brown fox jumps over the lazy dog. " * 6,
    "日本語のテキスト, emoji 😀 and é",
    f"one{END_OF_TEXT}two",
    "a",
]


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[LlamaEngine]:
    with running(tiny, num_slots=4) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(tiny: Path) -> Iterator[llama_cpp.Llama]:
    llama = llama_cpp.Llama(str(tiny), n_ctx=CONTEXT, n_threads=1, flash_attn=True, logits_all=True, verbose=False)
    yield llama
    llama.close()


def score(
    engine: LlamaEngine,
    *prompts: str,
    params: SamplingParams = SCORE,
    is_token_ids: bool = False,
    is_scored: bool = True,
) -> list[Choice]:
    """The choices of prompts that are echoed, in their order."""
    requests = [
        SequenceRequest((n, 0), p, params, is_token_ids=is_token_ids, is_echoing=True, scores_prompt=is_scored)
        for n, p in enumerate(prompts)
    ]
    found = [result.choice for result in complete(engine, requests)]
    assert None not in found
    return [choice for choice in found if choice is not None]


def values(choice: Choice) -> list[float | None]:
    assert choice.logprobs is not None
    return [one.logprob for one in choice.logprobs]


def are_close(ours: list[float | None], theirs: list[float | None]) -> bool:
    return len(ours) == len(theirs) and all(
        (a is None and b is None) or (a is not None and b is not None and math.isclose(a, b, abs_tol=0.02))
        for a, b in zip(ours, theirs, strict=True)
    )


def logprobs_along(reference: llama_cpp.Llama, ids: list[int]) -> Any:
    """Of each place of `ids` the log-probabilities of all tokens behind it, from llama-cpp-python's raw logits."""
    reference.reset()  # type: ignore[no-untyped-call]
    reference.eval(ids)
    logits = np.array(reference.scores[: len(ids)], np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


# -- agreement --------------------------------------------------------------------------------------------------------


def test_logprobs_of_prompts_are_those_of_the_models_logits(engine: LlamaEngine, reference: llama_cpp.Llama) -> None:
    for choice, text in zip(score(engine, *TEXTS), TEXTS, strict=True):
        ids = engine._vocabulary.tokenize(text).tolist()
        expected = logprobs_along(reference, ids)
        assert are_close(values(choice)[:-1], [None, *(expected[at, token] for at, token in enumerate(ids[1:]))])
        assert choice.logprobs is not None
        # The last is that of the token that was generated, the likeliest behind all of the prompt.
        assert len(choice.logprobs) == len(ids) + 1
        for ours, row in zip(choice.logprobs[1:], expected, strict=True):
            assert np.allclose([value for _, value in ours.top], np.sort(row)[::-1][:NUM_TOP], atol=0.02)


def test_logprobs_of_token_ids_are_those_of_the_models_logits(engine: LlamaEngine, reference: llama_cpp.Llama) -> None:
    """With ids that no tokenizer would give for a text."""
    ids = np.random.default_rng(0).integers(0, engine._vocabulary.size, 200).tolist()
    (choice,) = score(engine, json.dumps(ids), params=replace(SCORE, max_tokens=0), is_token_ids=True)

    expected = logprobs_along(reference, ids)
    assert are_close(values(choice), [None, *(expected[at, token] for at, token in enumerate(ids[1:]))])


def test_logprobs_behind_a_bos_are_those_that_create_completion_gives(
    engine: LlamaEngine, reference: llama_cpp.Llama
) -> None:
    """Without a BOS it gives each token what the model says behind it. With one it leaves out that, and the first."""
    (choice,) = score(engine, END_OF_TEXT + TEXTS[1])

    theirs = reference.create_completion(END_OF_TEXT + TEXTS[1], max_tokens=1, temperature=0, logprobs=5, echo=True)
    assert isinstance(theirs, dict)
    expected = theirs["choices"][0]["logprobs"]
    assert expected is not None
    assert are_close(values(choice)[2:], expected["token_logprobs"][1:])


def test_prompt_of_many_steps_is_scored_like_one_of_few(tiny: Path, engine: LlamaEngine) -> None:
    """However few logits a step has room for."""
    with running(tiny, num_slots=1) as narrow:
        narrow._scheduler._max_scored_tokens = 5
        (ours,) = score(narrow, TEXTS[1])
        num_steps = narrow.num_steps

    (theirs,) = score(engine, TEXTS[1])
    assert num_steps > ours.usage.prompt_tokens / 7
    assert are_close(values(ours), values(theirs))


def test_common_beginning_is_scored_once(engine: LlamaEngine) -> None:
    """As the answers to a multiple choice after one long context."""
    context = "Which of these is a colour? " * 8
    answers = [context + answer for answer in ("red", "a house", "hello", "redder", "")]

    apart = [score(engine, "something else " * n, answer)[1] for n, answer in enumerate(answers, start=9)]
    together = score(engine, *answers)

    num_prompt = min(choice.usage.prompt_tokens for choice in together)
    assert sorted(choice.usage.cached_tokens >= num_prompt - 8 for choice in together)[1:] == [True] * 4
    for one, other in zip(together, apart, strict=True):
        assert are_close(values(one), values(other))


def test_cells_without_scores_are_computed_again_for_them(engine: LlamaEngine) -> None:
    prompt = "Not scored at first, " * 10
    plain = score(engine, prompt, params=SamplingParams(max_tokens=1, temperature=0), is_scored=False)[0]
    again = score(engine, prompt)[0]
    then = score(engine, prompt, params=replace(SCORE, max_tokens=2, logprobs=0))[0]

    assert plain.logprobs is None
    assert again.usage.cached_tokens == 0
    assert then.usage.cached_tokens > again.usage.prompt_tokens - 4
    assert are_close(values(again), values(then)[:-1])


# -- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_token_ids", [False, True])
def test_offsets_lead_into_the_text(engine: LlamaEngine, is_token_ids: bool) -> None:
    prompts = [json.dumps(engine._vocabulary.tokenize(text).tolist()) for text in TEXTS] if is_token_ids else TEXTS
    params = replace(SCORE, max_tokens=6)
    for choice, text in zip(score(engine, *prompts, params=params, is_token_ids=is_token_ids), TEXTS, strict=True):
        found = logprobs_object(choice.logprobs, is_chat=False)
        assert found is not None
        assert choice.text.startswith(text)
        assert found["text_offset"][0] == 0
        assert len(found["tokens"]) == choice.usage.total_tokens
        for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
            assert token.startswith("bytes:") or choice.text.startswith(token, offset)


@pytest.mark.parametrize("logprobs", [0, 1, 5])
def test_max_tokens_zero_scores_and_generates_nothing(engine: LlamaEngine, logprobs: int) -> None:
    prompt = "b" * CONTEXT
    (choice,) = score(engine, prompt, params=replace(SCORE, max_tokens=0, logprobs=logprobs))

    assert (choice.text, choice.finish_reason) == (prompt, FinishReason.LENGTH)
    assert (choice.usage.prompt_tokens, choice.usage.completion_tokens) == (CONTEXT, 0)
    found = logprobs_object(choice.logprobs, is_chat=False)
    assert found is not None
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    assert {len(top) for top in found["top_logprobs"][1:]} <= {max(1, logprobs), logprobs + 1}


@pytest.mark.parametrize("is_scored", [True, False])
@pytest.mark.parametrize(("prompt", "is_token_ids"), [("hello", False), (json.dumps([70, 71, 72]), True)])
def test_answer_lies_behind_the_echo(engine: LlamaEngine, prompt: str, is_token_ids: bool, is_scored: bool) -> None:
    params = replace(
        SCORE, max_tokens=8, logprobs=0 if is_scored else None, constraint=constraints.choice(["yes", "no"])
    )

    (choice,) = score(engine, prompt, params=params, is_token_ids=is_token_ids, is_scored=is_scored)

    assert choice.text[choice.num_echoed :] in ("yes", "no")
    assert choice.num_echoed >= 3


def test_echo_of_nothing_generated_and_nothing_asked_is_the_prompt(engine: LlamaEngine) -> None:
    before = engine.num_steps
    params = SamplingParams(max_tokens=0)
    (choice,) = score(engine, json.dumps([70, 71, 72]), params=params, is_token_ids=True, is_scored=False)

    assert (choice.text, choice.finish_reason) == (
        engine._vocabulary.detokenize(np.array([70, 71, 72])).decode(),
        "length",
    )
    assert (choice.usage.prompt_tokens, choice.usage.completion_tokens) == (3, 0)
    assert engine.num_steps == before


def test_models_end_is_listed_behind_the_prompt(tmp_path: Path) -> None:
    """So the entries behind the prompt's are as many as were generated, whatever that was."""
    with running(write_tiny_gguf(tmp_path / "ends.gguf", end_bias=60), num_slots=1) as ending:
        (choice,) = score(ending, "hello world")

    assert (choice.text, choice.finish_reason) == ("hello world", FinishReason.STOP)
    assert choice.usage.completion_tokens == 0
    assert choice.logprobs is not None
    assert len(choice.logprobs) == choice.usage.prompt_tokens + 1
    assert choice.logprobs[-1].token == b""
    assert choice.logprobs[-1].top[0][1] == choice.logprobs[-1].logprob


# -- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [3, 270, 2000, 49_152])
def test_reduced_rows_have_the_likeliest_tokens_and_the_next(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(0, 5, (6, vocab_size)).astype(np.float32)
    logits[5] = 0.0  # all alike
    rows, next_tokens = np.array([5, 1, 3]), rng.integers(0, vocab_size, 3).astype(np.int32)
    table = ScoreTable(num_slots=2, cells=8)

    table.put(logits, rows, slots=np.array([1, 0, 1]), positions=np.array([2, 0, 7]), next_tokens=next_tokens)

    for row, slot, position, token in zip(rows, (1, 0, 1), (2, 0, 7), next_tokens, strict=True):
        exact = logits[row].astype(np.float64)
        exact -= np.log(np.exp(exact).sum())
        count = min(NUM_TOP, vocab_size)
        top = table.top_tokens[slot, position]
        assert math.isclose(table.logprobs[slot, position], exact[token], abs_tol=1e-5)
        assert np.allclose(table.top_logprobs[slot, position, :count], np.sort(exact)[::-1][:count], atol=1e-5)
        assert np.allclose(exact[top[:count]], table.top_logprobs[slot, position, :count], atol=1e-5)
        assert (top[count:] == -1).all()


def test_slots_whose_logits_are_no_numbers_are_told() -> None:
    logits = np.zeros((1, 300), np.float32)
    logits[0, 7] = np.nan
    one = np.zeros(1, np.int32)
    table = ScoreTable(num_slots=1, cells=1)
    assert table.put(logits, np.zeros(1, np.intp), slots=one, positions=one, next_tokens=one) == {0}


def test_logits_of_a_step_take_bounded_memory_whatever_the_vocabulary() -> None:
    for vocab_size in (100, 32_000, 262_144, 10_000_000):
        assert 1 <= max_scored_tokens(vocab_size) <= 128
        assert max_scored_tokens(vocab_size) * vocab_size * 4 <= 64 << 20
