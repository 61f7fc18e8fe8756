"""JSON schemas over all keywords: texts of the tiny model, whose own are random, keep to them, or they are refused."""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLTokenizer

from batcher import constraints
from batcher.types import ErrorCode, FinishReason, SamplingParams
from tests.support.schemas import NAMING, NUM_SCHEMAS, OPEN, REFUSED, SCHEMAS, Schema
from tests.support.tiny_engine import complete, running
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.grammars import Matching, _compile

VALIDATOR = jsonschema.Draft202012Validator
NUM_TEXTS = 12
PAGE = Path(__file__).parents[3] / "docs" / "structured.md"


@pytest.fixture(scope="module")
def engine(tiny: Path) -> Iterator[LlamaEngine]:
    with running(tiny, num_slots=NUM_TEXTS) as engine:
        yield engine


def answers(engine: LlamaEngine, schema: Schema, *, num_texts: int = NUM_TEXTS) -> list[SequenceResult]:
    """Texts of a random model would not end: what ends strings, numbers and objects is made likelier."""
    vocabulary = engine._vocabulary
    marks = [int(vocabulary.tokenize(mark, adds_bos=False)[-1]) for mark in '"}],@:/n']
    ends = tuple((token, 6.0) for token in [*marks, *np.flatnonzero(vocabulary.is_end).tolist()])
    params = SamplingParams(max_tokens=300, constraint=constraints.json_schema(schema), logit_bias=ends)
    return complete(engine, [SequenceRequest((n, 0), "hello", params, seed=n) for n in range(num_texts)])


@pytest.mark.parametrize(
    "schema", [schema for schemas in SCHEMAS.values() for schema in schemas], ids=lambda schema: json.dumps(schema)[:70]
)
def test_texts_keep_to_the_schema(engine: LlamaEngine, schema: Schema) -> None:
    found = [result.choice for result in answers(engine, schema)]
    ended = [choice.text for choice in found if choice is not None and choice.finish_reason is FinishReason.STOP]

    assert None not in found
    assert ended, "no text came to its end"
    validator = VALIDATOR(schema, format_checker=VALIDATOR.FORMAT_CHECKER)
    for text in ended:
        assert list(validator.iter_errors(json.loads(text))) == []


def is_allowed(schema: Schema, text: str) -> bool:
    """Whether a text keeps to a schema as it is compiled."""
    matching = Matching(_compile(constraints.json_schema(schema), LLTokenizer("byte")))
    return all(matching.matcher.try_consume_tokens([byte]) for byte in text.encode()[len(matching.forced) :]) and bool(
        matching.matcher.is_accepting()
    )


@pytest.mark.parametrize(("schema", "text"), NAMING, ids=lambda value: str(value)[:90])
def test_object_has_no_properties_that_its_schema_does_not_name(schema: Schema, text: str) -> None:
    more = text.replace("}", ', "z": null}', 1) if "null" in text else '{"z": null}'

    assert VALIDATOR(schema).is_valid(json.loads(more))
    assert is_allowed(schema, text)
    assert not is_allowed(schema, more)


@pytest.mark.parametrize(
    ("kind", "text", "is_taken"),
    [
        ("date-time", "2024-02-29T10:11:12Z", True),
        ("date-time", "2024-02-29T10:11:12.123456789+01:30", True),
        ("date-time", "2024-02-29T10:11:12.1234567891Z", False),
        ("date-time", "2023-02-29T10:11:12Z", False),
        ("date", "2024-02-29", True),
        ("time", "10:11:12Z", True),
        ("time", "10:11:12.5-02:00", True),
        ("time", "10:11:12.1234567891Z", False),
        ("duration", "P1Y2M3DT4H5M6S", True),
        ("duration", "P999999999D", True),
        ("duration", "P9999999999D", False),
    ],
)
def test_dates_are_real_and_times_come_to_an_end(kind: str, text: str, is_taken: bool) -> None:
    assert is_allowed({"type": "string", "format": kind}, json.dumps(text)) is is_taken


@pytest.mark.parametrize(("schema", "text"), OPEN, ids=lambda value: str(value)[:90])
def test_object_has_others_where_its_schema_says_so_or_needs_them(schema: Schema, text: str) -> None:
    assert VALIDATOR(schema).is_valid(json.loads(text))
    assert is_allowed(schema, text)


@pytest.mark.parametrize(
    ("schema", "word"),
    [pair for pairs in REFUSED.values() for pair in pairs],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:50],
)
def test_schema_that_texts_cannot_be_held_to_is_refused_by_its_reason(
    engine: LlamaEngine, schema: dict[str, Any], word: str
) -> None:
    [result] = answers(engine, schema, num_texts=1)

    assert result.error is not None
    assert result.error.code is ErrorCode.INVALID_REQUEST
    assert result.error.message.startswith("the json_schema can't be compiled: ")
    assert word in result.error.message


def test_page_says_of_each_keyword_what_these_tests_say() -> None:
    rows = [line.split("|")[1:3] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    said = {name.strip(" `"): answer.strip() for names, answer in rows for name in names.split(",")}

    def answer(keyword: str) -> str:
        return "in part" if keyword in SCHEMAS and keyword in REFUSED else "yes" if keyword in SCHEMAS else "no"

    shown = {*SCHEMAS, *REFUSED} - {"title", "true", "required", "type"}
    assert {keyword: said.get(keyword) for keyword in shown} == {keyword: answer(keyword) for keyword in shown}
    assert NUM_SCHEMAS >= 100


def test_dates_are_those_of_the_calendar(engine: LlamaEngine) -> None:
    def takes(text: str) -> bool:
        """Whether a schema lets a text be, among others that it does not let be."""
        schema = {"type": "string", "format": "date", "enum": [text, "no date"]}
        [result] = answers(engine, schema, num_texts=1)
        return result.choice is not None and result.choice.text == json.dumps(text)

    for text in ("2024-02-29", "2000-02-29", "2023-02-28", "0001-01-01", "9999-12-31", "2023-11-30"):
        assert date.fromisoformat(text)
        assert takes(text)
    for text in ("0000-01-01", "2023-02-29", "1900-02-29", "2023-02-30", "2023-04-31", "2023-13-01"):
        assert not takes(text)
