"""Parquet -> batches of rows.

What a file of a few kB holds can take gigabytes: values that many rows share are in it once, and so is a run of equal
ones. So text is read with its dictionaries and cut into pieces before it is written out (`wide_rows`), and a row group
that could not be held is refused by what the footer says of it. Pages and dictionaries are held whole, as whoever wrote
the file made them: 1 MB each by most libraries.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from batcher.arrow.plain import plain_table, plain_type
from batcher.arrow.values import unique_names
from batcher.errors import InputError, first_line
from batcher.submission.readers.bounds import Bounds
from batcher.submission.readers.raw_rows import Origin, TableBatch, check_num_columns, too_long
from batcher.submission.readers.wide_rows import PIECE_BYTES, cut

#: What every Parquet file begins with.
MAGIC = b"PAR1"
_MAX_TABLE_ROWS = 4096
#: How a text may be stored that pyarrow can leave in its dictionaries. It reads others, but can't make these of them.
_IN_DICTIONARIES = frozenset({"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"})
#: Stored as what differs from the text before, which may be small for a large one: fewer rows are held.
_BY_DIFFERENCE = "DELTA_BYTE_ARRAY"
_MAX_ROWS_BY_DIFFERENCE = 512
#: A column of a row group that takes less when it is unpacked is nobody's concern.
_FREE_COLUMN_BYTES = 256 << 20
#: Bytes of a value that is not text, at most, but for arrays of a fixed length.
_VALUE_BYTES = 8
#: Parquet's interval: months, days and milliseconds, each without a sign.
_INTERVAL = struct.Struct("<III")


def read_tables(file: BinaryIO, name: str, *, bounds: Bounds) -> Iterator[TableBatch]:
    """The rows of a file, in bounded memory. Messages call it `name`. Of columns that are called `x`, the second is
    `x_2`. A row that is longer than a line may be is broken.

    Raises InputError for a file that can't be read or held.
    """
    parquet, schema = _open(file, name)
    _check_groups(parquet, name, bounds)
    names = unique_names(schema.names)
    intervals = _intervals(parquet)
    first = 1
    num_bytes = 0
    for batch in _batches(parquet, name):
        for piece in cut(batch, max_row_bytes=bounds.max_line_bytes):
            bounds.checkpoint()
            num_bytes += piece.num_bytes
            bounds.limits.check_size(name, num_bytes)
            rows = (piece.emptied() if piece.is_long else piece).rows
            numbers = range(first, first + rows.num_rows)
            first += rows.num_rows
            table = _written_out(rows, schema).rename_columns(names)
            for position in intervals:
                table = table.set_column(position, names[position], _read_intervals(table.column(position)))
            broken = {0: too_long(bounds.max_line_bytes)} if piece.is_long else {}
            yield TableBatch(Origin(name, ": row ", numbers), table, broken=broken)


def _open(file: BinaryIO, name: str) -> tuple[pq.ParquetFile, pa.Schema]:
    """The file, whose texts come in dictionaries where that can be, and its schema without these."""
    try:
        metadata = pq.read_metadata(file)
        check_num_columns(name, metadata.num_columns)
        texts = [
            leaf.path
            for i, leaf in enumerate(_leaves(metadata))
            if _is_text(leaf) and _encodings(metadata, i) <= _IN_DICTIONARIES
        ]
        parquet = pq.ParquetFile(
            file,
            metadata=metadata,
            read_dictionary=texts,
            # As Arrow's JSON, a text would be written out.
            arrow_extensions_enabled=False,
            # Without buffers, and with those that are filled before, a column of a row group is held whole.
            buffer_size=1 << 20,
            pre_buffer=False,
        )
        schema = pq.ParquetFile(file, metadata=metadata).schema_arrow
        assert len(schema.names) == len(parquet.schema_arrow.names), "looks at the names, which may be no UTF-8"
        return parquet, schema
    except pa.ArrowNotImplementedError as exc:
        # pyarrow says neither which column it is, nor anything else of the file.
        raise InputError(f"{name}: {_unreadable_type(exc, name)}") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{name}: the name of a column is not UTF-8; write the file again with another") from exc
    except (OSError, pa.ArrowException) as exc:
        raise InputError(
            f"{name}: cannot be read as Parquet: {first_line(exc)}; it may be cut short: write or copy it again"
        ) from exc


def _written_out(rows: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """The rows with the types of `schema`, but plain ones where it has dictionaries."""
    table = pa.Table.from_batches([rows])
    for position, field in enumerate(schema):
        if table.field(position).type == field.type:
            continue
        column = plain_table(table.select([position])).column(0)
        if isinstance(field.type, pa.BaseExtensionType):
            storages = column.cast(field.type.storage_type).chunks
            chunks = [pa.ExtensionArray.from_storage(field.type, storage) for storage in storages]
            table = table.set_column(position, field, pa.chunked_array(chunks, field.type))
        else:
            plain = plain_type(field.type)
            table = table.set_column(position, field.with_type(plain), column.cast(plain))
    return table


def _leaves(metadata: pq.FileMetaData) -> list[pq.ColumnSchema]:
    """The columns of values, those of nested columns too."""
    return [metadata.schema.column(i) for i in range(metadata.num_columns)]


def _is_text(leaf: pq.ColumnSchema) -> bool:
    """Whether a leaf holds texts or bytes of any length. (Decimals may, but not in dictionaries.)"""
    return bool(leaf.physical_type == "BYTE_ARRAY" and leaf.logical_type.type != "DECIMAL")


def _encodings(metadata: pq.FileMetaData, column: int) -> set[str]:
    """How the values of a column are stored, in any row group."""
    groups = range(metadata.num_row_groups)
    return {encoding for group in groups for encoding in metadata.row_group(group).column(column).encodings}


def _check_groups(parquet: pq.ParquetFile, name: str, bounds: Bounds) -> None:
    """Raise InputError for a row group that may take much memory though it is small in the file."""
    leaves = _leaves(parquet.metadata)
    for leaf in leaves:
        if leaf.length > bounds.max_line_bytes:
            raise InputError(
                f"{name}: column {leaf.path!r} has values of {leaf.length:,} bytes each, and a row may have "
                f"{bounds.max_line_bytes >> 20} MB; leave it out"
            )
    repeated = [i for i, leaf in enumerate(leaves) if leaf.max_repetition_level]
    for number in range(parquet.metadata.num_row_groups):
        bounds.checkpoint()
        group = parquet.metadata.row_group(number)
        for i in range(len(leaves)) if group.total_byte_size > _FREE_COLUMN_BYTES else repeated:
            column = group.column(i)
            num_packed = column.total_compressed_size
            num_unpacked = column.total_uncompressed_size
            if leaves[i].max_repetition_level:
                # One row may have all of these.
                num_unpacked = max(num_unpacked, column.num_values * max(_VALUE_BYTES, leaves[i].length))
            if num_unpacked > _FREE_COLUMN_BYTES and 0 < bounds.limits.max_ratio < num_unpacked / max(1, num_packed):
                raise InputError(
                    f"{name}: column {leaves[i].path!r} unpacks to more than {bounds.limits.max_ratio:,} times its "
                    f"size ({num_packed:,} bytes make {num_unpacked:,} in row group {number}); leave it out, write the "
                    "file again with smaller row groups, or allow more with --max-ratio"
                )


def _batches(parquet: pq.ParquetFile, name: str) -> Iterator[pa.RecordBatch]:
    try:
        yield from _read(parquet)
    except pa.ArrowInvalid as exc:
        column = _unreadable_column(parquet)
        if column is None:
            raise
        raise InputError(
            f"{name}: column {column!r} cannot be read by pyarrow {pa.__version__}: {first_line(exc)}; leave it out, "
            "or write it again with another type (lists of any length in place of arrays of a fixed one)"
        ) from exc


def _read(parquet: pq.ParquetFile, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """All columns, or those of these names."""
    metadata = parquet.metadata
    # pyarrow makes no batch of nested texts in dictionaries that belong to more than one row group.
    is_nested = any(_is_text(leaf) and (leaf.max_repetition_level or "." in leaf.path) for leaf in _leaves(metadata))
    groups = range(metadata.num_row_groups)
    for some in [[group] for group in groups] if is_nested else [list(groups)]:
        # In this thread, as sealed files are read.
        yield from parquet.iter_batches(
            batch_size=_rows_at_once(metadata), row_groups=some, columns=columns, use_threads=False
        )


def _unreadable_column(parquet: pq.ParquetFile) -> str | None:
    """The first column that cannot be read alone, where others can."""
    bad = []
    for name in parquet.schema_arrow.names:
        try:
            for _ in _read(parquet, [name]):
                pass
        except (OSError, pa.ArrowException):
            bad.append(name)
    return bad[0] if bad and len(bad) < len(parquet.schema_arrow.names) else None


def _intervals(parquet: pq.ParquetFile) -> list[int]:
    """The positions of columns of Parquet's own intervals, as DuckDB writes them. pyarrow gives them as bytes."""
    paths = {leaf.path for leaf in _leaves(parquet.metadata) if leaf.converted_type == "INTERVAL"}
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


def _rows_at_once(metadata: pq.FileMetaData) -> int:
    """How many rows to hold, by the group with the largest rows, and by the columns where each value is small in it."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_bytes: int = max((group.total_byte_size // group.num_rows for group in groups if group.num_rows), default=0)
    row_bytes = max(row_bytes, sum(max(_VALUE_BYTES, leaf.length) for leaf in _leaves(metadata)))
    is_by_difference = any(_BY_DIFFERENCE in _encodings(metadata, i) for i in range(metadata.num_columns))
    max_rows = _MAX_ROWS_BY_DIFFERENCE if is_by_difference else _MAX_TABLE_ROWS
    return max(1, min(max_rows, PIECE_BYTES // max(1, row_bytes)))
