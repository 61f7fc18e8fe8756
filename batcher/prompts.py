"""Input files -> batches of raw rows, each row with its source (`file:line`, or `file: row N` for Parquet).

JSONL comes as lines of bytes, plain or compressed (.gz, .zst), from files or standard input; Parquet comes as Arrow
tables. Everything is read front to back in bounded memory. What is wrong with a whole file raises InputError here;
what is wrong with a row is for the validation to say.
"""

import glob
import io
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from batcher.errors import InputError

#: What a file is called in messages when it is standard input, and how the command line names it.
STDIN_NAME = "<stdin>"
STDIN = "-"

#: A longer line becomes an error row: while it is checked and written, a line is held in memory up to nine times over.
MAX_LINE_BYTES = 32 << 20
_BLOCK_BYTES = 256 << 10
#: Of the rows of a Parquet file, about this much is in memory at once.
_TABLE_BYTES = 8 << 20
_MAX_TABLE_ROWS = 4096

_BOM = b"\xef\xbb\xbf"
_PARQUET_MAGIC = b"PAR1"
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_CODEC_SUFFIXES = {".gz": "gzip", ".zst": "zstd"}
_UNREADABLE = {
    ".csv": "CSV is not read; convert it to Parquet or JSONL",
    ".tsv": "TSV is not read; convert it to Parquet or JSONL",
    ".zip": "zip is not read; use .gz or .zst",
    ".bz2": "bzip2 is not read; use .gz or .zst",
    ".xz": "xz is not read; use .gz or .zst",
}


class Readable(Protocol):
    """All that is asked of an input stream. `read` blocks for up to `size` bytes; empty bytes are its end."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of a batch are from: `numbers` are their lines or row numbers in `file`, from 1."""

    file: str
    separator: str
    numbers: Sequence[int]

    def source(self, position: int) -> str:
        """How messages name the row at this position of the batch."""
        return f"{self.file}{self.separator}{self.numbers[position]}"


@dataclass(frozen=True, slots=True)
class LineBatch:
    """Lines of a JSONL file, none of them blank. None stands for a line longer than `MAX_LINE_BYTES`."""

    origin: Origin
    lines: list[bytes | None]


@dataclass(frozen=True, slots=True)
class TableBatch:
    """Consecutive rows of a Parquet file."""

    origin: Origin
    table: pa.Table


def expand(inputs: Sequence[str]) -> list[str]:
    """The files that `inputs` name: globs replaced by their matches in order of name, `-` kept for standard input.

    Raises InputError for a pattern without a match, a missing file or a folder, so before anything is read.
    """
    if not inputs:
        raise InputError("no input: name a Parquet or JSONL file, or - for standard input")
    if inputs.count(STDIN) > 1:
        raise InputError("standard input (-) is named twice; it can be read once")
    files: list[str] = []
    for name in inputs:
        if name != STDIN and glob.has_magic(name) and not os.path.lexists(name):
            # Not Path.glob: it takes no absolute pattern, and matches hidden files.
            found = glob.glob(name, recursive=True)  # noqa: PTH207
            matches = sorted(match for match in found if not Path(match).is_dir())
            if not matches:
                raise InputError(f"{name}: no file matches the pattern; check it, and quote it if the shell changes it")
            files.extend(matches)
        else:
            files.append(name)
    for name in files:
        if name != STDIN:
            _check_file(Path(name), name)
    return files


def is_stream(name: str) -> bool:
    """Whether a file of `expand` can be read only once: standard input, a pipe."""
    return name == STDIN or not Path(name).is_file()


def read_batches(
    files: Sequence[str], *, stdin: Readable | None = None, stdin_name: str = STDIN_NAME
) -> Iterator[LineBatch | TableBatch]:
    """The rows of `files` (from `expand`), in order. Raises InputError for one that can't be read or has no rows.

    `stdin_name` is what messages call standard input, or whatever stream takes its place.
    """
    for name in files:
        shown = stdin_name if name == STDIN else name
        is_empty = True
        try:
            for batch in _read_stdin(stdin, stdin_name) if name == STDIN else _read_path(Path(name), name):
                is_empty = False
                yield batch
        except (OSError, pa.ArrowException) as exc:
            raise InputError(f"{shown}: cannot be read: {_first_line(exc)}; check that the file is complete") from exc
        if is_empty:
            raise InputError(f"{shown}: holds no rows; give a file with at least one prompt")


def _check_file(path: Path, name: str) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise InputError(f"{name}: no such file; check the path") from exc
    except (OSError, ValueError) as exc:
        raise InputError(f"{name}: cannot be read: {exc}") from exc
    if stat.S_ISDIR(mode):
        raise InputError(f"{name}: is a folder; name its files, as in '{name.rstrip('/')}/*.jsonl'")
    suffix = path.suffix.lower()
    if suffix in _UNREADABLE:
        raise InputError(f"{name}: {_UNREADABLE[suffix]}")


