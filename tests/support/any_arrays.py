"""Arrays of every Arrow type, nested in each other, with nulls everywhere: strategies of hypothesis."""

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]
#: Makes an array of so many elements; what it holds may be nested as deep as the last number says.
Make = Callable[[Draw, int, int], pa.Array]

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["text", "TEXT", "Row", "input_text", "x", "X", "x_2", "", "a.b", 'a"b', "a\nb", "prompt_2", "choices", "é" * 300]
)

_DAY_S = 86_400


def _column(draw: Draw, num_rows: int, values: st.SearchStrategy[Any]) -> list[Any]:
    found: list[Any] = draw(st.lists(st.none() | values, min_size=num_rows, max_size=num_rows))
    return found


def _of(type_: pa.DataType, values: st.SearchStrategy[Any]) -> Make:
    return lambda draw, num_rows, depth: pa.array(_column(draw, num_rows, values), type_)


def _ticks(type_: pa.DataType, bound: int, *, low: int | None = None) -> Make:
    """Of a type that is an integer underneath, from the integers."""
    storage = pa.int32() if type_.bit_width == 32 else pa.int64()
    values = st.integers(-bound if low is None else low, bound - 1)
    return lambda draw, num_rows, depth: pa.array(_column(draw, num_rows, values), storage).view(type_)


def _date64(draw: Draw, num_rows: int, depth: int) -> pa.Array:
    days = _column(draw, num_rows, st.integers(-(2**31), 2**31 - 1))
    return pa.array([day if day is None else day * _DAY_S * 1000 for day in days], pa.int64()).view(pa.date64())


def _decimals(type_: pa.DataType) -> Make:
    digits = st.integers(-(10**type_.precision) + 1, 10**type_.precision - 1)
    scaled = digits.map(lambda number: Decimal(f"{number}E-{type_.scale}"))
    return _of(type_, scaled)


def _stored(type_: pa.DataType, make: Make) -> Make:
    return lambda draw, num_rows, depth: pa.ExtensionArray.from_storage(type_, make(draw, num_rows, depth))


def _mask(draw: Draw, num_rows: int) -> pa.Array:
    return pa.array(draw(st.lists(st.booleans(), min_size=num_rows, max_size=num_rows)), pa.bool_())


def _lists(make_list: Any, offset_type: pa.DataType, draw: Draw, num_rows: int, depth: int) -> pa.Array:
    lengths = draw(st.lists(st.integers(0, 2), min_size=num_rows, max_size=num_rows))
    mask = _mask(draw, num_rows)
    if not _are_elements_of_nulls_held:
        lengths = [0 if is_null else length for length, is_null in zip(lengths, mask.to_pylist(), strict=True)]
    offsets = [sum(lengths[:i]) for i in range(num_rows + 1)]
    elements = any_array(draw, offsets[-1], depth - 1)
    return make_list.from_arrays(pa.array(offsets, offset_type), elements, mask=mask)


def _list_views(make_list: Any, offset_type: pa.DataType, draw: Draw, num_rows: int, depth: int) -> pa.Array:
    elements = any_array(draw, 3, depth - 1)
    starts = draw(st.lists(st.integers(0, 3), min_size=num_rows, max_size=num_rows))
    sizes = [draw(st.integers(0, 3 - start)) for start in starts]
    parts = (pa.array(starts, offset_type), pa.array(sizes, offset_type))
    return make_list.from_arrays(*parts, elements, mask=_mask(draw, num_rows))


def _fixed_lists(draw: Draw, num_rows: int, depth: int) -> pa.Array:
    elements = any_array(draw, 2 * num_rows, depth - 1)
    return pa.FixedSizeListArray.from_arrays(elements, 2, mask=_mask(draw, num_rows))


def _structs(draw: Draw, num_rows: int, depth: int) -> pa.Array:
    keys = draw(st.lists(names, min_size=1, max_size=2))
    children = [any_array(draw, num_rows, depth - 1) for _ in keys]
    return pa.StructArray.from_arrays(children, names=keys, mask=_mask(draw, num_rows))


