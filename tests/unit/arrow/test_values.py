"""Values of every type as JSON and as text."""

import datetime
import json
import math
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.arrow.plain import plain_table
from batcher.arrow.values import json_line, json_values, text_values, unique_names

UUID_7 = "00000000-0000-0000-0000-000000000007"
NS = 1_700_000_000_123_456_717


@given(st.text(st.characters() | st.sampled_from("\u2028\u2029\x85\x0b\x0c\x1c\r\n"), max_size=20))
def test_json_line_is_one_line_to_every_reader(text: str) -> None:
    line = json_line({text: [text]})

    assert line.splitlines() == [line]
    assert json.loads(line) == {text: [text]}


CASES: list[tuple[pa.Array, Any, str | None]] = [
    (pa.nulls(1), None, None),
    (pa.array([True]), True, "true"),
    (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1, "18446744073709551615"),
    (pa.array([0.1]), 0.1, "0.1"),
    (pa.array([0.1], pa.float32()), 0.1, "0.1"),
    (pa.array([0.5], pa.float16()), 0.5, "0.5"),
    (pa.array([math.nan], pa.float16()), None, "nan"),
    (pa.array([-math.inf], pa.float32()), None, "-inf"),
    (pa.array([[1.0, math.inf]]), [1.0, None], "[1.0, null]"),
    (pa.array([Decimal("1.20")], pa.decimal32(5, 2)), "1.20", "1.20"),
    (pa.array([Decimal("1.20")], pa.decimal64(12, 2)), "1.20", "1.20"),
    (pa.array([Decimal("0E-20")], pa.decimal128(38, 20)), "0." + "0" * 20, "0." + "0" * 20),
    (pa.array([Decimal(10) ** 70], pa.decimal256(76, 0)), "1" + "0" * 70, "1" + "0" * 70),
    (pa.array(["é"], pa.string_view()), "é", "é"),
    (pa.array(["é"], pa.large_string()), "é", "é"),
    (pa.array([b"\x00\xff"], pa.binary_view()), "AP8=", "AP8="),
    (pa.array([b"\x00\xff"], pa.binary(2)), "AP8=", "AP8="),
    (pa.array([0], pa.date32()), "1970-01-01", "1970-01-01"),
    (pa.array([2**31 - 1], pa.int32()).cast(pa.date32()), "+5881580-07-11", "+5881580-07-11"),
    (pa.array([-719_529], pa.int32()).cast(pa.date32()), "-0001-12-31", "-0001-12-31"),
    (pa.array([-719_528], pa.int32()).cast(pa.date32()), "0000-01-01", "0000-01-01"),
    (pa.array([datetime.date(9999, 12, 31)], pa.date64()), "9999-12-31", "9999-12-31"),
    (pa.array([2_932_897], pa.int32()).cast(pa.date32()), "+10000-01-01", "+10000-01-01"),
    (pa.array([3_661], pa.time32("s")), "01:01:01", "01:01:01"),
    (pa.array([1_234_567_891], pa.time64("ns")), "00:00:01.234567891", "00:00:01.234567891"),
    (pa.array([120], pa.time32("ms")), "00:00:00.12", "00:00:00.12"),
    (pa.array([NS], pa.timestamp("ns")), "2023-11-14T22:13:20.123456717", "2023-11-14T22:13:20.123456717"),
    (pa.array([NS], pa.timestamp("ns", "UTC")), "2023-11-14T22:13:20.123456717Z", "2023-11-14T22:13:20.123456717Z"),
    (pa.array([0], pa.timestamp("s", "+05:30")), "1970-01-01T05:30:00+05:30", "1970-01-01T05:30:00+05:30"),
    (pa.array([0], pa.timestamp("s", "-0330")), "1969-12-31T20:30:00-03:30", "1969-12-31T20:30:00-03:30"),
    (pa.array([0], pa.timestamp("ms", "Europe/Berlin")), "1970-01-01T01:00:00+01:00", "1970-01-01T01:00:00+01:00"),
    (pa.array([0], pa.timestamp("ms", "Foo/Bar")), "1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
    (pa.array([2**63 - 1], pa.timestamp("us")), "+294247-01-10T04:00:54.775807", "+294247-01-10T04:00:54.775807"),
    (
        pa.array([2**62], pa.timestamp("s", "Europe/Berlin")),
        "+146138514283-06-19T07:45:04Z",
        "+146138514283-06-19T07:45:04Z",
    ),
    (pa.array([-1], pa.timestamp("ns")), "1969-12-31T23:59:59.999999999", "1969-12-31T23:59:59.999999999"),
    (pa.array([93_784_500], pa.duration("ms")), "P1DT2H3M4.5S", "P1DT2H3M4.5S"),
    (pa.array([-1], pa.duration("ns")), "-PT0.000000001S", "-PT0.000000001S"),
    (pa.array([0], pa.duration("s")), "PT0S", "PT0S"),
    (pa.array([(14, -3, -1_500_000_000)], pa.month_day_nano_interval()), "P14M-3DT-1.5S", "P14M-3DT-1.5S"),
    (pa.array([(0, 0, 0)], pa.month_day_nano_interval()), "PT0S", "PT0S"),
    (pa.array([UUID(UUID_7).bytes], pa.uuid()), UUID_7, UUID_7),
    (pa.ListArray.from_arrays([0, 1], pa.array([UUID(UUID_7).bytes], pa.uuid())), [UUID_7], f'["{UUID_7}"]'),
    (pa.array(['{"a":1}'], pa.json_()), '{"a":1}', '{"a":1}'),
    (pa.array([1], pa.int8()).cast(pa.bool8()), True, "true"),
    (pa.array([[1, None]], pa.list_view(pa.int8())), [1, None], "[1, null]"),
    (pa.array([[1, 2]], pa.list_(pa.int8(), 2)), [1, 2], "[1, 2]"),
    (
        pa.array([{"a": NS, "b": None}], pa.struct([("a", pa.timestamp("ns")), ("b", pa.int8())])),
        {"a": "2023-11-14T22:13:20.123456717", "b": None},
        '{"a": "2023-11-14T22:13:20.123456717", "b": null}',
    ),
    (
        pa.array([[(1, "x"), (1, None)]], pa.map_(pa.int8(), pa.string())),
        [[1, "x"], [1, None]],
        '[[1, "x"], [1, null]]',
    ),
    (pa.array(["x"]).dictionary_encode(), "x", "x"),
    (pa.RunEndEncodedArray.from_arrays([1], pa.array(["x"])), "x", "x"),
    (pa.UnionArray.from_sparse(pa.array([1], pa.int8()), [pa.array([0]), pa.array(["x"])]), "x", "x"),
    (
        pa.UnionArray.from_dense(pa.array([1], pa.int8()), pa.array([0], pa.int32()), [pa.array([0]), pa.array([0.5])]),
        0.5,
        "0.5",
    ),
    (
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"]),
        {"a": 1, "a_2": 2},
        '{"a": 1, "a_2": 2}',
    ),
]


@pytest.mark.parametrize(("array", "in_json", "as_text"), CASES, ids=[str(case[0].type)[:40] for case in CASES])
def test_value_of_each_type_has_its_json_and_its_text(array: pa.Array, in_json: Any, as_text: str | None) -> None:
    with_null = pa.concat_arrays([pa.nulls(1, array.type), array]) if not pa.types.is_union(array.type) else None
    for column in (array, pa.chunked_array([array]), *([with_null.slice(1)] if with_null is not None else [])):
        assert json_values(column) == [in_json]
        assert text_values(column) == [as_text]
        json_line(json_values(column))
    if with_null is not None:
        assert json_values(with_null) == [None, in_json]


@pytest.mark.parametrize("array", [case[0] for case in CASES], ids=[str(case[0].type)[:40] for case in CASES])
def test_plain_column_has_the_same_values(array: pa.Array) -> None:
    doubled = pa.concat_arrays([array, array]) if not pa.types.is_union(array.type) else array
    column = pa.chunked_array([doubled.slice(len(doubled) - 1), array])
    plain = plain_table(pa.table({"x": column}))["x"]
    assert text_values(plain) == text_values(column)
    if not pa.types.is_union(array.type):
        assert json_values(plain) == json_values(column)


@given(st.lists(st.sampled_from(["a", "a_2", "a_2_2", "b", ""]), max_size=8))
def test_unique_names_keep_the_first_of_each(names: list[str]) -> None:
    unique = unique_names(names)
    assert len(set(unique)) == len(names)
    assert [new for new, name in zip(unique, names, strict=True) if new == name] == list(dict.fromkeys(names))
