"""Numbers of JSON, which come to an end whatever the model would write."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher import constraints
from batcher.types import Constraint, FinishReason, SamplingParams
from tests.support.tiny_engine import complete, running
from workers.engines.base import SequenceRequest
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.numbers import LeadingDigits, NumberBound

NUMBER = r"-?[0-9]{1,18}(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,3})?"
PIECES = [b"", b"1", b"12", b"1234567890", b" 1", b".", b".5", b"e", b"1e", b"-", b'"', b"\\", b",", b"0, 1", b"true"]


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[LlamaEngine]:
    with running(model, num_slots=8) as engine:
        yield engine


def digits(engine: LlamaEngine, constraint: Constraint, **params: Any) -> list[str]:
    """Texts of a model that writes digits wherever it can."""
    vocabulary = engine._vocabulary
    likely = [int(vocabulary.tokenize(digit, adds_bos=False)[-1]) for digit in "0123456789."]
    asked = SamplingParams(max_tokens=200, constraint=constraint, logit_bias=tuple((t, 50.0) for t in likely), **params)
    found = complete(engine, [SequenceRequest((n, 0), "hello", asked, seed=n) for n in range(8)])
    assert {(each.error, each.choice and each.choice.finish_reason) for each in found} == {(None, FinishReason.STOP)}
    return [each.choice.text for each in found if each.choice is not None]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number"},
        {"type": "integer"},
        {"type": "number", "minimum": 0},
        {"anyOf": [{"type": "number"}, {"type": "boolean"}]},
        {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3},
        {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "integer"}}, "required": ["a", "b"]},
    ],
    ids=str,
)
def test_numbers_end_and_have_a_place_in_their_types(engine: LlamaEngine, schema: dict[str, Any]) -> None:
    for text in digits(engine, constraints.json_schema(schema)):
        numbers = re.findall(r"[-+.0-9eE]*[0-9][-+.0-9eE]*", text)
        assert numbers
        for number in numbers:
            assert re.fullmatch(NUMBER, number), text
            assert abs(int(re.split("[.eE]", number)[0])) < 2**63
        assert max(map(len, numbers)) > 15
        json.loads(text)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (constraints.regex("[0-9]{40}"), "[0-9]{40}"),
        (constraints.json_schema({"type": "string", "pattern": "^[0-9]{40}$"}), '"[0-9]{40}"'),
    ],
    ids=str,
)
def test_digits_that_are_no_number_are_as_many_as_there_must_be(
    engine: LlamaEngine, constraint: Constraint, pattern: str
) -> None:
    for text in digits(engine, constraint):
        assert re.fullmatch(pattern, text), text


@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_bound_is_the_same_however_a_text_is_cut(pieces: list[bytes]) -> None:
    leading = LeadingDigits(PIECES)
    in_pieces, at_once = NumberBound(leading), NumberBound(leading)
    masks = []

    for piece in pieces:
        in_pieces.follow(piece)
    at_once.follow(b"".join(pieces))
    for bound in (in_pieces, at_once):
        masks.append(np.full(1, 2**32 - 1, np.uint32))
        bound.narrow(masks[-1])

    assert masks[0] == masks[1]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ('{"a": 123456789012345678', 0),
        ('{"a": -12345678901234567', 1),
        ('{"a": 1.', 15),
        ('{"a": 1.123456789012345', 0),
        ('{"a": 1e-30', 1),
        ('{"a": "123456789012345678901234567890', None),
        ('{"a": "x\\"123456789012345678901234567890', None),
        ('{"a": "x\\\\", "b": 1234567890123456', 2),
        ('{"a": 12345678901234567, "b": ', None),
        ("[true", None),
    ],
)
def test_digits_that_may_follow(text: str, left: int | None) -> None:
    bound = NumberBound(LeadingDigits([b"1" * number for number in range(20)]))
    mask = np.full(1, 2**20 - 1, np.uint32)

    bound.follow(text.encode())
    bound.narrow(mask)

    assert mask[0] == (2**20 - 1 if left is None else 2 ** (left + 1) - 1)
