"""Files that are small on the disk and large, or without end, where they are read; each with a good row, if it can."""

import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

MB = 1 << 20
GOOD_LINE = b'{"prompt": "good"}\n'


@dataclass(frozen=True, slots=True)
class Bomb:
    """A file to write, and what its refusal says; None: it is read, and its bad rows are error rows."""

    name: str
    write: Callable[[Path], object]
    problem: str | None


def write_gzip(path: Path, pieces: Iterable[bytes], *, times: int = 1) -> None:
    """A file whose members hold the pieces, the first of them so many times."""
    first, *rest = pieces
    packed = zlib.compress(first, 9, wbits=31)
    with path.open("wb") as file:
        for _ in range(times):
            file.write(packed)
        file.writelines(zlib.compress(piece, 9, wbits=31) for piece in rest)


def write_zstd(path: Path, pieces: Iterable[bytes]) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as file:
        for piece in pieces:
            file.write(piece)


def write_sparse(path: Path) -> None:
    """A line of zeros that takes no room."""
    with path.open("wb") as file:
        file.truncate(1100 * MB)


def write_dictionary(path: Path, *, value_bytes: int, num_rows: int) -> None:
    """Rows that have one value in common, which is in the file once."""
    indices = pa.array([0] * num_rows, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * value_bytes]))
    pq.write_table(pa.table({"prompt": column}), path, compression="zstd", store_schema=False)


def write_list(path: Path, num_items: int) -> None:
    """A row with a list of equal values."""
    items = pa.repeat(pa.scalar(value=True), num_items)
    column = pa.ListArray.from_arrays(pa.array([0, num_items], pa.int32()), items)
    pq.write_table(pa.table({"prompt": ["good"], "list": column}), path, compression="zstd")


def write_fixed(path: Path, value_bytes: int) -> None:
    column = pa.array([b"x" * value_bytes], pa.binary(value_bytes))
    pq.write_table(pa.table({"prompt": ["good"], "fixed": column}), path, compression="zstd")


def _lines(*lines: bytes) -> Callable[[Path], object]:
    return lambda path: write_gzip(path, [*lines, GOOD_LINE])


def _times(count: int, piece: bytes, *rest: bytes) -> Iterable[bytes]:
    yield from (piece for _ in range(count))
    yield from rest


_BLANK = "blank, more than 32 MB of them in a row; leave them out, as grep"
_RATIO = r"unpacks to more than 1,000 times its size .* allow more with --max-ratio"

BOMBS = [
    Bomb("newlines.jsonl.gz", lambda path: write_gzip(path, [b"\n" * 16 * MB, GOOD_LINE], times=192), _BLANK),
    Bomb("newlines.jsonl.zst", lambda path: write_zstd(path, _times(3072, b"\n" * MB, GOOD_LINE)), _BLANK),
    Bomb("line.jsonl.gz", lambda path: write_gzip(path, [b"a" * 16 * MB], times=70), _RATIO),
    Bomb("line.jsonl.zst", lambda path: write_zstd(path, _times(1100, b"a" * MB)), _RATIO),
    Bomb("sparse.jsonl", write_sparse, "longer than 32 MB, and has no end for 1024 MB more; give a file of lines"),
    Bomb("members.jsonl.gz", lambda path: path.write_bytes(zlib.compress(b"", wbits=31) * 50_000), "holds no rows"),
    Bomb("deep.jsonl.gz", _lines(b'{"prompt": ' + b"[" * 4 * MB + b"\n"), None),
    Bomb("deep-body.jsonl.gz", _lines(b'{"custom_id": "a", "body": ' + b'{"a":' * MB + b"\n"), None),
    Bomb("digits.jsonl.gz", _lines(b'{"prompt": "a", "seed": ' + b"9" * MB + b"}\n"), None),
    Bomb("carried-digits.jsonl.gz", _lines(b'{"prompt": "a", "x": ' + b"9" * MB + b"}\n"), None),
    Bomb("objects.jsonl.gz", _lines(b'{"prompt": [' + b"{}," * (10 * MB) + b"{}]}\n"), None),
    Bomb(
        "keys.jsonl.gz",
        _lines(json.dumps({"prompt": "a"} | {f"k{i}": i for i in range(100_000)}).encode() + b"\n"),
        "more than 1000 columns",
    ),
    Bomb(
        "newlines.csv.gz",
        lambda path: write_gzip(path, [b"prompt\n", b"\n" * 40 * MB, b"good\n"]),
        "more than 8 MB of blank lines in a row; leave them out, as grep",
    ),
    Bomb(
        "cell.csv.gz",
        lambda path: write_gzip(path, [b'prompt\ngood\n"', b"a" * 100 * MB]),
        "row 2 or one after it is longer than 2 MB; if it is not meant to be, a quote is not closed: close it",
    ),
    Bomb(
        "columns.csv.gz",
        lambda path: write_gzip(path, [b",".join(b"c%d" % i for i in range(100_000)) + b"\n"]),
        "holds .* columns; 10,000 are the most, so leave out what no row needs",
    ),
    Bomb("odd.csv.gz", lambda path: write_gzip(path, [b"prompt\n", b"a,b\n" * 200_000]), "correct the header"),
    Bomb("dictionary.parquet", lambda path: write_dictionary(path, value_bytes=MB, num_rows=2048), None),
    Bomb("row.parquet", lambda path: write_dictionary(path, value_bytes=40 * MB, num_rows=100), None),
    Bomb(
        "list.parquet",
        lambda path: write_list(path, 40_000_000),
        "column 'list.list.element' unpacks to more than",
    ),
    Bomb("fixed.parquet", lambda path: write_fixed(path, 40 * MB), "column 'fixed' has values of .* leave it out"),
]
