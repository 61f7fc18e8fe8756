"""Schemas as Arrow types, and texts as values of them: what conforms comes back, whatever else is null."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.arrow.json_schema import IS_JSON_TEXT, MAX_FIELDS, PROPERTY, typed_column
from batcher.arrow.json_texts import JsonColumn

NULL = {"type": "null"}
TEXT = {"type": "string"}
WHOLE = {"type": "integer"}
NUMBER = {"type": "number"}


def type_of(schema: Any) -> pa.DataType:
    found: pa.DataType = typed_column("output", schema).field.type
    return found


def parts_of(schema: Any) -> list[str]:
    return [part.partition(":")[0] for part in typed_column("output", schema).json_parts]


def values_of(schema: Any, *texts: str | None) -> list[Any]:
    found: list[Any] = JsonColumn(typed_column("output", schema).field).read(texts).to_pylist()
    return found


def object_of(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (TEXT, pa.string()),
        (WHOLE, pa.int64()),
        ({"type": "integer", "minimum": 0, "maximum": 9}, pa.int64()),
        (NUMBER, pa.float64()),
        ({"type": "boolean"}, pa.bool_()),
        ({"type": "string", "format": "date"}, pa.date32()),
        ({"type": "string", "format": "date-time"}, pa.timestamp("us", tz="UTC")),
        # A time has an offset, which no Arrow type of times holds.
        ({"type": "string", "format": "time"}, pa.string()),
        ({"type": "string", "format": "uuid"}, pa.string()),
        ({"enum": ["a", "b"]}, pa.string()),
        ({"enum": [1, 2]}, pa.int64()),
        ({"enum": [1, 2.5]}, pa.float64()),
        ({"enum": ["a", None]}, pa.string()),
        ({"const": True}, pa.bool_()),
        ({"type": "string", "enum": ["a", 3]}, pa.string()),
        ({"type": ["string", "null"]}, pa.string()),
        ({"type": ["integer", "number"]}, pa.float64()),
        ({"anyOf": [WHOLE, NULL]}, pa.int64()),
        ({"anyOf": [WHOLE, NUMBER]}, pa.float64()),
        ({"oneOf": [{"const": "a"}, {"const": "b"}, TEXT]}, pa.string()),
        ({"anyOf": [{"type": "string", "format": "date"}, TEXT]}, pa.string()),
        ({"type": "array", "items": WHOLE}, pa.list_(WHOLE and pa.int64())),
        ({"type": "array", "prefixItems": [WHOLE, NUMBER], "items": False}, pa.list_(pa.float64())),
        ({"type": "array", "items": [WHOLE, WHOLE], "additionalItems": False}, pa.list_(pa.int64())),
        ({"allOf": [WHOLE, {"minimum": 3}]}, pa.int64()),
        ({"allOf": [NUMBER, WHOLE]}, pa.int64()),
        ({"allOf": [{"enum": ["a", 1]}, {"enum": [1, 2]}]}, pa.int64()),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": WHOLE}}, pa.int64()),
        ({"$ref": "#/definitions/0", "definitions": [NUMBER]}, pa.float64()),
        (object_of(a=WHOLE, b=TEXT), pa.struct({"a": pa.int64(), "b": pa.string()})),
        ({**object_of(a=WHOLE), "anyOf": [{"required": ["a"]}, {"not": {}}]}, pa.struct({"a": pa.int64()})),
        (
            {"allOf": [object_of(a=WHOLE), {"properties": {"a": {"minimum": 1}, "b": TEXT}}]},
            pa.struct({"a": pa.int64(), "b": pa.string()}),
        ),
        # Properties that the schema allows by saying nothing are left to `text`.
        ({"type": "object", "properties": {"a": WHOLE, "never": False}}, pa.struct({"a": pa.int64()})),
    ],
)
def test_schemas_have_the_arrow_types_of_their_values(schema: Any, expected: pa.DataType) -> None:
    column = typed_column("output", schema)

    assert _without_marks(column.field.type) == _without_marks(expected)
    assert column.field.nullable
    assert not column.json_parts


@pytest.mark.parametrize(
    ("schema", "parts"),
    [
        ({}, ["output"]),
        (True, ["output"]),
        (False, ["output"]),
        (NULL, ["output"]),
        ({"type": ["integer", "string"]}, ["output"]),
        ({"anyOf": [object_of(a=TEXT), object_of(b=TEXT)]}, ["output"]),
        ({"enum": [2**63]}, ["output"]),
        ({"type": "object"}, ["output"]),
        (object_of(), ["output"]),
        ({"type": "object", "additionalProperties": WHOLE}, ["output"]),
        ({"type": "object", "patternProperties": {"x": WHOLE}}, ["output"]),
        (object_of(a=TEXT, b={"type": "object"}), ["output.b"]),
        (object_of("x", a=TEXT), ["output.x"]),
        ({"type": "array"}, ["output[]"]),
        ({"type": "array", "prefixItems": [WHOLE, TEXT], "items": False}, ["output[]"]),
        ({"$ref": "#/$defs/gone"}, ["output"]),
        ({"$ref": "https://example.com/schema"}, ["output"]),
        ({"$ref": "#"}, ["output"]),
        (object_of(kids={"type": "array", "items": {"$ref": "#"}}), ["output.kids[].kids[]"]),
        # Nothing of a part is said where the whole of it is JSON text.
        (object_of(a={"anyOf": [object_of(b={}), TEXT]}), ["output.a"]),
    ],
)
def test_parts_without_an_arrow_type_are_json_text_and_named(schema: Any, parts: list[str]) -> None:
    assert parts_of(schema) == parts


def test_names_of_properties_differ_by_more_than_case() -> None:
    schema = object_of(a=WHOLE, A=WHOLE, a_2=WHOLE)

    assert type_of(schema).names == ["a", "A_3", "a_2"]
    assert values_of(schema, '{"a": 1, "A": 2, "a_2": 3}') == [{"a": 1, "A_3": 2, "a_2": 3}]


def test_what_is_required_cannot_be_null() -> None:
    schema = object_of("a", "b", a=WHOLE, b={"type": ["integer", "null"]}, c=WHOLE)

    assert [field.nullable for field in type_of(schema)] == [False, True, True]
    assert values_of(schema, '{"a": 1}', '{"b": 1}', '{"a": null}') == [{"a": 1, "b": None, "c": None}, None, None]


@pytest.mark.parametrize(
    "schema",
    [
        # 2 to the 40th fields.
        {"$ref": "#/$defs/0", "$defs": {str(n): object_of(a=_ref, b=_ref) for n in range(40) for _ref in [
            {"$ref": f"#/$defs/{n + 1}"}]} | {"40": TEXT}},
        # As many alternatives.
        {"allOf": [{"anyOf": [{"minimum": n}, {"maximum": n}]} for n in range(40)]},
        {"type": "object", "properties": {f"p{n}": TEXT for n in range(MAX_FIELDS)}},
    ],
)  # fmt: skip
def test_schemas_that_explode_are_json_text(schema: Any) -> None:
    column = typed_column("output", schema)

    assert column.field.type == pa.string()
    assert len(column.json_parts) == 1


def test_deep_schemas_are_json_text_where_they_are_too_deep() -> None:
    schema: dict[str, Any] = TEXT
    for _ in range(200):
        schema = object_of(a=schema)

    [part] = typed_column("output", schema).json_parts
    assert "levels deep" in part
    [value] = values_of(schema, '{"a": ' * 5 + "{}" + "}" * 5)
    assert value is not None


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (WHOLE, str(2**63)),
        (WHOLE, "1e19"),
        (WHOLE, "1.5"),
        (WHOLE, "true"),
        (WHOLE, '"1"'),
        (WHOLE, "9" * 5000),
        (NUMBER, "1e999"),
        (NUMBER, "NaN"),
        (NUMBER, "1" * 400),
        (TEXT, '"\\ud800"'),
        (TEXT, '"a'),
        (TEXT, '"a" "b"'),
        (TEXT, ""),
        (TEXT, "a"),
        ({}, "Infinity"),
        ({}, "[1e999]"),
        ({}, "[" * 500 + "]" * 500),
        ({"type": "string", "format": "date"}, '"2023-02-29"'),
        ({"type": "string", "format": "date"}, '"0000-01-01"'),
        ({"type": "string", "format": "date-time"}, '"2023-01-01T00:00:00"'),
        ({"type": "string", "format": "date-time"}, '"0001-01-01T00:00:00+10:00"'),
        ({"type": "string", "format": "date-time"}, '"9999-12-31T23:00:00-10:00"'),
        ({"type": "string", "format": "date-time"}, '"9999-12-31T23:59:60Z"'),
        ({"type": "string", "format": "date-time"}, '"2016-12-31T23:59:61Z"'),
        ({"type": "string", "format": "date-time"}, '"2016-12-31T23:59:60"'),
        ({"type": "string", "format": "date-time"}, "1"),
        (object_of(a=WHOLE), "[]"),
        (object_of(a=WHOLE), '{"a": "x"}'),
    ],
)
def test_texts_that_do_not_fit_are_null(schema: Any, text: str) -> None:
    assert values_of(schema, text, None) == [None, None]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        (WHOLE, " 1.0\n", 1),
        (WHOLE, "-1e3", -1000),
        (WHOLE, str(2**63 - 1), 2**63 - 1),
        (NUMBER, "3", 3.0),
        (TEXT, '"\\ud83d\\ude00\\u0000"', "\N{GRINNING FACE}\0"),
        (object_of(a=WHOLE), '{"a": 1, "a": 2}', {"a": 2}),
        ({"type": "object", "properties": {"a": WHOLE}}, '{"a": 1, "more": [1]}', {"a": 1}),
        ({}, '{"é": [1, 2.5, null]}', '{"é": [1, 2.5, null]}'),
        ({"type": ["string", "integer"]}, '"1"', '"1"'),
        ({"type": "string", "format": "date"}, '"2024-02-29"', date(2024, 2, 29)),
        # Leap seconds, as RFC 3339 has them.
        ({"type": "string", "format": "date-time"}, '"2016-12-31T23:59:60Z"', datetime(2017, 1, 1, tzinfo=UTC)),
        (
            {"type": "string", "format": "date-time"},
            '"2016-12-31t10:14:60.25-10:14"',
            datetime(2016, 12, 31, 20, 29, 0, 250_000, UTC),
        ),
        (
            {"type": "string", "format": "date-time"},
            '"2024-02-29T01:02:03.0456789+02:00"',
            datetime(2024, 2, 28, 23, 2, 3, 45678, UTC),
        ),
    ],
)
def test_texts_have_the_values_of_their_types(schema: Any, text: str, value: Any) -> None:
    assert values_of(schema, text) == [value]


@dataclass(frozen=True)
class Sample:
    """A schema and values that conform to it."""

    schema: dict[str, Any]
    values: st.SearchStrategy[Any]


def _texts() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def _scalars() -> st.SearchStrategy[Sample]:
    doubles = st.floats(allow_nan=False, allow_infinity=False)
    whole = st.integers(-(2**63), 2**63 - 1)
    enums = st.lists(st.one_of(_texts(), whole, st.booleans(), st.none()), min_size=1, max_size=4)
    return st.one_of(
        st.just(Sample(TEXT, _texts())),
        st.just(Sample(WHOLE, whole)),
        st.just(Sample(NUMBER, doubles)),
        st.just(Sample({"type": "boolean"}, st.booleans())),
        st.just(Sample({"type": "string", "format": "date"}, st.dates().map(str))),
        st.just(
            Sample(
                {"type": "string", "format": "date-time"}, st.datetimes().map(lambda one: one.isoformat() + "+00:00")
            )
        ),
        st.just(Sample({}, st.one_of(_texts(), whole, st.lists(st.booleans())))),
        enums.map(lambda values: Sample({"enum": values}, st.sampled_from(values))),
    )


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[Sample]) -> Sample:
    properties = draw(st.dictionaries(_texts(), inner, max_size=4))
    required = draw(st.sets(st.sampled_from(sorted(properties)))) if properties else set()
    schema = {"type": "object", "properties": {name: each.schema for name, each in properties.items()}}
    optional = {name: each.values for name, each in properties.items() if name not in required}
    return Sample(
        {**schema, "required": sorted(required)},
        st.fixed_dictionaries({name: properties[name].values for name in required}, optional=optional),
    )


def _containers(inner: st.SearchStrategy[Sample]) -> st.SearchStrategy[Sample]:
    combine: Callable[[Sample, Sample], Sample] = lambda one, other: Sample(  # noqa: E731
        {"anyOf": [one.schema, other.schema]}, one.values | other.values
    )
    return st.one_of(
        inner.map(lambda one: Sample({"type": "array", "items": one.schema}, st.lists(one.values, max_size=3))),
        inner.map(lambda one: Sample({"anyOf": [one.schema, NULL]}, one.values | st.none())),
        inner.map(lambda one: Sample({"allOf": [one.schema, {"title": "same"}]}, one.values)),
        st.builds(combine, inner, inner),
        _objects(inner),
    )


@given(st.data(), st.recursive(_scalars(), _containers, max_leaves=8))
def test_whatever_conforms_to_a_schema_comes_back(data: st.DataObject, sample: Sample) -> None:
    """Given any schema and values that conform, when they are read as a column, then it holds the same values."""
    values = data.draw(st.lists(sample.values, max_size=4))
    field = typed_column("output", sample.schema).field

    found = JsonColumn(field).read(json.dumps(value) for value in values)

    found.validate(full=True)
    assert [_back(one, field) for one in found.to_pylist()] == [_plain(value) for value in values]


@given(st.recursive(_scalars(), _containers, max_leaves=4), st.lists(st.text()))
def test_no_text_breaks_a_column(sample: Sample, texts: list[str]) -> None:
    assert len(JsonColumn(typed_column("output", sample.schema).field).read(texts)) == len(texts)


_KEYWORDS = (
    *("type", "enum", "const", "format", "properties", "required", "items", "prefixItems", "maxItems"),
    *("anyOf", "allOf", "oneOf", "$ref"),
)
_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["object", "#"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_KEYWORDS) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_ANY_JSON)
def test_whatever_is_taken_for_a_schema_has_a_type(schema: Any) -> None:
    """What is no schema is refused where it is compiled; here nothing of it may be a crash."""
    JsonColumn(typed_column("output", schema).field)


def _plain(value: Any) -> Any:
    """A JSON value without the properties that are null, which a struct can't tell from missing ones."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value == math.trunc(value):
        return int(value)
    return value


def _back(value: Any, field: pa.Field) -> Any:
    """The JSON value that a value of a column was read from."""
    if value is None:
        return None
    if IS_JSON_TEXT in (field.metadata or {}):
        return _plain(json.loads(value))
    if pa.types.is_struct(field.type):
        names = {each.name: (each.metadata or {}).get(PROPERTY, each.name.encode()).decode() for each in field.type}
        fields = {each.name: each for each in field.type}
        found = {names[name]: _back(each, fields[name]) for name, each in value.items()}
        return {name: each for name, each in found.items() if each is not None}
    if pa.types.is_list(field.type):
        return [_back(each, field.type.value_field) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, date) else _plain(value)


def _without_marks(found: pa.DataType) -> str:
    """A type without whether its fields can be null."""
    return str(found).replace(" not null", "").replace("item:", "element:")
