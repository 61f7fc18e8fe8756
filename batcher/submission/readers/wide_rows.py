"""Record batches cut by what their rows take once each value is written out.

A dictionary holds a value once, however many rows have it: a file of a few kB can hold rows of gigabytes. So values
stay in their dictionaries until a piece is cut that can be held.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

#: Of the rows of a piece, about this much is in memory at once.
PIECE_BYTES = 8 << 20

#: Bytes of each value of an array, or of all of them where they are equally large.
_Sizes: TypeAlias = "pa.Int64Array | int"


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a batch and their bytes, dictionaries written out. One that `is_long` is a row too long."""

    rows: pa.RecordBatch
    num_bytes: int
    is_long: bool = False

    def emptied(self) -> "Piece":
        """As many rows, of nulls."""
        arrays = [pa.nulls(self.rows.num_rows, field.type) for field in self.rows.schema]
        schema = pa.schema([field.with_nullable(True) for field in self.rows.schema])
        return replace(self, rows=pa.RecordBatch.from_arrays(arrays, schema=schema))


def cut(batch: pa.RecordBatch, *, max_row_bytes: int) -> Iterator[Piece]:
    """The rows of a batch in pieces of about `PIECE_BYTES`. A row of over `max_row_bytes` is a piece of its own."""
    if not batch.num_rows:
        return
    sizes = _row_sizes(batch)
    if isinstance(sizes, int):
        sizes = pa.repeat(pa.scalar(sizes, pa.int64()), batch.num_rows)
    total = pc.sum(sizes).as_py()
    if total <= min(PIECE_BYTES, max_row_bytes):
        yield Piece(batch, total)
        return
    start = held = 0
    is_long = False
    for position, size in enumerate(sizes.to_pylist()):
        if position > start and (is_long or size > max_row_bytes or held + size > PIECE_BYTES):
            yield Piece(batch.slice(start, position - start), held, is_long)
            start, held = position, 0
        held += size
        is_long = size > max_row_bytes
    yield Piece(batch.slice(start), held, is_long)


def _row_sizes(batch: pa.RecordBatch) -> _Sizes:
    total: _Sizes = 0
    for column in batch.columns:
        total = _add(total, _value_sizes(column))
    return total


def _value_sizes(array: pa.Array) -> _Sizes:
    type_ = array.type
    t = pa.types
    if isinstance(array, pa.ExtensionArray):
        return _value_sizes(array.storage)
    if t.is_dictionary(type_):
        sizes = _value_sizes(array.dictionary)
        return sizes if isinstance(sizes, int) else _or_0(sizes.take(array.indices))
    if t.is_string(type_) or t.is_binary(type_) or t.is_large_string(type_) or t.is_large_binary(type_):
        return _or_0(pc.cast(pc.binary_length(array), pa.int64()))
    if t.is_struct(type_):
        total: _Sizes = 0
        for i in range(type_.num_fields):
            total = _add(total, _value_sizes(array.field(i)))
        return total
    if t.is_list(type_) or t.is_large_list(type_) or t.is_map(type_):
        return _list_sizes(array)
    # What holds each of its values itself, in about as many bytes.
    return -(-array.nbytes // max(1, len(array)))


def _list_sizes(array: pa.Array) -> _Sizes:
    starts, ends = array.offsets[:-1], array.offsets[1:]
    if pa.types.is_map(array.type):
        items = _add(_value_sizes(array.keys), _value_sizes(array.items))
    else:
        items = _value_sizes(array.values)
    lengths = pc.cast(pc.subtract(ends, starts), pa.int64())
    if isinstance(items, int):
        return pc.multiply(lengths, max(1, items))
    sums = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(items)])
    # A byte more for each item: a list of empty texts is not nothing.
    return pc.add(lengths, pc.subtract(sums.take(ends), sums.take(starts)))


def _add(a: _Sizes, b: _Sizes) -> _Sizes:
    return a + b if isinstance(a, int) and isinstance(b, int) else pc.add(a, b)


def _or_0(sizes: pa.Int64Array) -> pa.Int64Array:
    return pc.fill_null(sizes, 0)