def _maps(draw: Draw, num_rows: int, depth: int) -> pa.Array:
    lengths = draw(st.lists(st.integers(0, 2), min_size=num_rows, max_size=num_rows))
    offsets = [sum(lengths[:i]) for i in range(num_rows + 1)]
    keys = draw(st.lists(st.integers(0, 9), min_size=offsets[-1], max_size=offsets[-1]))
    keys_type = draw(st.sampled_from([pa.int64(), pa.string(), pa.date32(), pa.float32()]))
    key_array = pa.array(keys, pa.int32()).cast(keys_type)
    values = any_array(draw, offsets[-1], depth - 1)
    if not _are_zones_in_maps_held and "tz=" in str(values.type):
        values = pa.nulls(len(values))
    return pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), key_array, values)


def _dictionaries(draw: Draw, num_rows: int, depth: int) -> pa.Array:
    # Parquet holds dictionaries of these alone.
    values = draw(st.lists(st.text(max_size=3), min_size=2, max_size=2, unique=True))
    indices = pa.array(_column(draw, num_rows, st.integers(0, 1)), pa.int8())
    return pa.DictionaryArray.from_arrays(indices, pa.array(values, pa.string()))


def _runs(draw: Draw, num_rows: int, depth: int) -> pa.Array:
    ends = sorted({*draw(st.lists(st.integers(1, max(1, num_rows)), max_size=2)), num_rows} - {0})
    ends = [end for end in ends if end <= num_rows]
    return pa.RunEndEncodedArray.from_arrays(pa.array(ends, pa.int32()), any_array(draw, len(ends), depth - 1))


def _unions(mode: str, draw: Draw, num_rows: int, depth: int) -> pa.Array:
    children = [any_array(draw, max(1, num_rows), depth - 1) for _ in range(2)]
    codes = draw(st.lists(st.integers(0, 1), min_size=num_rows, max_size=num_rows))
    if mode == "sparse":
        cut = [child.slice(0, num_rows) for child in children]
        return pa.UnionArray.from_sparse(pa.array(codes, pa.int8()), cut)
    positions = [draw(st.integers(0, len(children[code]) - 1)) for code in codes]
    return pa.UnionArray.from_dense(pa.array(codes, pa.int8()), pa.array(positions, pa.int32()), children)


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_tensor = pa.fixed_shape_tensor(pa.int8(), [2, 1])
_tensors = _of(pa.list_(pa.int8(), 2), st.lists(st.integers(0, 9), min_size=2, max_size=2))
_intervals = st.tuples(
    st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
)
_zones = (None, "UTC", "Europe/Berlin", "+05:30", "Foo/Bar", "")


def _is_held(sample: pa.Array) -> bool:
    """Whether this pyarrow writes it to Parquet and reads it again. Older ones that we take may not."""
    return _reread(sample) is not None


def _reread(sample: pa.Array) -> pa.DataType | None:
    """The type by which a column comes back from Parquet; None where it can't be written or read."""
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.table({"x": sample}), sink)
        return pq.read_table(sink.getvalue()).schema.field("x").type
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return None


_SMALL_DECIMALS: list[Make] = [_decimals(pa.decimal32(9, 4)), _decimals(pa.decimal64(18, 0))]
_LIST_VIEWS: list[Make] = [
    partial(_list_views, pa.ListViewArray, pa.int32()),
    partial(_list_views, pa.LargeListViewArray, pa.int64()),
]
_FIXED_LISTS: list[Make] = [_fixed_lists]
_FIXED_TENSORS: list[Make] = [_stored(_tensor, _tensors)]
_null_among_fixed_lists = pa.array([[1, 2], None], pa.list_(pa.int8(), 2))
_elements_of_a_null = pa.ListArray.from_arrays([0, 1, 2, 3], pa.nulls(3), mask=pa.array([False, True, False]))
_are_elements_of_nulls_held = _is_held(_elements_of_a_null)
_zones_in_maps = pa.map_(pa.int8(), pa.timestamp("ms", "Europe/Berlin"))
_are_zones_in_maps_held = "Europe/Berlin" in str(_reread(pa.nulls(1, _zones_in_maps)))
_are_decimals_held = _is_held(pa.nulls(1, pa.decimal32(9, 4)))
_are_list_views_held = _is_held(pa.nulls(1, pa.list_view(pa.int8())))
_are_fixed_lists_held = _is_held(_null_among_fixed_lists)