def _read_stdin(stdin: Readable | None, name: str) -> Iterator[LineBatch]:
    if stdin is None:
        raise InputError("-: there is no standard input to read; name a file")
    head = stdin.read(4)
    if head == _PARQUET_MAGIC:
        raise InputError(f"{name}: Parquet can't be read from a stream; save it as a file and name the file")
    return _read_lines(_Prefixed(head, stdin), name, codec=_codec(head, ""))


def _read_path(path: Path, name: str) -> Iterator[LineBatch | TableBatch]:
    with path.open("rb") as file:
        head = file.read(4)
        suffix = path.suffix.lower()
        if head == _PARQUET_MAGIC or suffix in (".parquet", ".pq"):
            if not file.seekable():
                raise InputError(f"{name}: Parquet can't be read from a stream; save it as a file and name the file")
            if not head:
                raise InputError(f"{name}: is empty; write it again")
            yield from _read_tables(file, name)
        else:
            yield from _read_lines(_Prefixed(head, file), name, codec=_codec(head, suffix))


# -- JSONL ------------------------------------------------------------------------------------------------------------


def _codec(head: bytes, suffix: str) -> str | None:
    for magic, codec in _CODECS.items():
        if head.startswith(magic):
            return codec
    return _CODEC_SUFFIXES.get(suffix) if head else None


def _read_lines(stream: "_Prefixed", name: str, *, codec: str | None) -> Iterator[LineBatch]:
    source: Readable = pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), codec) if codec else stream
    number = 1
    for lines in _split_lines(source):
        first = lines[0]
        if number == 1 and first is not None:
            lines[0] = first.removeprefix(_BOM)
        kept = [i for i, line in enumerate(lines) if line is None or (line and not line.isspace())]
        numbers: Sequence[int] = range(number, number + len(lines))
        number += len(lines)
        if len(kept) < len(lines):
            numbers = [numbers[i] for i in kept]
            lines = [lines[i] for i in kept]
        if lines:
            yield LineBatch(Origin(name, ":", numbers), lines)


def _split_lines(stream: Readable) -> Iterator[list[bytes | None]]:
    """The lines of a stream, a block's worth at a time. A line that is too long is not kept, and comes out as None."""
    held: list[bytes] = []
    held_bytes = 0
    while block := stream.read(_BLOCK_BYTES):
        lines: list[bytes | None] = [*block.split(b"\n")]
        first, last = lines[0], lines.pop()
        assert first is not None
        assert last is not None
        held_bytes += len(first)
        held.append(first)
        if held_bytes > MAX_LINE_BYTES:
            held.clear()
        if lines:
            lines[0] = b"".join(held) if held_bytes <= MAX_LINE_BYTES else None
            held, held_bytes = [last], len(last)
            yield lines
    if held_bytes:
        yield [b"".join(held) if held_bytes <= MAX_LINE_BYTES else None]


class _Prefixed(io.RawIOBase):
    """A stream with the bytes put back that were read from it to see what it is."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head + self._stream.read(size - len(head) if size >= 0 else size)
        return self._stream.read(size)


# -- Parquet ----------------------------------------------------------------------------------------------------------


def _read_tables(file: BinaryIO, name: str) -> Iterator[TableBatch]:
    try:
        # Buffered: without it, a column of a row group is held whole.
        parquet = pq.ParquetFile(file, buffer_size=1 << 20)
        names = parquet.schema_arrow.names
    except (OSError, pa.ArrowException) as exc:
        raise InputError(
            f"{name}: cannot be read as Parquet: {_first_line(exc)}; it may be cut short: write or copy it again"
        ) from exc
    twice = next((column for column in names if names.count(column) > 1), None)
    if twice is not None:
        raise InputError(f"{name}: two columns are called {twice!r}; rename one")
    first = 1
    for batch in parquet.iter_batches(batch_size=_rows_at_once(parquet.metadata)):
        if batch.num_rows:
            numbers = range(first, first + batch.num_rows)
            first += batch.num_rows
            yield TableBatch(Origin(name, ": row ", numbers), pa.Table.from_batches([batch]))


def _rows_at_once(metadata: Any) -> int:
    """How many rows to hold, by the group with the largest rows."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size // group.num_rows for group in groups if group.num_rows), default=0)
    return max(1, min(_MAX_TABLE_ROWS, _TABLE_BYTES // max(1, row_bytes)))


def _first_line(exc: Exception) -> str:
    return str(exc).strip().splitlines()[0].rstrip(".") if str(exc).strip() else type(exc).__name__
