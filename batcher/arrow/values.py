"""Values of columns as text and as JSON: one rule for templates, ids, CSV, JSON lines and output files.

The rule is in docs/values.md. It is by type and never fails: also for what Python's own types can't hold, such as
nanoseconds, years beyond 9999, and intervals of months. Everything works by column, since the type is the column's.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.times import (
    TICKS_PER_SECOND,
    date_text,
    duration_text,
    interval_text,
    time_text,
    timestamp_texts,
)

#: Characters that JSON may hold as they are, but at which many readers of lines end a line, as `str.splitlines` does.
_LINE_ENDS = re.compile("[\u2028\u2029\x85]")


def json_line(value: Any) -> str:
    """`value` as JSON that is one line to every reader. Raises ValueError for NaN and infinities."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def json_text(value: Any) -> str | None:
    """A JSON value as text: a string as it is, anything else as JSON; None for null."""
    if value is None or type(value) is str:
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def json_values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values of a column as JSON can hold them, None for null, NaN and infinities."""
    return [value for chunk in _chunks(column) for value in _json_values(chunk)]


def text_values(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """The values of a column as text, None for null. Where JSON has a string, that; else what JSON has, as JSON."""
    found = column.type
    if _is_text(found):
        return column.to_pylist()  # type: ignore[no-any-return]
    if pa.types.is_integer(found) or pa.types.is_boolean(found):
        return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
    if pa.types.is_floating(found):
        return _each(str, float_values(column))
    return [json_text(value) for value in json_values(column)]


def text_column(column: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """The same as a column."""
    return pa.chunked_array([pa.array(text_values(column), pa.string())])


def float_values(column: pa.Array | pa.ChunkedArray) -> list[float | None]:
    """The numbers of a column of floats: the shortest that are these in their own precision, so 0.1 also in 32 bits."""
    if pa.types.is_float32(column.type):
        return _each(float, column.cast(pa.string()).to_pylist())
    values: list[float | None] = column.to_pylist()
    # Older pyarrow gives numpy's floats for those of 16 bits.
    return _each(float, values) if pa.types.is_float16(column.type) else values


def unique_names(names: Iterable[str]) -> list[str]:
    """`names`, the second of the same made `name_2`, the third `name_3`, and on past those that are there already."""
    given = list(names)
    taken = set(given)
    seen: set[str] = set()
    unique = []
    for name in given:
        chosen, number = name, 1
        while chosen in seen or (number > 1 and chosen in taken):
            number += 1
            chosen = f"{name}_{number}"
        seen.add(chosen)
        unique.append(chosen)
    return unique


def expanded_positions(array: pa.Array) -> list[int]:
    """The position in its `values` of each element of a run-end encoded array."""
    positions: list[int] = []
    start, end = array.offset, array.offset + len(array)
    first = 0
    for position, run_end in enumerate(array.run_ends.to_pylist()):
        positions.extend([position] * max(0, min(run_end, end) - max(first, start)))
        first = run_end
    return positions


def union_positions(array: pa.Array) -> Iterator[tuple[int, int]]:
    """The child and the position in it of each element of a union."""
    children = {code: child for child, code in enumerate(array.type.type_codes)}
    # Not `type_codes` and `offsets`: those of a slice begin where those of the whole do.
    here = slice(array.offset, array.offset + len(array))
    _, codes, *rest = array.buffers()
    positions: Iterable[int] = range(len(array))
    if array.type.mode == "dense":
        positions = memoryview(rest[0]).cast("i")[here]
    for code, position in zip(memoryview(codes).cast("b")[here], positions, strict=True):
        yield children[code], position


def _chunks(column: pa.Array | pa.ChunkedArray) -> Sequence[pa.Array]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _json_values(array: pa.Array) -> list[Any]:
    """Of one chunk."""
    found = array.type
    if isinstance(found, pa.BaseExtensionType):
        return _of_extension(array)
    for is_type, convert in _BY_TYPE:
        if is_type(found):
            return convert(array)
    # Integers, booleans, strings, nulls.
    return array.to_pylist()  # type: ignore[no-any-return]


def _of_extension(array: pa.Array) -> list[Any]:
    name = array.type.extension_name
    if name == "arrow.uuid":
        return _each(lambda value: str(UUID(bytes=value)), array.storage.to_pylist())
    if name == "arrow.bool8":
        return _each(bool, array.storage.to_pylist())
    return _json_values(array.storage)


def _each(convert: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    return [None if value is None else convert(value) for value in values]


def _finite_floats(array: pa.Array) -> list[Any]:
    # JSON has no NaN and no infinity.
    return [None if value is None or value - value != 0 else value for value in float_values(array)]


def _decimals(array: pa.Array) -> list[Any]:
    return _each(lambda value: format(value, "f"), array.to_pylist())


def _bytes(array: pa.Array) -> list[Any]:
    return _each(lambda value: base64.b64encode(value).decode("ascii"), array.to_pylist())


def _dates(array: pa.Array) -> list[Any]:
    if pa.types.is_date32(array.type):
        return _each(date_text, array.cast(pa.int32()).to_pylist())
    return _each(lambda value: date_text(value // 86_400_000), array.cast(pa.int64()).to_pylist())


def _times(array: pa.Array) -> list[Any]:
    per_second = TICKS_PER_SECOND[array.type.unit]
    ticks = array.cast(pa.int32() if pa.types.is_time32(array.type) else pa.int64())
    return _each(lambda value: time_text(value, per_second), ticks.to_pylist())


def _timestamps(array: pa.Array) -> list[Any]:
    return timestamp_texts(array.cast(pa.int64()).to_pylist(), TICKS_PER_SECOND[array.type.unit], zone=array.type.tz)


def _durations(array: pa.Array) -> list[Any]:
    per_second = TICKS_PER_SECOND[array.type.unit]
    return _each(lambda value: duration_text(value, per_second), array.cast(pa.int64()).to_pylist())


def _intervals(array: pa.Array) -> list[Any]:
    return _each(lambda value: interval_text(*value), array.to_pylist())


def _structs(array: pa.Array) -> list[Any]:
    names = unique_names(array.type.field(i).name for i in range(array.type.num_fields))
    # `flatten` cuts the children to the slice that the array is.
    children = [_json_values(child) for child in array.flatten()]
    rows = zip(*children, strict=True) if children else [()] * len(array)
    return [
        dict(zip(names, row, strict=True)) if is_valid else None
        for row, is_valid in zip(rows, array.is_valid().to_pylist(), strict=True)
    ]


def _lists(array: pa.Array) -> list[Any]:
    # Without the elements of null lists.
    elements = iter(_json_values(array.flatten()))
    return _each(lambda length: list(islice(elements, length)), pc.list_value_length(array).to_pylist())


def _maps(array: pa.Array) -> list[Any]:
    """As pairs, since keys need be neither text nor different."""
    offsets = array.offsets.to_pylist()
    first = offsets[0] if offsets else 0
    keys, items = (side.slice(first, offsets[-1] - first) for side in (array.keys, array.items))
    pairs = list(zip(_json_values(keys), _json_values(items), strict=True))
    return [
        [[key, value] for key, value in pairs[start - first : end - first]] if is_valid else None
        for start, end, is_valid in zip(offsets, offsets[1:], array.is_valid().to_pylist(), strict=False)
    ]


def _dictionaries(array: pa.Array) -> list[Any]:
    values = _json_values(array.dictionary)
    return _each(values.__getitem__, array.indices.to_pylist())


def _runs(array: pa.Array) -> list[Any]:
    values = _json_values(array.values)
    return [values[position] for position in expanded_positions(array)]


def _unions(array: pa.Array) -> list[Any]:
    children = [_json_values(array.field(i)) for i in range(array.type.num_fields)]
    return [children[child][position] for child, position in union_positions(array)]


def _is_text(found: pa.DataType) -> bool:
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or found == pa.string_view())


def _is_list(found: pa.DataType) -> bool:
    t = pa.types
    return any(
        is_type(found)
        for is_type in (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view)
    )


def _is_binary(found: pa.DataType) -> bool:
    t = pa.types
    return any(is_type(found) for is_type in (t.is_binary, t.is_large_binary, t.is_fixed_size_binary, t.is_binary_view))


_BY_TYPE: list[tuple[Callable[[pa.DataType], bool], Callable[[pa.Array], list[Any]]]] = [
    (pa.types.is_floating, _finite_floats),
    (pa.types.is_decimal, _decimals),
    (pa.types.is_timestamp, _timestamps),
    (pa.types.is_date, _dates),
    (pa.types.is_time, _times),
    (pa.types.is_duration, _durations),
    (pa.types.is_interval, _intervals),
    (_is_binary, _bytes),
    (_is_list, _lists),
    (pa.types.is_struct, _structs),
    (pa.types.is_map, _maps),
    (pa.types.is_dictionary, _dictionaries),
    (pa.types.is_run_end_encoded, _runs),
    (pa.types.is_union, _unions),
]