LEAVES: list[Make] = [
    lambda draw, num_rows, depth: pa.nulls(num_rows),
    _of(pa.bool_(), st.booleans()),
    *(_of(pa.type_for_alias(f"int{n}"), st.integers(-(2 ** (n - 1)), 2 ** (n - 1) - 1)) for n in (8, 16, 32, 64)),
    *(_of(pa.type_for_alias(f"uint{n}"), st.integers(0, 2**n - 1)) for n in (8, 16, 32, 64)),
    *(_of(pa.type_for_alias(f"float{bits}"), st.floats(width=bits)) for bits in (16, 32, 64)),
    *(_SMALL_DECIMALS if _are_decimals_held else []),
    _decimals(pa.decimal128(38, 10)),
    _decimals(pa.decimal256(76, 38)),
    _ticks(pa.date32(), 2**31),
    _date64,
    _ticks(pa.time32("s"), _DAY_S, low=0),
    _ticks(pa.time32("ms"), _DAY_S * 1000, low=0),
    _ticks(pa.time64("us"), _DAY_S * 1_000_000, low=0),
    _ticks(pa.time64("ns"), _DAY_S * 1_000_000_000, low=0),
    # Parquet has no seconds, and no room for most of them as milliseconds.
    *(_ticks(pa.timestamp("s", zone), 2**63 // 1000) for zone in _zones),
    *(_ticks(pa.timestamp(unit, zone), 2**63) for unit in ("ms", "us", "ns") for zone in _zones),
    *(_ticks(pa.duration(unit), 2**63) for unit in ("s", "ms", "us", "ns")),
    *(_of(type_, _texts) for type_ in (pa.string(), pa.large_string(), pa.string_view())),
    *(_of(type_, st.binary(max_size=4)) for type_ in (pa.binary(), pa.large_binary(), pa.binary_view())),
    _of(pa.binary(3), st.binary(min_size=3, max_size=3)),
    _stored(pa.uuid(), _of(pa.binary(16), st.binary(min_size=16, max_size=16))),
    _stored(pa.json_(), _of(pa.string(), st.sampled_from(["{}", "[1]", '"a"']))),
    _stored(pa.bool8(), _of(pa.int8(), st.integers(-128, 127))),
    *(_FIXED_TENSORS if _are_fixed_lists_held else []),
    _stored(pa.opaque(pa.int8(), "name", "vendor"), _of(pa.int8(), st.integers(0, 9))),
    _dictionaries,
]

NESTED: list[Make] = [
    partial(_lists, pa.ListArray, pa.int32()),
    partial(_lists, pa.LargeListArray, pa.int64()),
    *(_LIST_VIEWS if _are_list_views_held else []),
    *(_FIXED_LISTS if _are_fixed_lists_held else []),
    _structs,
    _maps,
]

#: What Parquet can't hold, and pyarrow does not write.
FOREIGN: list[Make] = [
    _of(pa.month_day_nano_interval(), _intervals),
    _runs,
    partial(_unions, "sparse"),
    partial(_unions, "dense"),
]

#: What Parquet holds by newer versions of pyarrow than this one.
LATER: list[Make] = [
    *([] if _are_decimals_held else _SMALL_DECIMALS),
    *([] if _are_list_views_held else _LIST_VIEWS),
    *([] if _are_fixed_lists_held else _FIXED_LISTS + _FIXED_TENSORS),
]


def any_array(draw: Draw, num_rows: int, depth: int) -> pa.Array:
    """An array of a type that Parquet can hold, nested to `depth`."""
    make = draw(st.sampled_from(LEAVES + (NESTED if depth > 0 else [])))
    return make(draw, num_rows, depth)


@st.composite
def arrays(draw: Draw, *, num_rows: int, depth: int = 3, kinds: list[Make] | None = None) -> pa.Array:
    """An array of any of `kinds`; without, of a type that Parquet can hold."""
    if kinds is None:
        return any_array(draw, num_rows, depth)
    return draw(st.sampled_from(kinds))(draw, num_rows, depth)
