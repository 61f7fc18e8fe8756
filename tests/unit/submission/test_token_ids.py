"""Prompts that are token ids: the same in a body, a batch line, a plain row and a table, and computed as they are."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batcher.openai.bodies import parse_body
from batcher.submission.readers.files import LineBatch, Origin, TableBatch
from batcher.submission.rows import RowParser
from batcher.types import Choice, ErrorCode, Request, SamplingParams
from tests.support.tiny_engine import complete, running
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine

GREEDY = SamplingParams(max_tokens=12, temperature=0)


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[LlamaEngine]:
    with running(tiny, num_slots=4, context_length=256) as engine:
        yield engine


def of_ids(number: int, prompt: str, params: SamplingParams = GREEDY) -> SequenceRequest:
    return SequenceRequest((number, 0), prompt, params, is_token_ids=True)


def choice_of(result: SequenceResult) -> Choice:
    assert result.choice is not None, result.error
    return result.choice


# -- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "prompts", "is_array", "is_token_ids"),
    [
        ("text", ("text",), False, False),
        (["a", "b"], ("a", "b"), True, False),
        ([1, 2, 3], ("[1,2,3]",), False, True),
        ([7], ("[7]",), False, True),
        ([[1, 2], [3]], ("[1,2]", "[3]"), True, True),
        ([[0]], ("[0]",), True, True),
    ],
)
def test_prompt_means_the_same_wherever_it_stands(
    prompt: Any, prompts: tuple[str, ...], is_array: bool, is_token_ids: bool
) -> None:
    # Given the prompt as a live body, a batch line, a plain row and a value of a table
    body = {"model": "m", "prompt": prompt}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
    parser = RowParser(params=SamplingParams(), default_model="m")
    origin = Origin("in", ":", range(1, 3))
    table = TableBatch(origin, pa.table({"custom_id": ["a"], "prompt": [prompt]}))
    lines = LineBatch(origin, [json.dumps(each).encode() for each in (line, {"custom_id": "a", **body})])

    # When
    live = parse_body(json.dumps(body).encode(), is_chat=False, models=("m",), max_prompts=2).request
    rows = [*parser.parse(lines, numbers=count()).rows, *parser.parse(table, numbers=count()).rows]

    # Then
    assert [row.error for row in rows] == [None] * 3
    for request in (live, *(row.request for row in rows)):
        assert (request.prompts, request.is_array, request.is_token_ids) == (prompts, is_array, is_token_ids)


def test_limit_of_prompts_does_not_count_the_ids_of_one() -> None:
    body = json.dumps({"model": "m", "prompt": list(range(50))}).encode()
    assert parse_body(body, is_chat=False, models=("m",), max_prompts=1).request.num_sequences == 1


def test_refused_row_keeps_its_ids() -> None:
    line = {"custom_id": "a", "prompt": [[1, 2], [3]], "max_tokens": -1}
    lines = LineBatch(Origin("in", ":", range(1, 2)), [json.dumps(line).encode()])
    (row,) = RowParser(params=SamplingParams(), default_model="m").parse(lines, numbers=count()).rows
    assert row.error is not None
    assert row.request == Request(0, "a", "m", ("[1,2]", "[3]"), True, SamplingParams(), is_token_ids=True)


# -- what is computed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hello world", "日本語", "x" * 100])
def test_ids_of_a_text_complete_as_the_text_does(engine: LlamaEngine, text: str) -> None:
    ids = json.dumps(engine._vocabulary.tokenize(text).tolist())
    as_text, as_ids = complete(engine, [SequenceRequest((0, 0), text, GREEDY), of_ids(1, ids)])
    assert choice_of(as_ids).text == choice_of(as_text).text
    assert choice_of(as_ids).usage.prompt_tokens == choice_of(as_text).usage.prompt_tokens


def test_ids_that_no_text_has_are_computed_as_they_are(engine: LlamaEngine) -> None:
    """A tokenizer would merge them."""
    pieces = [engine._vocabulary.tokenize(letter).item() for letter in "hello"]
    merged, apart = complete(engine, [SequenceRequest((0, 0), "hello", GREEDY), of_ids(1, json.dumps(pieces))])
    assert choice_of(merged).usage.prompt_tokens == 1
    assert choice_of(apart).usage.prompt_tokens == 5


@pytest.mark.parametrize("beyond", [0, 1, 2**31 - 1])
def test_id_outside_the_vocabulary_is_an_error_of_its_row(engine: LlamaEngine, beyond: int) -> None:
    size = engine._vocabulary.size
    bad = min(size + beyond, 2**31 - 1)
    good, refused = complete(engine, [of_ids(0, f"[{size - 1}]"), of_ids(1, f"[1,{bad},2]")])
    assert choice_of(good).usage.prompt_tokens == 1
    assert refused.error is not None
    assert refused.error.code is ErrorCode.INVALID_REQUEST
    assert f"the token {bad}; the model's go from 0 to {size - 1}" in refused.error.message


def test_ids_over_the_context_are_an_error_of_their_row(engine: LlamaEngine) -> None:
    full, over = complete(engine, [of_ids(0, str([5] * 244)), of_ids(1, str([5] * 245))])
    assert choice_of(full).usage.total_tokens == 256
    assert over.error is not None
    assert over.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
