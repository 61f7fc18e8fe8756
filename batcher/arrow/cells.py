"""The cells of CSV files: text without a type, and what they are as values.

A field of a request is read by what it holds: the cells of `max_tokens`, `temperature` and the like as JSON, those of
`prompt`, `custom_id`, `model`, `stop` and `suffix`, regular expressions and grammars as the text they are. A carried
column stays text in the shards and gets its type at the end of the input: integers or doubles where each of its cells
is written as such a number is, else text. So 007, 1.50, 1e5 and integers beyond 64 bits are never changed. An empty
cell is null; in a column of text, one in quotes is the empty string.
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic_core import from_json

#: Marks a field whose values are cells.
_MARK: Mapping[bytes, bytes] = {b"batcher.cells": b"1"}
_TEXT_FIELDS = frozenset(
    {"custom_id", "prompt", "model", "stop", "suffix", "grammar", "guided_grammar", "guided_regex"}
)
_BOOLEANS = {"true": True, "false": False}

_INTEGER = "^(0|-?[1-9][0-9]{0,18})$"
#: No zeros at the end but a single one, and an exponent only as programs write it: 1e5 may well be an id.
_DECIMAL = r"^-?((0|[1-9][0-9]*)\.([0-9]*[1-9]|0)|[1-9](\.[0-9]*[1-9])?e[+-](0[1-9]|[1-9][0-9]|[12][0-9][0-9]))$"
_EXACT_IN_DOUBLE = 2**53
#: With no more digits than this a decimal is exact as a double: 15 digits, and the point.
_MAX_DECIMAL_CHARS = 16


def cells_table(table: pa.Table) -> pa.Table:
    """`table`, all of text, with its columns marked as cells."""
    return table.cast(pa.schema([field.with_metadata(_MARK) for field in table.schema]))


def are_cells(field: pa.Field) -> bool:
    """Whether a column is of cells."""
    return field.metadata is not None and b"batcher.cells" in field.metadata


def cell_type(column: pa.ChunkedArray) -> pa.DataType:
    """The type of a carried column of these cells: int64, double or string; null where all are empty."""
    filled = column.filter(pc.not_equal(column, ""))
    if not len(filled):
        return pa.null()
    is_integer = pc.match_substring_regex(filled, _INTEGER)
    integers = filled.filter(is_integer)
    if len(integers):
        try:
            ends = pc.min_max(pc.cast(integers, pa.int64())).as_py().values()
        except pa.ArrowInvalid:
            return pa.string()  # Too large.
        if len(integers) == len(filled):
            return pa.int64()
        if any(abs(end) > _EXACT_IN_DOUBLE for end in ends):
            return pa.string()
    others = filled.filter(pc.invert(is_integer))
    is_decimal = pc.and_(
        pc.match_substring_regex(others, _DECIMAL), pc.less_equal(pc.utf8_length(others), _MAX_DECIMAL_CHARS)
    )
    return pa.float64() if pc.all(is_decimal).as_py() else pa.string()


def typed(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    """Cells as numbers of type `target`, empty ones null."""
    return pc.cast(pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column), target)


def field_values(field: str, texts: list[Any]) -> list[Any]:
    """The cells of a field of the request as values. The validation refuses those that are not valid."""
    if field in _TEXT_FIELDS:
        # An id or a model without a character is one that is not given.
        return texts if field == "prompt" else [text or None if isinstance(text, str) else text for text in texts]
    known: dict[Any, Any] = {}
    for text in set(texts):
        known[text] = _field_value(text) if isinstance(text, str) else text
    return [known[text] for text in texts]


def _field_value(text: str) -> Any:
    if not text:
        return None
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    try:
        return from_json(text)
    except ValueError:
        return text
