"""Parquet -> batches of rows."""

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batcher.arrow.values import unique_names
from batcher.errors import InputError, first_line
from batcher.submission.readers.raw_rows import Origin, TableBatch

#: What every Parquet file begins with.
MAGIC = b"PAR1"
#: Of the rows of a file, about this much is in memory at once.
_TABLE_BYTES = 8 << 20
_MAX_TABLE_ROWS = 4096
#: Parquet's interval: months, days and milliseconds, each without a sign.
_INTERVAL = struct.Struct("<III")


def read_tables(file: BinaryIO, name: str) -> Iterator[TableBatch]:
    """The rows of a file, in bounded memory. Messages call it `name`. Of columns that are called `x`, the second is
    `x_2`.
    """
    try:
        # Buffered: without it, a column of a row group is held whole.
        parquet = pq.ParquetFile(file, buffer_size=1 << 20)
        names = parquet.schema_arrow.names
    except pa.ArrowNotImplementedError as exc:
        # pyarrow says neither which column it is, nor anything else of the file.
        raise InputError(f"{name}: {_unreadable_type(exc, name)}") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{name}: the name of a column is not UTF-8; write the file again with another") from exc
    except (OSError, pa.ArrowException) as exc:
        raise InputError(
            f"{name}: cannot be read as Parquet: {first_line(exc)}; it may be cut short: write or copy it again"
        ) from exc
    names = unique_names(names)
    intervals = _intervals(parquet)
    first = 1
    for batch in _batches(parquet, name):
        if batch.num_rows:
            numbers = range(first, first + batch.num_rows)
            first += batch.num_rows
            table = pa.Table.from_batches([batch]).rename_columns(names)
            for position in intervals:
                table = table.set_column(position, names[position], _read_intervals(table.column(position)))
            yield TableBatch(Origin(name, ": row ", numbers), table)


def _batches(parquet: pq.ParquetFile, name: str) -> Iterator[pa.RecordBatch]:
    try:
        yield from parquet.iter_batches(batch_size=_rows_at_once(parquet.metadata))
    except pa.ArrowInvalid as exc:
        column = _unreadable_column(parquet)
        if column is None:
            raise
        raise InputError(
            f"{name}: column {column!r} cannot be read by pyarrow {pa.__version__}: {first_line(exc)}; leave it out, "
            "or write it again with another type (lists of any length in place of arrays of a fixed one)"
        ) from exc


def _unreadable_column(parquet: pq.ParquetFile) -> str | None:
    """The first column that cannot be read alone, where others can."""
    bad = []
    for name in parquet.schema_arrow.names:
        try:
            for _ in parquet.iter_batches(batch_size=_rows_at_once(parquet.metadata), columns=[name]):
                pass
        except (OSError, pa.ArrowException):
            bad.append(name)
    return bad[0] if bad and len(bad) < len(parquet.schema_arrow.names) else None


def _intervals(parquet: pq.ParquetFile) -> list[int]:
    """The positions of columns of Parquet's own intervals, as DuckDB writes them. pyarrow gives them as bytes."""
    leaves = (parquet.schema.column(i) for i in range(len(parquet.schema.names)))
    paths = {leaf.path for leaf in leaves if leaf.converted_type == "INTERVAL"}
    is_bytes = [field.type == pa.binary(_INTERVAL.size) for field in parquet.schema_arrow]
    return [i for i, name in enumerate(parquet.schema_arrow.names) if name in paths and is_bytes[i]]


def _read_intervals(column: pa.ChunkedArray) -> pa.Array:
    parts = (None if value is None else _INTERVAL.unpack(value) for value in column.to_pylist())
    values = [None if part is None else (part[0], part[1], part[2] * 1_000_000) for part in parts]
    return pa.array(values, pa.month_day_nano_interval())


def _unreadable_type(exc: pa.ArrowNotImplementedError, name: str) -> str:
    problem = f"holds a type that pyarrow {pa.__version__} cannot read: {first_line(exc)}"
    if "64 bits" not in str(exc):
        return f"{problem}; write the file again with another type"
    # Polars is what writes these.
    program = (
        f"import polars as pl; pl.read_parquet({name!r}).with_columns(pl.col(pl.Int128, pl.UInt128).cast(pl.String))"
        ".write_parquet('readable.parquet')"
    )
    return f'{problem}; write such columns as text or with 64 bits, for instance with Polars: python3 -c "{program}"'


def _rows_at_once(metadata: Any) -> int:
    """How many rows to hold, by the group with the largest rows."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size // group.num_rows for group in groups if group.num_rows), default=0)
    return max(1, min(_MAX_TABLE_ROWS, _TABLE_BYTES // max(1, row_bytes)))
