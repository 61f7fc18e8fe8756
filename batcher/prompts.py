"""Input files -> batches of raw rows, each row with its source (`file:line`, or `file: row N` for Parquet).

JSONL comes as lines of bytes, plain or compressed (.gz, .zst), from files or standard input; Parquet comes as Arrow
tables. Everything is read front to back in bounded memory. What is wrong with a whole file raises InputError here;
what is wrong with a row is for the validation to say.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from batcher import parquet_files
from batcher.errors import InputError, first_line
from batcher.input_batches import LineBatch, Origin, TableBatch
from batcher.input_files import STDIN, expand, is_stream
from batcher.input_streams import Readable, decompressed
from batcher.json_lines import MAX_LINE_BYTES, read_lines

__all__ = [
    "MAX_LINE_BYTES",
    "STDIN",
    "STDIN_NAME",
    "LineBatch",
    "Origin",
    "Readable",
    "TableBatch",
    "expand",
    "is_stream",
    "read_batches",
]

#: What a file is called in messages when it is standard input.
STDIN_NAME = "<stdin>"


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
            raise InputError(f"{shown}: cannot be read: {first_line(exc)}; check that the file is complete") from exc
        if is_empty:
            raise InputError(f"{shown}: holds no rows; give a file with at least one prompt")


def _read_stdin(stdin: Readable | None, name: str) -> Iterator[LineBatch]:
    if stdin is None:
        raise InputError("-: there is no standard input to read; name a file")
    head = stdin.read(4)
    if head == parquet_files.MAGIC:
        raise InputError(f"{name}: Parquet can't be read from a stream; save it as a file and name the file")
    return read_lines(decompressed(head, stdin, suffix=""), name)


def _read_path(path: Path, name: str) -> Iterator[LineBatch | TableBatch]:
    with path.open("rb") as file:
        head = file.read(4)
        suffix = path.suffix.lower()
        if head == parquet_files.MAGIC or suffix in (".parquet", ".pq"):
            if not file.seekable():
                raise InputError(f"{name}: Parquet can't be read from a stream; save it as a file and name the file")
            if not head:
                raise InputError(f"{name}: is empty; write it again")
            yield from parquet_files.read_tables(file, name)
        else:
            yield from read_lines(decompressed(head, file, suffix=suffix), name)
