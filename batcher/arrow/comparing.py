"""Columns of any Arrow type compared with literals and with each other, as the conditions of a user do it.

Numbers are compared exactly, whatever their types: integers and decimals as such, floats in their own precision, so
that 0.1 is found in a column of 32 bits. Dates, times and durations are compared with texts of ISO 8601. What has no
order of its own (bytes, UUIDs, lists, maps, structs) is compared by its text, see `values`, and only for equality.
Null is as in SQL: a comparison with it is null.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.plain import plain_table, storage_column
from batcher.arrow.times import TICKS_PER_SECOND, date_ticks, duration_ticks, time_ticks, timestamp_ticks
from batcher.arrow.values import text_column

#: A value that somebody wrote: a text, a number, true or false.
Literal = str | Decimal | bool

#: Digits that Arrow's largest decimals have.
_MAX_DIGITS = 76
_SMALL_DIGITS = 38
#: Of ten. Doubles end before.
_MAX_EXPONENT = 400

_FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal,
    "<>": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


class MisfitError(ValueError):
    """Values of these types can't be compared so. The message says why, without a place."""


class _Kind(Enum):
    TEXT = "text"
    NUMBER = "a number"
    BOOLEAN = "true or false"
    DATE = "a date"
    TIME = "a time"
    TIMESTAMP = "a moment"
    DURATION = "a duration"
    OTHER = "something else"


#: What a literal for columns of a kind looks like, and what reads it: its ticks for a column's type, None for no such
#: text.
_TIMES: dict[_Kind, tuple[str, Callable[[str, pa.DataType], Decimal | None]]] = {
    _Kind.DATE: ("'2026-01-31'", lambda text, found: date_ticks(text, _day_ticks(found))),
    _Kind.TIME: ("'13:05:00'", lambda text, found: time_ticks(text, TICKS_PER_SECOND[found.unit])),
    _Kind.TIMESTAMP: (
        "'2026-01-31' or '2026-01-31T13:05:00+01:00'",
        lambda text, found: timestamp_ticks(text, TICKS_PER_SECOND[found.unit], zone=found.tz),
    ),
    _Kind.DURATION: ("'P1DT2H3M4.5S'", lambda text, found: duration_ticks(text, TICKS_PER_SECOND[found.unit])),
}


def comparable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same values in a type that this module's functions take: without dictionaries, views and the like."""
    column = plain_table(pa.table({"": column})).column(0)
    if column.type == pa.bool8():
        return pc.not_equal(storage_column(column), 0)
    if isinstance(column.type, pa.JsonType):
        return storage_column(column)
    return column.cast(pa.string()) if pa.types.is_null(column.type) else column


def compare(column: pa.ChunkedArray, operator: str, literal: Literal) -> pa.ChunkedArray:
    """`column operator literal`, of booleans and nulls. Raises MisfitError."""
    aligned, values = _aligned(column, [literal], is_ordered=operator not in ("=", "<>"))
    return _FUNCTIONS[operator](aligned, values[0])


def is_among(column: pa.ChunkedArray, literals: Sequence[Literal]) -> pa.ChunkedArray:
    """Whether each value is one of the literals; null of null. Raises MisfitError."""
    aligned, values = _aligned(column, literals, is_ordered=False)
    return pc.if_else(pc.is_valid(aligned), pc.is_in(aligned, value_set=values), pa.scalar(None, pa.bool_()))


def compare_columns(left: pa.ChunkedArray, operator: str, right: pa.ChunkedArray) -> pa.ChunkedArray:
    """`left operator right`. Raises MisfitError."""
    kinds = {_kind(left.type), _kind(right.type)}
    if kinds == {_Kind.NUMBER}:
        left, right = _as_numbers(left, right)
    elif len(kinds) > 1 or _Kind.OTHER in kinds:
        if operator not in ("=", "<>"):
            raise MisfitError(f"values of {left.type} and {right.type} have no order; = and <> compare their texts")
        left, right = _texts(left), _texts(right)
    try:
        return _FUNCTIONS[operator](left, right)
    except pa.ArrowException as exc:
        raise MisfitError(f"values of {left.type} and {right.type} can't be compared") from exc


