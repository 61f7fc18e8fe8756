"""Types and names of the carried columns."""

import datetime
import decimal
import json
import uuid
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.arrow.plain import plain_table
from batcher.arrow.values import json_text
from batcher.errors import InputError
from batcher.jobdir.results import RESULT_FIELDS
from batcher.jobdir.shards import conform
from batcher.submission import carried
from batcher.submission.carried import CarriedColumns, CarriedRow, TableRow, infer_array

NESTED = pa.list_(pa.struct([("a", pa.int32())]))


def settle(*shards: Sequence[CarriedRow]) -> pa.Table:
    """What readers of the shards see once the schema is known: all rows in one table."""
    columns = CarriedColumns()
    tables = [(columns.join(rows), len(rows)) for rows in shards]
    return pa.concat_tables([conform(table, columns.schema, num_rows=number) for table, number in tables])


def values_of(*shards: Sequence[Any]) -> tuple[str, list[Any]]:
    table = settle(*[[{"x": value} for value in values] for values in shards])
    return str(table.schema.field("x").type), table["x"].to_pylist()


def table_rows(columns: CarriedColumns, table: pa.Table) -> list[CarriedRow]:
    renamed = columns.rename(plain_table(table))
    return [TableRow(renamed, position) for position in range(table.num_rows)]


@pytest.mark.parametrize(
    ("shards", "type_", "values"),
    [
        ([["a", None], [None], ["b"]], "string", ["a", None, None, "b"]),
        ([[None], [1], [2**62]], "int64", [None, 1, 2**62]),
        ([[1], [2.5]], "double", [1.0, 2.5]),
        ([[1, 2.5]], "double", [1.0, 2.5]),
        ([[1.5], [True]], "string", ["1.5", "true"]),
        ([[True], [1]], "string", ["true", "1"]),
        ([[1], ["a"]], "string", ["1", "a"]),
        ([["a"], [{"k": [1, None]}]], "string", ["a", '{"k": [1, null]}']),
        ([[{"a": 1}], [{"b": "x"}]], "string", ['{"a": 1}', '{"b": "x"}']),
        ([[2**63]], "string", ["9223372036854775808"]),
        ([[1], [2**63]], "string", ["1", "9223372036854775808"]),
        ([[2**53 + 1], [0.5]], "string", ["9007199254740993", "0.5"]),
        ([[2**53 + 1, 0.5]], "string", ["9007199254740993", "0.5"]),
        ([[-(2**63)]], "int64", [-(2**63)]),
        ([[None], [None]], "string", [None, None]),
        ([[["a"], []], [[None]]], "list<item: string>", [["a"], [], [None]]),
        ([[[]], [[1]], [[2.5]]], "list<item: double>", [[], [1.0], [2.5]]),
        ([[[]]], "list<item: string>", [[]]),
        ([[[1]], [["a"]]], "string", ["[1]", '["a"]']),
        ([[[1, "a"]]], "string", ['[1, "a"]']),
        ([[[2**53 + 1]], [[0.5]]], "string", ["[9007199254740993]", "[0.5]"]),
        ([[[[1]]]], "string", ["[[1]]"]),
        ([["é\0"], [None]], "string", ["é\0", None]),
    ],
)
def test_type_holds_every_value_of_the_input(shards: list[list[Any]], type_: str, values: list[Any]) -> None:
    assert values_of(*shards) == (type_, values)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


@given(st.lists(st.lists(json_values, min_size=1, max_size=4), min_size=1, max_size=4))
@settings(deadline=None)
def test_no_value_is_lost_whatever_the_rows_disagree_about(shards: list[list[Any]]) -> None:
    _, found = values_of(*shards)
    given_values = [value for values in shards for value in values]
    assert len(found) == len(given_values)
    for value, seen in zip(given_values, found, strict=True):
        # As it was, as the double that equals it, or as JSON text (of the double, where a shard had widened it).
        texts = {json_text(value)} | (
            {json_text(float(value))} if type(value) is int and abs(value) <= 2**53 else set()
        )
        is_numeric_list = isinstance(value, list) and isinstance(seen, str) and json.loads(seen) == value
        assert seen == value or seen in texts or is_numeric_list


