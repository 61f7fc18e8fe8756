"""Input files -> batches of raw rows, each row with its source (`file:line`, or `file: row N` for Parquet and CSV).

JSONL comes as lines of bytes, plain or compressed (.gz, .zst), from files or streams; Parquet and CSV come as Arrow
tables. What is no file (standard input, an upload) comes through `InputStream`. Everything is read front to back in
bounded memory. A file that is wrong as a whole raises InputError here; the validation says what is wrong with a row.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from batcher.errors import InputError, first_line
from batcher.submission.readers import csv_files, parquet_files
from batcher.submission.readers.bounds import NO_BOUNDS, Bounds
from batcher.submission.readers.json_lines import read_lines
from batcher.submission.readers.paths import COMPRESSED, STREAM, InputFile, expand, is_pipe
from batcher.submission.readers.raw_rows import FileValue, LineBatch, Origin, TableBatch
from batcher.submission.readers.streams import Arriving, Readable, decompressed, is_compressed

__all__ = [
    "FORMATS",
    "STDIN_NAME",
    "InputFile",
    "InputStream",
    "LineBatch",
    "NamedStream",
    "Origin",
    "ReadOptions",
    "Readable",
    "TableBatch",
    "expand",
    "file_columns",
    "read_batches",
]

#: What a file is called in messages when it is standard input.
STDIN_NAME = "<stdin>"

#: What `ReadOptions.format` can be.
FORMATS = ("jsonl", "csv", "tsv")
_TEXT_FORMATS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}

_FOREIGN = {
    b"PK\x03\x04": "is a zip file or a spreadsheet; unpack it, or save the sheet as CSV",
    b"BZh": "is compressed with bzip2; unpack it with bunzip2, or use .gz or .zst",
    b"\xfd7zX": "is compressed with xz; unpack it with unxz, or use .gz or .zst",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
    b"ARRO": "is an Arrow file; convert it to Parquet",
    b"Obj\x01": "is an Avro file; convert it to Parquet or JSONL",
}


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are read.

    `file_column` is the column that gets the path of each row's file. `format`, one of `FORMATS`, is that of files
    whose names do not say, and of streams of bytes; None: JSONL. `csv_delimiter` stands between the cells of all CSV
    and TSV files; None: comma and tab.
    """

    file_column: str | None = None
    csv_delimiter: str | None = None
    format: str | None = None


class InputStream(Protocol):
    """Input that is no file: it can be read once, front to back."""

    @property
    def name(self) -> str:
        """What messages call it. Nothing else depends on it."""
        ...

    def batches(self, options: ReadOptions, bounds: Bounds) -> Iterator[LineBatch | TableBatch]:
        """Its rows. Raises InputError, OSError and pyarrow's errors, and what `bounds.checkpoint` raises."""
        ...

    def digest(self) -> str:
        """What tells its content from another: reads what is left, so that it covers all."""
        ...


class NamedStream:
    """A stream of bytes, which holds JSONL, or what `ReadOptions.format` says. Mutable; it hashes what is read."""

    def __init__(self, stream: Readable, name: str = STDIN_NAME) -> None:
        self.name = name
        self._stream = stream
        self._hash = hashlib.sha256()
        # Another program may have left a pipe so that reading does not wait: no bytes would be taken for its end.
        with contextlib.suppress(AttributeError, OSError):
            os.set_blocking(self.fileno(), True)

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def read1(self, size: int = -1, /) -> bytes:
        """What is there, if the stream tells."""
        data: bytes = getattr(self._stream, "read1", self._stream.read)(size)
        self._hash.update(data)
        return data

    def fileno(self) -> int:
        """Of the stream. Raises AttributeError or OSError where it has none."""
        return self._stream.fileno()  # type: ignore[attr-defined,no-any-return]

    def batches(self, options: ReadOptions, bounds: Bounds) -> Iterator[LineBatch | TableBatch]:
        """See `InputStream`."""
        head = _read_head(self)
        if head == parquet_files.MAGIC:
            raise InputError(f"{self.name}: Parquet can't be read from a stream; save it as a file and name the file")
        yield from _read_text(head, self, self.name, None, options, bounds)

    def digest(self) -> str:
        """See `InputStream`."""
        while self.read(1 << 20):
            pass
        return self._hash.hexdigest()


