"""What the parameters beyond the documented ones do to a completion, on the tiny model."""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from batcher.types import Choice, ErrorCode, RowError, SamplingParams
from tests.support.tiny_engine import complete, running
from tests.support.tiny_gguf import write_tiny_gguf
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine

GREEDY = SamplingParams(max_tokens=24, temperature=0, seed=0)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[LlamaEngine]:
    with running(model) as engine:
        yield engine


def one(engine: LlamaEngine, prompt: str, params: SamplingParams, *, is_chat: bool = False) -> SequenceResult:
    (result,) = complete(engine, [SequenceRequest((0, 0), prompt, params, is_chat=is_chat)])
    return result


def choice(engine: LlamaEngine, prompt: str, params: SamplingParams, *, is_chat: bool = False) -> Choice:
    found = one(engine, prompt, params, is_chat=is_chat).choice
    assert found is not None
    return found


def error(engine: LlamaEngine, prompt: str, params: SamplingParams, *, is_chat: bool = False) -> RowError:
    found = one(engine, prompt, params, is_chat=is_chat).error
    assert found is not None
    return found


def test_bias_forces_and_forbids_tokens(engine: LlamaEngine) -> None:
    free = choice(engine, "hello", GREEDY)
    letter = engine._vocabulary.tokenize("Q").tolist()[0]

    forced = choice(engine, "hello", replace(GREEDY, logit_bias=((letter, 100.0),)))
    first = engine._vocabulary.tokenize(free.text).tolist()[0]
    forbidden = choice(engine, "hello", replace(GREEDY, logit_bias=((first, -100.0),)))

    assert forced.text == "Q" * 24
    assert forbidden.text[0] != free.text[0]


def test_bias_outside_the_vocabulary_is_refused_by_its_number(engine: LlamaEngine) -> None:
    found = error(engine, "hello", replace(GREEDY, logit_bias=((70_000, 1.0),)))

    assert found.code is ErrorCode.INVALID_REQUEST
    assert "70000" in found.message


def test_penalties_follow_the_documented_formula(engine: LlamaEngine, model: Path) -> None:
    """Step by step against llama.cpp's own logits, with the formula applied here."""
    params = replace(GREEDY, presence_penalty=1.5, frequency_penalty=0.75, max_tokens=16)
    reference = llama_cpp.Llama(str(model), n_ctx=512, n_threads=1, flash_attn=True, verbose=False)
    vocabulary = engine._vocabulary
    tokens = vocabulary.tokenize("hello hello hello").tolist()
    counts: Counter[int] = Counter()
    for _ in range(16):
        reference.reset()  # type: ignore[no-untyped-call]
        reference.eval(tokens)
        raw = llama_cpp.llama_get_logits_ith(reference.ctx, -1)
        logits = np.ctypeslib.as_array(raw, (reference.n_vocab(),)).astype(np.float64)
        for token, count in counts.items():
            logits[token] -= 1.5 + 0.75 * count
        best = int(logits.argmax())
        counts[best] += 1
        tokens.append(best)
    reference.close()

    expected = b"".join(vocabulary.piece(token) for token in tokens[-16:]).decode("utf-8", "replace")
    assert choice(engine, "hello hello hello", params).text == expected


def test_logprobs_are_those_of_the_models_softmax(engine: LlamaEngine, model: Path) -> None:
    found = choice(engine, "hello world", replace(GREEDY, logprobs=5, max_tokens=8))
    reference = llama_cpp.Llama(str(model), n_ctx=512, n_threads=1, flash_attn=True, logits_all=True, verbose=False)
    theirs = reference.create_completion("hello world", max_tokens=8, temperature=0, logprobs=5)
    reference.close()

    assert isinstance(theirs, dict)
    expected = theirs["choices"][0]["logprobs"]
    assert expected is not None
    assert found.logprobs is not None
    assert len(found.logprobs) == found.usage.completion_tokens == 8
    for ours, value in zip(found.logprobs, expected["token_logprobs"], strict=True):
        assert value is not None
        assert ours.logprob is not None
        assert math.isclose(ours.logprob, value, abs_tol=0.02)
        assert ours.top[0] == (ours.token, ours.logprob), "greedy takes the likeliest"
        assert [p for _, p in ours.top] == sorted((p for _, p in ours.top), reverse=True)
        assert len(ours.top) == 5
    assert b"".join(token.token for token in found.logprobs).decode("utf-8", "replace") == found.text


def test_logprobs_end_with_the_text_at_a_stop_string(engine: LlamaEngine) -> None:
    free = choice(engine, "hello world", replace(GREEDY, logprobs=0))
    stop = free.text[5:8]

    stopped = choice(engine, "hello world", replace(GREEDY, logprobs=0, stop=(stop,)))

    assert stopped.logprobs is not None
    text = b"".join(token.token for token in stopped.logprobs).decode()
    assert text.startswith(stopped.text)
    assert len(text) - len(stopped.text) < len(stop)


def test_chat_is_written_by_the_models_template(engine: LlamaEngine) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    prompt = "[system] Be brief.<|endoftext|>\n[user] hello<|endoftext|>\n[assistant] "

    chat, text = choice(engine, json.dumps(messages), GREEDY, is_chat=True), choice(engine, prompt, GREEDY)

    assert (chat.text, chat.usage.prompt_tokens) == (text.text, text.usage.prompt_tokens)


def test_messages_that_the_template_refuses_are_the_requests_fault(engine: LlamaEngine) -> None:
    found = error(engine, json.dumps([{"role": "tool", "content": "x"}]), GREEDY, is_chat=True)

    assert found.code is ErrorCode.INVALID_REQUEST
    assert "no tools here" in found.message


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "no chat template"),
        ("{% for %}", "can't be read"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ raise_exception.__globals__['json'] }}", "unsafe"),
        ("{% for _ in range(10 ** 9) %}x{% endfor %}", "Range too big"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
    ],
)
def test_template_that_is_missing_broken_or_hostile_fails_only_chats(
    tmp_path: Path, template: str | None, why: str
) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf", chat_template=template)
    with running(path, num_slots=2, context_length=256) as engine:
        found = error(engine, json.dumps([{"role": "user", "content": "x"}]), GREEDY, is_chat=True)
        assert choice(engine, "hello", GREEDY).usage.completion_tokens > 0

    assert found.code is ErrorCode.INVALID_REQUEST
    assert any(each in found.message for each in why.split("|")), found.message


def test_suffix_is_written_with_the_models_marks(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "fim.gguf", can_fill_in=True)
    with running(path, num_slots=2, context_length=256) as engine:
        filled = choice(engine, "def f(", replace(GREEDY, suffix="): pass"))
        by_hand = choice(engine, "<fim_prefix>def f(<fim_suffix>): pass<fim_middle>", GREEDY)

    assert (filled.text, filled.usage.prompt_tokens) == (by_hand.text, by_hand.usage.prompt_tokens)


def test_suffix_for_a_model_that_cannot_fill_in_is_refused(engine: LlamaEngine) -> None:
    found = error(engine, "def f(", replace(GREEDY, suffix="): pass"))

    assert found.code is ErrorCode.INVALID_REQUEST
    assert "suffix" in found.message