def matches(column: pa.ChunkedArray, pattern: str, *, ignore_case: bool = False) -> pa.ChunkedArray:
    """Whether the text of each value is like the pattern: `%` stands for anything, `_` for a character."""
    return pc.match_like(_texts(column), pattern, ignore_case=ignore_case)


def truth(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of booleans as it is. Raises MisfitError for another."""
    if not pa.types.is_boolean(column.type):
        raise MisfitError(f"is {column.type}, and true or false was expected; compare it with something")
    return column


def lengths(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The characters of texts, the elements of lists and maps. Raises MisfitError for another column."""
    found = column.type
    if pa.types.is_map(found) or pa.types.is_list(found) or pa.types.is_large_list(found):
        counts = [pc.list_value_length(_entries(chunk)) for chunk in column.chunks]
        return pa.chunked_array(counts, counts[0].type if counts else pa.int32())
    if _kind(found) is not _Kind.TEXT:
        raise MisfitError(f"is {found}, which has no length")
    return pc.utf8_length(column)


def texts_by(change: Callable[[Any], Any], column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column of texts that Arrow's function makes of it. Raises MisfitError for no column of text."""
    if _kind(column.type) is not _Kind.TEXT:
        raise MisfitError(f"is {column.type} and no text")
    return change(column)


def member(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """The field of structs, or the value of maps, that has this name. Raises MisfitError, which names what there is."""
    found = column.type
    if pa.types.is_struct(found):
        names = [found.field(i).name for i in range(found.num_fields)]
        if name not in names:
            raise MisfitError(f"has no {name!r}; it has: {', '.join(names)}")
        return comparable(pc.struct_field(column, [names.index(name)]))
    if pa.types.is_map(found) and pa.types.is_string(found.key_type):
        return comparable(pc.map_lookup(column, pa.scalar(name), "first"))
    raise MisfitError(f"is {found}, which has no fields")


def _kind(found: pa.DataType) -> _Kind:
    t = pa.types
    if isinstance(found, pa.BaseExtensionType):
        return _Kind.OTHER
    kinds: tuple[tuple[Callable[[pa.DataType], bool], _Kind], ...] = (
        (t.is_string, _Kind.TEXT),
        (t.is_large_string, _Kind.TEXT),
        (t.is_integer, _Kind.NUMBER),
        (t.is_floating, _Kind.NUMBER),
        (t.is_decimal, _Kind.NUMBER),
        (t.is_boolean, _Kind.BOOLEAN),
        (t.is_date, _Kind.DATE),
        (t.is_time, _Kind.TIME),
        (t.is_timestamp, _Kind.TIMESTAMP),
        (t.is_duration, _Kind.DURATION),
    )
    return next((kind for is_type, kind in kinds if is_type(found)), _Kind.OTHER)


def _aligned(
    column: pa.ChunkedArray, literals: Sequence[Literal], *, is_ordered: bool
) -> tuple[pa.ChunkedArray, pa.Array]:
    """Column and literals in one type that Arrow compares."""
    kind = _kind(column.type)
    if kind is _Kind.BOOLEAN:
        if is_ordered or not all(isinstance(each, bool) for each in literals):
            raise MisfitError("it is true or false; write = true, or = false")
        return column, pa.array(literals, pa.bool_())
    if kind is _Kind.NUMBER:
        return _with_numbers(column, [_number(each, column.type) for each in literals])
    for each in literals:
        if not isinstance(each, str):
            raise MisfitError(f"it is {column.type}; write the value in quotes: '{_shown(each)}'")
    texts = [str(each) for each in literals]
    if kind in _TIMES:
        return _with_times(column, kind, texts)
    if is_ordered and kind is _Kind.OTHER:
        raise MisfitError(f"values of {column.type} have no order; = and <> compare their texts")
    found = _texts(column)
    return found, pa.array(texts, found.type)


def _number(literal: Literal, found: pa.DataType) -> Decimal:
    if isinstance(literal, Decimal):
        return _bounded(literal)
    try:
        number = Decimal(literal) if isinstance(literal, str) else None
    except ArithmeticError:
        number = None
    if number is None or not number.is_finite():
        raise MisfitError(f"it is {found}, and {_shown(literal)!r} is no number")
    return _bounded(number)


def _bounded(number: Decimal) -> Decimal:
    if abs(number.adjusted()) > _MAX_EXPONENT:
        raise MisfitError(f"{number} is beyond all numbers in columns")
    return number


def _shown(literal: Literal) -> str:
    return str(literal).lower() if isinstance(literal, bool) else str(literal)


def _with_times(column: pa.ChunkedArray, kind: _Kind, texts: Sequence[str]) -> tuple[pa.ChunkedArray, pa.Array]:
    example, read = _TIMES[kind]
    ticks = []
    for text in texts:
        found = read(text, column.type)
        if found is None:
            raise MisfitError(f"it is {column.type}, and {text!r} is not {kind.value}; write it as {example}")
        ticks.append(found)
    storage = pa.int32() if pa.types.is_date32(column.type) or pa.types.is_time32(column.type) else pa.int64()
    return _with_numbers(column.cast(storage), ticks)


def _day_ticks(found: pa.DataType) -> int:
    return 1 if pa.types.is_date32(found) else 86_400_000


def _with_numbers(column: pa.ChunkedArray, numbers: Sequence[Decimal]) -> tuple[pa.ChunkedArray, pa.Array]:
    found = column.type
    if pa.types.is_floating(found):
        values = pa.array([float(number) for number in numbers], found)
        # Arrow has no comparison of floats of 16 bits.
        return (column.cast(pa.float32()), values.cast(pa.float32())) if found == pa.float16() else (column, values)
    if pa.types.is_integer(found) and all(number == number.to_integral_value() for number in numbers):
        try:
            return column, pa.array([int(number) for number in numbers], found)
        except (OverflowError, pa.ArrowInvalid):
            pass  # Beyond what such integers can be: compared as decimals.
    type_ = _decimal_type([_digits(found), *map(_digits_of, numbers)])
    return column.cast(type_), pa.array(numbers, type_)


def _as_numbers(left: pa.ChunkedArray, right: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Two columns of numbers in one type."""
    if pa.types.is_floating(left.type) or pa.types.is_floating(right.type):
        return left.cast(pa.float64(), safe=False), right.cast(pa.float64(), safe=False)
    if left.type == right.type and pa.types.is_integer(left.type):
        return left, right
    type_ = _decimal_type([_digits(left.type), _digits(right.type)])
    return left.cast(type_), right.cast(type_)


def _digits(found: pa.DataType) -> tuple[int, int]:
    """The most digits that numbers of a type have before and behind the point."""
    if pa.types.is_decimal(found):
        return found.precision - found.scale, found.scale
    return len(str(2**found.bit_width)), 0


def _digits_of(number: Decimal) -> tuple[int, int]:
    _, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    return max(len(digits) + exponent, 0), max(-exponent, 0)


def _decimal_type(digits: Sequence[tuple[int, int]]) -> pa.DataType:
    """The decimals that hold numbers of so many digits before and behind the point."""
    before, behind = (max(sides) for sides in zip(*digits, strict=True))
    if before + behind > _MAX_DIGITS:
        raise MisfitError(f"numbers of {before + behind} digits can't be compared, only those of {_MAX_DIGITS}")
    make = pa.decimal128 if before + behind <= _SMALL_DIGITS else pa.decimal256
    return make(before + behind, behind)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column if _kind(column.type) is _Kind.TEXT else text_column(column)


def _entries(chunk: pa.Array) -> pa.Array:
    """Maps as the lists of pairs that they are."""
    if not pa.types.is_map(chunk.type):
        return chunk
    return chunk.cast(pa.list_(pa.struct([chunk.type.key_field, chunk.type.item_field])))