def read_batches(
    files: Sequence[InputFile | InputStream], options: ReadOptions | None = None, bounds: Bounds = NO_BOUNDS
) -> Iterator[LineBatch | TableBatch]:
    """The rows of `files` (from `expand`), in order.

    Raises InputError for one that can't be read, unpacks to too much or has no rows, and what `bounds.checkpoint`
    raises.
    """
    options = options or ReadOptions()
    for file in files:
        shown = file.shown if isinstance(file, InputFile) else file.name
        columns = file_columns(file, options)
        is_empty = True
        try:
            for batch in _batches(file, options, bounds):
                is_empty = False
                yield _with_columns(batch, columns, options.file_column) if columns else batch
        except (OSError, pa.ArrowException) as exc:
            raise InputError(f"{shown}: cannot be read: {first_line(exc)}; check that the file is complete") from exc
        if is_empty:
            raise InputError(f"{shown}: holds no rows; give a file with at least one prompt")


def _batches(file: InputFile | InputStream, options: ReadOptions, bounds: Bounds) -> Iterator[LineBatch | TableBatch]:
    return _read_path(file, options, bounds) if isinstance(file, InputFile) else file.batches(options, bounds)


def file_columns(file: InputFile | InputStream, options: ReadOptions) -> Mapping[str, FileValue]:
    """The columns that a file gives to all of its rows. Raises InputError for two of one name."""
    columns, shown = (file.columns, file.shown) if isinstance(file, InputFile) else ({}, STREAM)
    if options.file_column is None:
        return columns
    if options.file_column in columns:
        raise InputError(
            f"--file-column {options.file_column}: the folders of {shown} give a column of this name; "
            "choose another name"
        )
    return {**columns, options.file_column: shown}


def _read_path(file: InputFile, options: ReadOptions, bounds: Bounds) -> Iterator[LineBatch | TableBatch]:
    path, name = Path(file.name), file.shown
    with path.open("rb") as stream:
        head = _read_head(stream)
        if head == parquet_files.MAGIC or file.suffix in (".parquet", ".pq"):
            if not stream.seekable():
                raise InputError(f"{name}: Parquet can't be read from a stream; save it as a file and name the file")
            if not head:
                raise InputError(f"{name}: is empty; write it again")
            yield from parquet_files.read_tables(stream, name, bounds=bounds)
            return
        if head and path.suffix.lower() in COMPRESSED and not is_compressed(head):
            raise InputError(
                f"{name}: is not compressed, but its name says so; rename it to {name[: -len(path.suffix)]}"
            )
        yield from _read_text(head, stream, name, file, options, bounds)


def _read_head(stream: Readable) -> bytes:
    """The first 4 bytes, fewer only at the end; a pipe may give them in pieces."""
    head = b""
    while len(head) < 4 and (piece := stream.read(4 - len(head))):
        head += piece
    return head


def _read_text(
    head: bytes, stream: Readable, name: str, file: InputFile | None, options: ReadOptions, bounds: Bounds
) -> Iterator[LineBatch | TableBatch]:
    for magic, problem in _FOREIGN.items():
        if head.startswith(magic):
            raise InputError(f"{name}: {problem}")
    found = _TEXT_FORMATS.get(file.suffix) if file is not None else None
    format_ = found or options.format or "jsonl"
    whole = decompressed(head, Arriving(stream), name=name, bounds=bounds)
    if format_ == "jsonl":
        path = Path(file.name) if file is not None and not is_pipe(file.name) else None
        yield from read_lines(whole, name, path=path, max_bytes=bounds.max_line_bytes)
    else:
        is_guess = options.csv_delimiter is None
        delimiter = options.csv_delimiter or _DELIMITERS[format_]
        yield from csv_files.read_cells(whole, name, delimiter=delimiter, is_guess=is_guess)


def _with_columns(
    batch: LineBatch | TableBatch, columns: Mapping[str, FileValue], file_column: str | None
) -> LineBatch | TableBatch:
    """The batch with the columns of its file. Where a row has one of these itself, that goes before."""
    if isinstance(batch, LineBatch):
        return replace(batch, columns=columns, file_column=file_column)
    table = batch.table
    num_rows = len(batch.origin.numbers)
    if file_column is not None and file_column in table.column_names:
        raise InputError(
            f"--file-column {file_column}: {batch.origin.file} has a column of this name; choose another name"
        )
    for name, value in columns.items():
        if name not in table.column_names:
            type_ = pa.null() if value is None else pa.int64() if isinstance(value, int) else pa.string()
            table = table.append_column(name, pa.repeat(pa.scalar(value, type_), num_rows))
    return replace(batch, table=table)
