"""Completions that are held to a constraint, on the tiny model, whose own texts are random."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from batcher import constraints
from batcher.types import Choice, Constraint, ErrorCode, FinishReason, RowError, SamplingParams
from tests.support.tiny_engine import complete, running
from workers.engines.base import SequenceRequest
from workers.engines.llama.engine import LlamaEngine

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 30}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}
OF_SCHEMA = constraints.json_schema(SCHEMA)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[LlamaEngine]:
    with running(model) as engine:
        yield engine


def requests(constraint: Constraint, number: int = 16, **params: Any) -> list[SequenceRequest]:
    return [
        SequenceRequest((row, 0), "hello", SamplingParams(max_tokens=64, constraint=constraint, **params), seed=row)
        for row in range(number)
    ]


def choices(engine: LlamaEngine, constraint: Constraint, **params: Any) -> list[Choice]:
    found = [result.choice for result in complete(engine, requests(constraint, **params))]
    return [choice for choice in found if choice is not None]


def error(engine: LlamaEngine, constraint: Constraint) -> RowError:
    [result] = complete(engine, requests(constraint, 1))
    assert result.error is not None
    return result.error


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_text_keeps_to_the_schema(engine: LlamaEngine, temperature: float) -> None:
    found = choices(engine, OF_SCHEMA, temperature=temperature)

    assert len(found) == 16
    for choice in found:
        jsonschema.validate(json.loads(choice.text), SCHEMA)
        assert choice.finish_reason is FinishReason.STOP
    assert len({choice.text for choice in found}) == 1 if not temperature else True


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (constraints.choice(["yes", "no", 'say "é"\n']), 'yes|no|say "é"\n'),
        (constraints.regex("[a-c]{3}-[0-9]{2}"), "[a-c]{3}-[0-9]{2}"),
        (constraints.grammar('start: "a"+ "." '), "a+[.]"),
        (constraints.grammar('root ::= "x" [0-9] [0-9]? "y"'), "x[0-9]{1,2}y"),
    ],
)
def test_every_text_is_one_that_the_constraint_allows(
    engine: LlamaEngine, constraint: Constraint, pattern: str
) -> None:
    for choice in choices(engine, constraint):
        if choice.finish_reason is FinishReason.STOP:
            assert re.fullmatch(pattern, choice.text), choice.text


def test_any_object_begins_like_one_and_is_one_if_it_ends(engine: LlamaEngine) -> None:
    for choice in choices(engine, constraints.JSON_OBJECT):
        assert choice.text.startswith("{")
        if choice.finish_reason is FinishReason.STOP:
            assert isinstance(json.loads(choice.text), dict)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (constraints.json_schema({"type": "objekt"}), "json_schema: Invalid type: objekt"),
        (constraints.regex("(a"), "regex: "),
        (constraints.grammar("root ::= nothing"), "gbnf: "),
        (constraints.grammar("start: nothing"), "lark: "),
    ],
)
def test_constraint_that_cannot_be_compiled_is_the_requests_fault(
    engine: LlamaEngine, constraint: Constraint, message: str
) -> None:
    found = error(engine, constraint)

    assert found.code is ErrorCode.INVALID_REQUEST
    assert found.message.startswith(message)
