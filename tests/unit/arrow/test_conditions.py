"""Conditions of a user on columns of every type."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.arrow.conditions import parse_columns, parse_condition, parse_conditions
from batcher.arrow.plain import plain_table
from batcher.arrow.values import text_values
from batcher.errors import InputError
from tests.support.any_arrays import FOREIGN, LEAVES, NESTED, arrays

TABLE = pa.table(
    {
        "row": pa.array([0, 1, 2, 3]),
        "finish_reason": ["length", "stop", None, "length"],
        "completion_tokens": pa.array([50, 10, None, 20], pa.int32()),
        "output": [{"name": "Ann", "ok": True}, {"name": "bob", "ok": False}, None, {"name": None, "ok": None}],
        "price": pa.array([Decimal("1.20"), Decimal("2.50"), None, Decimal("0.00")], pa.decimal128(9, 2)),
        "opened": pa.array(
            [datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 6, 12, tzinfo=UTC), None, None],
            pa.timestamp("s", "Europe/Berlin"),
        ),
        "day": pa.array([date(2026, 1, 5), None, date(2026, 1, 6), date(2020, 1, 1)]),
        "flag": [True, False, None, True],
        "a b.c": ["it's", 'y"z', "100%", None],
        "small": pa.array([0.1, 0.2, None, float("nan")], pa.float32()),
        "scores": pa.array([[("pos", 0.9)], [("neg", 0.2)], None, []], pa.map_(pa.string(), pa.float64())),
        "tags": [["a"], [], None, ["a", "b"]],
        "blob": [b"a", b"b", None, b""],
        "kind": pa.array(["x", "y", None, "x"]).dictionary_encode(),
    }
)

#: Opened once: that takes ten times as long as a query.
DUCKDB = duckdb.connect()


def found(condition: str, table: pa.Table = TABLE) -> list[int]:
    """The positions of the rows for which it holds."""
    mask = parse_condition(condition, table.schema).mask(table).to_pylist()
    assert len(mask) == table.num_rows
    return [position for position, holds in enumerate(mask) if holds]


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("finish_reason = 'length' and completion_tokens > 40", [0]),
        ("40 < Completion_Tokens", [0]),
        ("NOT completion_tokens > 40", [1, 3]),
        ("completion_tokens between 10 and 20", [1, 3]),
        ("completion_tokens NOT BETWEEN 10 AND 20 OR row = 2", [0, 2]),
        ("row = 0 or row = 1 and flag", [0]),
        ("(row = 0 or row = 1) and not (flag)", [1]),
        ("finish_reason in ('stop', 'x')", [1]),
        ("finish_reason not in ('stop')", [0, 3]),
        ("finish_reason is null", [2]),
        ("finish_reason is not null and flag is not true", [1]),
        ("flag is false", [1]),
        ("flag <> true", [1]),
        ("output.name = 'Ann'", [0]),
        ("output.name ilike 'B%'", [1]),
        ("not output.ok", [1]),
        ("upper(output.name) = 'ANN'", [0]),
        ("price >= 1.2", [0, 1]),
        ("price = 1.205 or price > completion_tokens", []),
        ("opened >= '2026-01-05T01:00'", [0, 1]),
        ("opened > date '2026-01-05' and opened < '2026-01-06 13:00:01'", [0, 1]),
        ("opened = '2026-01-05T00:00:00Z'", [0]),
        ("opened like '2026-01-05%'", [0]),
        ("day='2026-01-06'", [2]),
        ("\"a b.c\" = 'it''s' or \"a b.c\" = 'y\"z'", [0, 1]),
        ("\"a b.c\" like '%\\%'", [2]),
        ('length("a b.c") = 3', [1]),
        ("small = 0.1", [0]),
        ("small > 0.1", [1]),
        ("scores.pos > 0.5", [0]),
        ("length(scores) = 0 or length(tags) = 2", [3]),
        ("tags = '[\"a\"]'", [0]),
        ("blob = 'YQ=='", [0]),
        ("kind = 'x'", [0, 3]),
        ("row > 0.5 and row < 99999999999999999999999", [1, 2, 3]),
        ("row in (1, 2.5, +3, -0)", [0, 1, 3]),
        ("row = '2'", [2]),
    ],
)
def test_condition_holds_as_in_sql(condition: str, rows: list[int]) -> None:
    assert found(condition) == rows


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ("", "character 1: a column or a literal is expected here"),
        ("finsh_reason = 1", "character 1: there is no column 'finsh_reason'; did you mean finish_reason?"),
        ("kind = 'x' and finish_reason = length", "character 32: .*into single quotes: 'length'"),
        ('finish_reason = "length"', "character 17: .*into single quotes: 'length'"),
        ("row = 'x'", "character 1: row: it is int64, and 'x' is no number"),
        ("finish_reason = 3", "write the value in quotes: '3'"),
        ("flag = 3", "write = true, or = false"),
        ("row = null", "character 7: .*write IS NULL"),
        ("row =", "character 6: a column or a literal"),
        ("row = 3 3", "character 9: '3' is not expected"),
        ("(row = 3", r"character 9: \) is expected"),
        ("finish_reason = 'a", "character 17: a quote that is never closed"),
        ("row", "row: is int64, and true or false was expected"),
        ("1 = 1", "'1' is no column"),
        ("tags < 'a'", "have no order"),
        ("output.nam = 'a'", "output: has no 'nam'; it has: name, ok"),
        ("row.x = 1", "row: is int64, which has no fields"),
        ("opened > 'tomorrow'", "'tomorrow' is not a moment; write it as '2026-01-31'"),
        ("day > '2026-02-30'", "'2026-02-30' is not a date; write it as '2026-01-31'"),
        ("md5(kind) = 'x'", "there is no function md5; there are: length, lower, upper"),
        ("row in (flag)", "character 9: a literal is expected"),
        ("row not", "character 8: a comparison is expected"),
        ("row % 2 = 1", "character 5: '%' has no meaning"),
        ("(" * 101, "character 101: more than 100 parentheses"),
        ("not " * 5000 + "flag", "more than 100 parentheses and NOT"),
        ("row = 1e999999999", "is beyond all numbers"),
        ("row < 1e90", "only those of 76"),
        ("kind like 3", "character 11: a pattern in single quotes"),
        ("lower(row) = 'x'", "lower: is int64 and no text"),
        ("day < opened", "have no order"),
    ],
)  # fmt: skip
def test_condition_that_is_wrong_is_refused_with_its_place(condition: str, problem: str) -> None:
    with pytest.raises(InputError, match="(?s)^condition .*" + problem.replace("?", r"\?")):
        parse_condition(condition, TABLE.schema)


def test_condition_names_the_columns_that_it_reads() -> None:
    condition = parse_condition("output.ok or LENGTH(Tags) > 1 and output.name = 'x'", TABLE.schema)

    assert condition.columns == ("output", "tags")
    assert condition.filter(TABLE.select(["tags", "output"])).num_rows == 1


def test_several_conditions_must_all_hold() -> None:
    several = parse_conditions(["row > 0 or row = 0", "flag"], TABLE.schema)

    assert several is not None
    assert several.filter(TABLE)["row"].to_pylist() == [0, 3]
    assert several.columns == ("row", "flag")
    assert parse_conditions([], TABLE.schema) is None


def columns(*texts: str) -> list[str]:
    return [column.name for column in parse_columns(texts, TABLE.schema, what="--columns")]


def test_columns_are_named_with_commas_between_whatever_they_are_called() -> None:
    assert columns("ROW, kind", "a b.c", 'row,"a b.c"') == ["row", "kind", "a b.c"]
    assert columns("output.name,scores.pos,a b.c") == ["output.name", "scores.pos", "a b.c"]


def test_column_has_its_values_and_a_column_of_the_table_its_type() -> None:
    kind, name, pos = parse_columns(["kind,output.name,scores.pos"], TABLE.schema, what="--columns")

    assert kind.values(TABLE).type == TABLE["kind"].type
    assert (name.source, name.values(TABLE).to_pylist()) == ("output", ["Ann", "bob", None, None])
    assert pos.values(TABLE.slice(0, 2)).to_pylist() == [0.9, None]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("raw", "^--columns: there is no column 'raw'; did you mean row"),
        ("row,ticket-id", "^--columns: there is no column 'ticket-id'; there are: row,"),
        (" , ", "^--columns: no column is named; there are: row,"),
        ("output.nam", "^--columns 'output.nam', character 1: output: has no 'nam'; it has: name, ok"),
    ],
)
def test_column_that_is_not_there_is_refused_with_those_that_are(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        columns(text)


# -- over the space ---------------------------------------------------------------------------------------------------


@given(st.data())
def test_value_of_any_type_is_found_by_its_text_and_null_by_nothing_else(data: st.DataObject) -> None:
    """`x = 'text of x'`, `in`, `<>` and `is null` divide the rows of a column of any type."""
    num_rows = data.draw(st.integers(1, 5))
    array = data.draw(arrays(num_rows=num_rows, depth=2, kinds=LEAVES + NESTED + FOREIGN))
    table = pa.table({"x": array})
    plain = plain_table(table)["x"]
    texts = text_values(plain)
    nulls = [position for position, text in enumerate(texts) if text is None]
    number = pa.types.is_floating(plain.type)
    wanted = data.draw(st.sampled_from([text for text in texts if text not in ("nan", "inf", "-inf")] or [None]))

    assert found("x is null", table) == nulls
    if wanted is None:
        return
    literal = wanted if pa.types.is_boolean(plain.type) or plain.type == pa.bool8() else quoted(wanted)
    same = [i for i, text in enumerate(texts) if text == wanted or (number and text and float(text) == float(wanted))]
    others = [i for i in range(num_rows) if i not in same and i not in nulls]
    assert found(f"x = {literal}", table) == same
    assert found(f"x in ({literal}, {literal})", table) == same
    assert found(f"x <> {literal}", table) == found(f"x not in ({literal})", table) == others


_DAY_UNITS = [pa.date32(), pa.date64()]
_TIMES = [pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")]
_MOMENTS = [
    make(unit)
    for unit in ("s", "ms", "us", "ns")
    for make in (pa.duration, pa.timestamp, lambda unit: pa.timestamp(unit, "America/New_York"))
]


@given(st.data())
def test_times_have_their_order(data: st.DataObject) -> None:
    """Of dates, times, moments and durations as of the integers below, however large."""
    found_type = data.draw(st.sampled_from(_DAY_UNITS + _TIMES + _MOMENTS))
    is_small = found_type.bit_width == 32
    bounds = (0, 86_399) if found_type in _TIMES else (-(2**31), 2**31 - 1) if is_small else (-(2**55), 2**55)
    ticks = data.draw(st.lists(st.integers(*bounds), min_size=2, max_size=5))
    if found_type == pa.date64():
        ticks = [tick % 2**31 * 86_400_000 for tick in ticks]
    column = pa.array(ticks, pa.int32() if is_small else pa.int64()).view(found_type)
    table = pa.table({"x": column})
    wanted = quoted(text_values(column)[0] or "")

    assert found(f"x < {wanted}", table) == [i for i, tick in enumerate(ticks) if tick < ticks[0]]
    assert found(f"x >= {wanted}", table) == [i for i, tick in enumerate(ticks) if tick >= ticks[0]]


_NUMBERS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-128, 127)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.decimal32(9, 4), st.decimals(-9999, 9999, places=4)),
    (pa.decimal128(38, 10), st.decimals(-(10**27), 10**27, places=10)),
    (pa.decimal256(60, 20), st.decimals(-(10**27), 10**27, places=20)),
    (pa.float64(), st.floats(allow_nan=False, allow_infinity=False)),
]
_PYTHON = {"=": "__eq__", "<>": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}


@given(st.data())
def test_numbers_of_any_type_are_compared_exactly(data: st.DataObject) -> None:
    """With literals and with each other, also where one type could not hold both."""
    type_, values = data.draw(st.sampled_from(_NUMBERS))
    column = data.draw(st.lists(values, min_size=1, max_size=4))
    near = data.draw(st.sampled_from(column))
    wanted = data.draw(st.sampled_from([str(near), str(int(near)), f"{int(near)}.5", "-1", "18446744073709551616"]))
    operator = data.draw(st.sampled_from(sorted(_PYTHON)))
    table = pa.table({"x": pa.array(column, type_)})
    # A literal is a float, too, where the column is of floats.
    literal = Fraction(float(wanted)) if type_ == pa.float64() else Fraction(wanted)

    expected = [i for i, value in enumerate(column) if getattr(Fraction(value), _PYTHON[operator])(literal)]
    assert found(f"x {operator} {wanted}", table) == expected

    other_type, others = data.draw(st.sampled_from(_NUMBERS[:-1]))
    if type_ == pa.float64():
        return
    second = data.draw(st.lists(others, min_size=len(column), max_size=len(column)))
    both = table.append_column("y", pa.array(second, other_type))
    pairs = enumerate(zip(column, second, strict=True))
    assert found(f"x {operator} y", both) == [
        i for i, (x, y) in pairs if getattr(Fraction(x), _PYTHON[operator])(Fraction(y))
    ]


_texts = st.sampled_from(["", "a", "ab", "B", "it's", "100%", "a_b"])
_TYPED: dict[str, tuple[st.SearchStrategy[Any], st.SearchStrategy[str]]] = {
    "n": (st.integers(-2, 3), st.sampled_from(["0", "1", "-1", "2.5"])),
    "m": (st.integers(-2, 3), st.sampled_from(["0", "2"])),
    "x": (st.sampled_from([0.0, 0.5, -1.0]), st.sampled_from(["0", "0.5", "1e0"])),
    "t": (_texts, _texts.map(quoted)),
    "u": (_texts, _texts.map(quoted)),
}


@st.composite
def predicates(draw: Callable[[st.SearchStrategy[str]], str]) -> str:
    name = draw(st.sampled_from([*_TYPED, "b"]))
    if name == "b":
        return draw(st.sampled_from(["b", "b is true", "b is not false", "b = false", "b is null", "not b"]))
    literals = _TYPED[name][1]
    kinds = ["compare", "in", "between", "null", "column"] + (["like"] if name in "tu" else [])
    kind, no = draw(st.sampled_from(kinds)), draw(st.sampled_from(["", "not "]))
    operator = draw(st.sampled_from(["=", "<>", "!=", "<", "<=", ">", ">="]))
    texts = {
        "compare": f"{name} {operator} {draw(literals)}",
        "column": f"{name} {operator} {draw(st.sampled_from(['t', 'u'] if name in 'tu' else ['n', 'm', 'x']))}",
        "in": f"{name} {no}in ({draw(literals)}, {draw(literals)})",
        "between": f"{name} {no}between {draw(literals)} and {draw(literals)}",
        "null": f"{name} is {no}null",
        "like": f"{name} {no}{draw(st.sampled_from(['like', 'ilike']))} "
        + quoted(draw(st.sampled_from(["a%", "%", "_", "%b%", "A_", "it''s"]))),
    }
    return texts[kind]


conditions = st.recursive(
    predicates(),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or", "AND"]), inner).map(" ".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"not ({text})"),
        inner.map(lambda text: f"not {text}"),
    ),
    max_leaves=6,
)


@given(st.data())
def test_conditions_mean_what_they_mean_in_duckdb(data: st.DataObject) -> None:
    num_rows = 5
    columns = {
        name: data.draw(st.lists(st.none() | values, min_size=num_rows, max_size=num_rows))
        for name, (values, _) in _TYPED.items()
    }
    columns["b"] = data.draw(st.lists(st.none() | st.booleans(), min_size=num_rows, max_size=num_rows))
    types = {"n": pa.int64(), "m": pa.int32(), "x": pa.float64(), "t": pa.string(), "u": pa.string(), "b": pa.bool_()}
    table = pa.table({"row": range(num_rows)} | {name: pa.array(columns[name], types[name]) for name in columns})
    condition = data.draw(conditions)

    with DUCKDB.cursor() as cursor:
        cursor.register("results", table)
        expected = cursor.sql(f"select row from results where {condition} order by row").fetchall()

    assert found(condition, table) == [row for (row,) in expected]


@given(st.text(st.sampled_from(list("ab'\"()=<>.,- 1e\n%é")) | st.characters(), max_size=12))
def test_any_text_is_a_condition_or_an_input_error(text: str) -> None:
    with suppress(InputError):
        condition = parse_condition(text, TABLE.schema)
        assert len(condition.mask(TABLE)) == TABLE.num_rows