def test_columns_of_later_shards_are_null_before() -> None:
    table = settle([{"a": 1}], [{"b": "x"}], [{}])
    assert table.to_pydict() == {"a": [1, None, None], "b": [None, "x", None]}


def test_rows_without_any_column_are_counted() -> None:
    columns = CarriedColumns()
    assert columns.join([{}, {}]).num_columns == 0
    assert columns.schema.names == []


@pytest.mark.parametrize("name", RESULT_FIELDS.names)
def test_name_of_a_result_column_gets_a_prefix(name: str) -> None:
    assert settle([{name: 1, "free": 2}]).column_names == ["free", f"input_{name}"]


def test_prefix_is_repeated_while_the_name_is_taken() -> None:
    table = settle([{"text": 1, "input_text": 2, "input_input_text": 3}])
    assert table.to_pydict() == {"input_text": [2], "input_input_text": [3], "input_input_input_text": [1]}


def test_name_given_in_an_earlier_shard_stays() -> None:
    table = settle([{"text": 1}], [{"input_text": 2}])
    assert table.to_pydict() == {"input_text": [1, None], "input_input_text": [None, 2]}


def test_names_that_differ_in_case_alone_are_told_apart() -> None:
    table = settle([{"Text": 1, "name": 2, "NAME": 3, "Input_Row": 4}], [{"Name": 5, "row": 6, "name_2": 7}])
    assert table.to_pydict() == {
        "name": [2, None],
        "Input_Row": [4, None],
        "input_Text": [1, None],
        "NAME_2": [3, None],
        "Name_3": [None, 5],
        "input_input_row": [None, 6],
        "name_2_2": [None, 7],
    }


keys = st.sampled_from(["a", "A", "a_2", "A_2", "a_2_2", "Text", "text", "input_text", "INPUT_TEXT", "row", ""])


@given(st.lists(st.lists(keys, min_size=1, max_size=6, unique=True), min_size=1, max_size=4))
def test_every_column_has_a_name_of_its_own_whatever_its_case(shards: list[list[str]]) -> None:
    columns = CarriedColumns()
    for shard in shards:
        columns.join([dict.fromkeys(shard, "v")])
    names = [name.lower() for name in columns.schema.names]
    assert len(set(names)) == len(names) == len({key for shard in shards for key in shard})
    assert not set(names) & set(RESULT_FIELDS.names)


def test_too_many_columns_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "MAX_COLUMNS", 3)
    with pytest.raises(InputError, match="more than 3 columns"):
        settle([{"a": 1, "b": 1}], [{"c": 1, "d": 1}])


