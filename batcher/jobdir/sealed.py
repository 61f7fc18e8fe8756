"""Parquet files that show by themselves whether they are whole, down to the last bit.

Parquet's page checksums cover what is in the pages, and nothing covers headers and footer: of all single bits of a
small result file, two changed its values when they were flipped and no reader noticed. A sealed file has two CRC-32
more, of what lies before its footer and of the footer, in a value of the footer's own metadata:

    batcher.seal = "crc32:<8 hex digits, body>:<8 hex digits, footer with these 16 digits as zeros>"

Any Parquet reader reads it as it is. The footer is checked without reading the rest, so that counts can be trusted.

What the disk refuses is a StorageError, and trying again may help; CorruptFileError is only for bytes that are wrong,
or not there at all.
"""

import base64
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from batcher.errors import CorruptFileError
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.store import Store, reason

_SEAL_KEY = b"batcher.seal"
_MARK = b"crc32:"
_ZEROS = b"00000000:00000000"
_MAGIC = b"PAR1"
#: The footer's length in four bytes, then the magic.
_TAIL_SIZE = 8
#: Bytes read at once in the hope that they hold the footer.
_GUESS_SIZE = 1 << 16


class MissingFileError(CorruptFileError):
    """The file is gone. That is no damage where others delete what they need no more."""


def seal(table: pa.Table, metadata: Mapping[bytes, bytes] | None = None) -> bytearray:
    """The bytes of a sealed file holding `table`, with `metadata` in its footer."""
    tagged = table.replace_schema_metadata(dict(metadata or {}))
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, tagged.schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(tagged)
        writer.add_key_value_metadata({_SEAL_KEY: _MARK + _ZEROS})
    data = bytearray(sink.getvalue())
    start = _footer_start(data[-_TAIL_SIZE:], size=len(data))
    position = _seal_position(data[start:])
    assert position is not None
    sums = b"%08x:%08x" % (zlib.crc32(memoryview(data)[:start]), zlib.crc32(memoryview(data)[start:]))
    data[start + position : start + position + len(sums)] = sums
    return data


def read_table(path: Path, columns: Sequence[str] | None = None, *, store: Store = LOCAL) -> pa.Table:
    """The table of a sealed file after checking every bit, its types as they were written.

    With `columns` only these, with Parquet's types. Raises CorruptFileError for a file that is not whole, or is gone
    (MissingFileError), and another StorageError for one that can't be read.
    """
    if columns is not None:
        return _read_checked(path, lambda file: _read_file(file, columns), store)
    return _read_checked(path, lambda file: _as_written(_read_file(file), _written_schema(file)), store)


def read_columns(path: Path, names: Sequence[str], *, store: Store = LOCAL) -> pa.Table:
    """Those of these columns that the file has, in their order, their types as they were written. Raises likewise."""

    def read(file: pq.ParquetFile) -> pa.Table:
        schema = _written_schema(file)
        found = [name for name in names if name in schema.names]
        # A point in a name is none to Parquet, which may read more for it, but never less.
        table = _read_file(file, found)
        return _as_written(table.select(found), pa.schema([schema.field(name) for name in found]))

    return _read_checked(path, read, store)


def _read_checked(path: Path, read: Callable[[pq.ParquetFile], pa.Table], store: Store) -> pa.Table:
    """What `read` reads of a file that is whole. Raises as `read_table`."""
    data = _read(path, store)
    try:
        start = _footer_start(data[-_TAIL_SIZE:], size=len(data))
        body_sum = _check_footer(data[start:])
        if zlib.crc32(memoryview(data)[:start]) != body_sum:
            raise ValueError("the checksum of its content is wrong")
        return read(pq.ParquetFile(pa.BufferReader(data)))
    except (ValueError, OSError, pa.ArrowException) as exc:
        raise CorruptFileError(f"{path}: cannot read: {exc}") from exc


def read_metadata(path: Path, *, store: Store = LOCAL) -> dict[bytes, bytes]:
    """The metadata in the footer of a sealed file, after checking the footer. Reads nothing else. Raises likewise."""
    size, tail = _read_tail(path, store, _GUESS_SIZE)
    try:
        start = _footer_start(tail[-_TAIL_SIZE:], size=size)
        if size - start > len(tail):
            size, tail = _read_tail(path, store, size - start)
        footer = tail[start - size :]
        _check_footer(footer)
        # No footer knows where it begins, so it does as well behind nothing but the magic.
        return dict(pq.read_metadata(pa.BufferReader(_MAGIC + footer)).metadata)
    except (ValueError, OSError, pa.ArrowException) as exc:
        raise CorruptFileError(f"{path}: cannot read: {exc}") from exc


def _footer_start(tail: bytes | bytearray, *, size: int) -> int:
    """Where the footer begins in a file of `size` bytes that ends with `tail`. Raises ValueError for no Parquet."""
    if not size:
        raise ValueError("it is empty")
    if len(tail) < _TAIL_SIZE or tail[-len(_MAGIC) :] != _MAGIC:
        raise ValueError("it does not end as a Parquet file does")
    start = size - _TAIL_SIZE - int.from_bytes(tail[-_TAIL_SIZE : -len(_MAGIC)], "little")
    if start < len(_MAGIC):
        raise ValueError("its footer is larger than the file")
    return start


def _seal_position(footer: bytes | bytearray) -> int | None:
    """Where the digits of the seal begin in the footer."""
    # Names and statistics of columns, which can hold any text, come before the metadata.
    found = footer.rfind(_SEAL_KEY)
    mark = footer.find(_MARK, found)
    return None if found < 0 or mark < 0 else mark + len(_MARK)


def _check_footer(footer: bytes) -> int:
    """Check the footer (with the bytes behind it) and return the checksum that the body should have, or ValueError."""
    position = _seal_position(footer)
    digits = b"" if position is None else footer[position : position + len(_ZEROS)]
    body, colon, own = digits.partition(b":")
    if position is None or len(body) != 8 or len(own) != 8 or not colon:
        raise ValueError("it has no seal of Batcher")
    unsealed = footer[:position] + _ZEROS + footer[position + len(_ZEROS) :]
    if zlib.crc32(unsealed) != int(own, 16):
        raise ValueError("the checksum of its footer is wrong")
    return int(body, 16)


def _read_file(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    # In this thread: for files of this size it is faster, and pyarrow's own ones can end a process with SIGABRT
    # that has done its work (apache/arrow#34314).
    return file.read(columns, use_threads=False)


def _written_schema(file: pq.ParquetFile) -> pa.Schema:
    """The schema of the table that was written into a file."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(file.metadata.metadata[b"ARROW:schema"]))).remove_metadata()


def _as_written(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with the types it was written with: Parquet knows no seconds, and gives them back as milliseconds."""
    table = table.replace_schema_metadata(None)
    return table if table.schema.equals(schema) else table.cast(schema)


def _read(path: Path, store: Store) -> bytes:
    try:
        return store.read(path)
    except FileNotFoundError as exc:
        raise _missing(path, exc) from exc


def _read_tail(path: Path, store: Store, num_bytes: int) -> tuple[int, bytes]:
    """The size of a file and its last bytes, all of them where it has fewer."""
    try:
        return store.tail(path, num_bytes)
    except FileNotFoundError as exc:
        raise _missing(path, exc) from exc


def _missing(path: Path, exc: FileNotFoundError) -> MissingFileError:
    return MissingFileError(f"{path}: cannot read: {reason(exc)}")
