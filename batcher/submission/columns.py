"""Columns of a table as the values that the fields of requests, ids and templates take.

A value that none of them takes stays what it is: an `UnfitValue`, which the message that refuses it shows with its
type. In place of text that is not UTF-8 stands `NOT_UTF8`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.plain import storage_column
from batcher.arrow.values import float_values, json_values, text_values
from batcher.openai.parameters import float_id

#: Stands for a value of a table that can't be read as text.
NOT_UTF8 = object()


@dataclass(frozen=True, slots=True)
class UnfitValue:
    """A value of a type that has no place in a request."""

    text: str
    type: str

    def __str__(self) -> str:
        return f"{self.text} ({self.type})"


def field_values(column: pa.ChunkedArray, *, is_of_chats: bool = False) -> list[Any]:
    """The values of a column that is read into a field: what JSON has too, and decimals as the numbers they are.

    Where it `is_of_chats`, a map is an object, as Spark writes messages, and no type in it is too much.
    """
    column = storage_column(column)
    if _is_binary(column.type):
        return _binary_texts(column)
    if pa.types.is_decimal(column.type):
        # DuckDB writes 0.7 as a decimal. Not by a cast: Arrow makes it 0.7000000000000001.
        return [None if value is None else _number(value) for value in column.to_pylist()]
    if pa.types.is_floating(column.type):
        return float_values(column)
    if _is_json_type(column.type):
        maps = "lossy" if is_of_chats else None
        return _readable(lambda part: part.to_pylist(maps_as_pydicts=maps), column)
    return _readable(json_values, column) if is_of_chats and pa.types.is_nested(column.type) else _unfit(column)


def id_values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as ids: text, and integers. NaN is no id, nor is null."""
    found = column.type
    if _is_binary(found):
        return _binary_texts(column)
    if pa.types.is_floating(found):
        values = float_values(column)
        return [_float_id(value, found) if value is not None else None for value in values]
    if pa.types.is_decimal(found):
        return [None if value is None else _decimal_id(value) for value in column.to_pylist()]
    if pa.types.is_integer(found):
        return column.to_pylist()  # type: ignore[no-any-return]
    if pa.types.is_boolean(found) or pa.types.is_nested(found) or found == pa.bool8():
        return _unfit(column)
    return _readable(text_values, column)


def template_values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as text for a template. Bytes are read as UTF-8."""
    return _binary_texts(column) if _is_binary(column.type) else _readable(text_values, column)


def bad_positions(name: str, values: Sequence[Any]) -> dict[int, str]:
    """The positions of values that are not UTF-8, with the column's name."""
    if NOT_UTF8 not in values:
        return {}
    return {position: name for position, value in enumerate(values) if value is NOT_UTF8}


def without_bad_text(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """`table` with values that are not UTF-8 made null, and the positions of their rows with the column's name."""
    bad: dict[int, str] = {}
    for index, field in enumerate(table.schema):
        column = table.column(index)
        if _is_text_valid(column):
            continue
        # Taken, as a slice keeps all elements of its lists.
        is_bad = [not _is_text_valid(column.take(pa.array([position]))) for position in range(len(column))]
        bad |= {position: field.name for position, is_one in enumerate(is_bad) if is_one}
        kept = pa.array([None if is_one else position for position, is_one in enumerate(is_bad)], pa.int64())
        table = table.set_column(index, field, column.take(kept))
    return table, bad


def _is_text_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as exc:
        # A time beyond midnight is odd as well, but can be read.
        return "UTF8" not in str(exc)
    return True


def _is_binary(found: pa.DataType) -> bool:
    t = pa.types
    return bool(t.is_binary(found) or t.is_large_binary(found) or t.is_fixed_size_binary(found))


def _is_json_type(found: pa.DataType) -> bool:
    t = pa.types
    if t.is_nested(found):
        return all(_is_json_type(found.field(i).type) for i in range(found.num_fields))
    is_text = t.is_string(found) or t.is_large_string(found)
    return bool(is_text or t.is_integer(found) or t.is_boolean(found) or t.is_null(found) or t.is_float64(found))


def _binary_texts(column: pa.ChunkedArray) -> list[Any]:
    # Unchecked: what is not UTF-8 is found when it is read.
    return _readable(
        lambda part: pc.cast(pc.cast(part, pa.large_binary()), pa.large_string(), safe=False).to_pylist(), column
    )


def _readable(read: Callable[[pa.ChunkedArray], list[Any]], column: pa.ChunkedArray) -> list[Any]:
    """What `read` makes of the column; row by row where it holds text that is not UTF-8."""
    try:
        return read(column)
    except UnicodeDecodeError:
        return [_readable_row(read, column.slice(position, 1)) for position in range(len(column))]


def _readable_row(read: Callable[[pa.ChunkedArray], list[Any]], row: pa.ChunkedArray) -> Any:
    try:
        return read(row)[0]
    except UnicodeDecodeError:
        return NOT_UTF8


def _unfit(column: pa.ChunkedArray) -> list[Any]:
    texts = _readable(text_values, column)
    return [UnfitValue(text, str(column.type)) if type(text) is str else text for text in texts]


def _number(value: Decimal) -> int | float:
    return int(value) if value == value.to_integral_value() else float(value)


def _decimal_id(value: Decimal) -> str:
    return format(value.to_integral_value() if value == value.to_integral_value() else value, "f")


def _float_id(value: float, found: pa.DataType) -> str | UnfitValue | None:
    try:
        return float_id(value)
    except ValueError:
        return UnfitValue(str(value), str(found))