@pytest.mark.parametrize(
    "array",
    [
        pa.array([datetime.datetime(2026, 1, 2, 3, 4, 5, 678901), None], pa.timestamp("us")),
        pa.array([1, None], pa.timestamp("ns", "Europe/Berlin")),
        pa.array([decimal.Decimal("1.23"), None], pa.decimal128(10, 2)),
        pa.array([datetime.date(2026, 1, 2), None]),
        pa.array([1, None], pa.duration("ms")),
        pa.array([b"\xff\x00", None]),
        pa.array([[{"a": 1}, None], None], NESTED),
        pa.array([{"x": {"y": ["z"]}}, None]),
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int32())),
        pa.array([1, None], pa.int8()),
        pa.array([2**64 - 1, None], pa.uint64()),
        pa.array([1.5, None], pa.float16()),
        pa.array(["a", None], pa.large_string()),
        pa.array([uuid.UUID(int=5).bytes, None], pa.uuid()),
    ],
    ids=lambda array: str(array.type),
)
def test_arrow_types_and_values_stay(array: pa.Array) -> None:
    columns = CarriedColumns()
    rows = table_rows(columns, pa.table({"x": array, "k": [1, 2]}))
    table = columns.join(rows[::-1])
    assert columns.schema == pa.schema([("x", array.type), ("k", pa.int64())])
    assert conform(table, columns.schema, num_rows=2)["x"].to_pylist() == array.to_pylist()[::-1]
    assert conform(pa.table({"k": [1]}), columns.schema, num_rows=1)["x"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("array", "plain"),
    [
        (pa.array(["a", None, "a"]).dictionary_encode(), pa.string()),
        (pa.array([[["a"]], None]).cast(pa.list_(pa.list_(pa.dictionary(pa.int8(), pa.string())))), None),
        (pa.array(["a", None], pa.string_view()), pa.string()),
        (pa.array([["a"], None], pa.list_view(pa.string())), pa.list_(pa.string())),
        (pa.array([[1, 2], None], pa.list_(pa.int16(), 2)), pa.list_(pa.int16())),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_kinds_of_storage_become_plain_values(array: pa.Array, plain: pa.DataType | None) -> None:
    table = plain_table(pa.table({"x": array}))
    expected = plain or pa.list_(pa.list_(pa.string()))
    assert table.schema.field("x").type == expected
    assert table["x"].to_pylist() == array.to_pylist()


def test_all_null_column_of_a_table_becomes_a_string_column() -> None:
    columns = CarriedColumns()
    rows = table_rows(columns, pa.table({"x": pa.nulls(2), "y": [1, 2]}))
    assert columns.join(rows).column_names == ["y"]
    assert columns.schema == pa.schema([("x", pa.string()), ("y", pa.int64())])


@pytest.mark.parametrize(
    ("first", "second", "type_", "values"),
    [
        (pa.array([1], pa.int8()), pa.array([300], pa.int16()), "int16", [1, 300]),
        (pa.array([1], pa.uint32()), pa.array([-1], pa.int8()), "int64", [1, -1]),
        (pa.array([1], pa.uint64()), pa.array([-1], pa.int8()), "string", ["1", "-1"]),
        (pa.array([1], pa.int32()), pa.array([0.5], pa.float32()), "double", [1.0, 0.5]),
        (pa.array([0.5], pa.float32()), pa.array([0.25]), "double", [0.5, 0.25]),
        (pa.array([2**60]), pa.array([0.5]), "string", [str(2**60), "0.5"]),
        (pa.array(["a"], pa.large_string()), pa.array(["b"]), "string", ["a", "b"]),
        (pa.array([datetime.date(2026, 1, 2)]), pa.array(["b"]), "string", ["2026-01-02", "b"]),
    ],
)
def test_files_that_disagree_are_unified(first: pa.Array, second: pa.Array, type_: str, values: list[Any]) -> None:
    columns = CarriedColumns()
    # Both in one shard, and each in its own, must come to the same.
    rows = [*table_rows(columns, pa.table({"x": first})), *table_rows(columns, pa.table({"x": second}))]
    for shards in ([rows], [rows[:1], rows[1:]]):
        tables = [(columns.join(shard), len(shard)) for shard in shards]
        found = pa.concat_tables([conform(table, columns.schema, num_rows=n) for table, n in tables])
        assert (str(found.schema.field("x").type), found["x"].to_pylist()) == (type_, values)


def test_lines_and_tables_in_one_shard_are_joined_in_order() -> None:
    columns = CarriedColumns()
    rows: list[CarriedRow] = [{"x": 1}, *table_rows(columns, pa.table({"x": [0.5], "y": ["t"]})), {"z": True}]
    assert columns.join(rows).to_pydict() == {
        "x": [1.0, 0.5, None],
        "y": [None, "t", None],
        "z": [None, None, True],
    }


def test_infer_array_of_nothing_but_null_is_none() -> None:
    assert infer_array([None, None]) is None
