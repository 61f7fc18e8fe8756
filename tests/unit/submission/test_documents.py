"""Files that hold rows in another way than lines or tables: each is told once, with what makes rows of it."""

import base64
import gzip
import io
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batcher.errors import InputError
from batcher.submission.readers.files import LineBatch, NamedStream, Readable, expand, read_batches

#: A table of `prompt` and an Int128 as Polars 2.1 writes it, which pyarrow can't.
INT128 = base64.b64decode(
    "UEFSMRUEFRQVJkwVBBUAAAAotS/9IApRAAABAAAAYQEAAABiFQAVEhUkLBUEFRAVBhUGHDYAKAFiGAFhAAAAKLUv/SAJSQAAAgAA"
    "AAQBAQMCFQwZNQAGEBkYBnByb21wdBUMFgQWdhaaASZIJggcNgAoAWIYAWEAABUAFUwVNiwVBBUAFQYVBhw2AAAAACi1L/0gJpUA"
    "AFACAAAABAEBAAIAAgBAxjLgAhUOGSUABhkYA2JpZxUMFgQWdhZgJvIBPDYAAAAZEQIZGAFhGRgBYhUAGRYAABkcFkgVWhYAAAAZ"
    "HBbyARVgFgAAABUCGTxIBHJvb3QVBAAVDCUCGAZwcm9tcHQlAEwcAAAAFQ4VIBUCGANiaWcAFgQZHBksJuIBHBUMGTUABhAZGAZw"
    "cm9tcHQVDBYEFnYWmgEmSCYIHDYAKAFiGAFhAAAWrAMVFBaKAxUiACbSAhwVDhklAAYZGANiaWcVDBYEFnYWYCbyATw2AAAAFsAD"
    "FRYAFuwBFgQmCBb6ARQAABkcGAxBUlJPVzpzY2hlbWEY7AEvLy8vLzZjQUFBQUVBQUFBOHYvLy94UUFBQUFFQUFFQUFBQUtBQXNB"
    "Q0FBS0FBUUErUC8vL3d3QUFBQUlBQWdBQUFBRUFBSUFBQUE4QUFBQUJBQUFBTGovLy84b0FBQUFFQUFBQUFnQUFBQUJBZ0FBQUFB"
    "QUFQVC8vLytBQUFBQUFRQUFBQWdBQ1FBRUFBZ0FBd0FBQUdKcFp3RHMvLy8vTEFBQUFDQUFBQUFZQUFBQUFSUUFBQkFBRWdBRUFC"
    "QUFFUUFJQUFBQURBQUFBQUFBL1AvLy93UUFCQUFHQUFBQWNISnZiWEIwQUE9PQAYTlBvbGFycyAocHl0aG9uKSB2ZXJzaW9uIDIu"
    "MS4wIChidWlsZCA3ZjkwMmJkM2ZmZDI3ZmY4MmQxNDI3OGEwOWEyOTVmZjJmN2FlZDkyKRksHAAAHAAAAPUBAABQQVIx"
)
ROWS = [{"prompt": "ä", "n": 1}, {"prompt": 'say "hi"\n', "n": [1, 2]}]


class Drip:
    """A stream that gives a byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1, /) -> bytes:
        return self._data.read(min(size, 1))


def lines_of(source: Path | Readable) -> list[bytes | None]:
    batches = list(read_batches(expand([str(source) if isinstance(source, Path) else NamedStream(source)])))
    return [line for batch in batches if isinstance(batch, LineBatch) for line in batch.lines]


def refusal(source: Path | Readable) -> str:
    with pytest.raises(InputError) as caught:
        lines_of(source)
    return str(caught.value)


def write(path: Path, data: bytes) -> Path:
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pa.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(data)
    return path


def needs(*programs: str) -> Any:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


DOCUMENTS = [
    (json.dumps(ROWS), ROWS),
    (json.dumps(ROWS, indent=2), ROWS),
    (json.dumps(ROWS[:1], indent=2), ROWS[:1]),
    ("[" + ",\n ".join(map(json.dumps, ROWS)) + "]\n", ROWS),
    ("\ufeff" + json.dumps(ROWS, ensure_ascii=False), ROWS),
    (json.dumps(["a", "b\n"]), [{"prompt": "a"}, {"prompt": "b\n"}]),
    (json.dumps(["a"], indent=1), [{"prompt": "a"}]),
    (json.dumps(ROWS[0], indent=4), ROWS[:1]),
    (json.dumps([{"prompt": "x" * 300_000}]), [{"prompt": "x" * 300_000}]),
]


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        *[("rows.json", text, rows) for text, rows in DOCUMENTS],
        ("it's mine.jsonl", *DOCUMENTS[1]),
        ("rows.json.gz", *DOCUMENTS[5]),
        pytest.param("rows.jsonl.zst", *DOCUMENTS[7], marks=needs("zstd")),
    ],
    ids=range(len(DOCUMENTS) + 3),
)
@pytest.mark.parametrize("which", [pytest.param(0, marks=needs("jq"), id="jq"), pytest.param(1, id="python")])
def test_remedy_for_a_json_document_makes_rows_of_it(
    tmp_path: Path, name: str, text: str, rows: list[Any], which: int
) -> None:
    path = write(tmp_path / name, text.encode())
    message = refusal(path)
    assert message.startswith(f"{path}: is ")
    assert "\n" not in message
    command = message.partition("on each line: ")[2].split("   or   ")[which]

    subprocess.run(command, shell=True, check=True, cwd=tmp_path)

    [made] = tmp_path.glob("*.lines.jsonl")
    assert [json.loads(line or b"") for line in lines_of(made)] == rows


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}]\n[{"a": 2}]\n',
        '["a"]\n["b"]\n',
        "[1, 2]\n[3]\n",
        '[{"a": 1\n{"prompt": "p"}\n',
        '{"prompt": "p"\n{"prompt": "q"}\n',
        '{"prompt":\n"p"}\n',
        "[]\n",
        "[2026-01-01] a log\n[2026-01-02] a log\n",
        '\n\n{"prompt": "p"}\n',
    ],
)
def test_bad_rows_are_no_document(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "in.jsonl", text.encode())
    assert lines_of(path) == [line.encode() for line in text.splitlines() if line]


@pytest.mark.parametrize(("text", "rows"), DOCUMENTS[:7], ids=range(7))
def test_document_from_a_pipe_is_told_however_it_is_cut(text: str, rows: list[Any]) -> None:
    message = refusal(Drip(text.encode()))
    assert message == refusal(io.BytesIO(text.encode()))
    assert message.startswith("<stdin>: is a JSON array; write one object on each line: pipe it through jq -c '.[]")


def test_lines_from_a_pipe_read_alike_however_they_are_cut() -> None:
    data = b'\xef\xbb\xbf\n[{"a": 1}]\n\n{"b": 2}\n'
    assert lines_of(Drip(data)) == lines_of(io.BytesIO(data)) == [b'[{"a": 1}]', b'{"b": 2}']


def bgzip_block(data: bytes) -> bytes:
    """A member as bgzip writes it, with its extra field."""
    plain = gzip.compress(data, mtime=0)
    size = len(plain) + 8 - 1
    return plain[:3] + b"\x04" + plain[4:10] + b"\x06\x00BC\x02\x00" + size.to_bytes(2, "little") + plain[10:]


@pytest.mark.parametrize(
    "parts",
    [
        [gzip.compress(b"1\n2\n", mtime=0), b"\0" * 7, gzip.compress(b"3\n", mtime=0)],
        [gzip.compress(b"1\n2\n3\n", mtime=0), b"\0" * 200_000],
        [bgzip_block(b"1\n2"), bgzip_block(b"\n3\n"), bgzip_block(b"")],
        [gzip.compress(b"", mtime=0), gzip.compress(b"1\n2\n3", mtime=0)],
    ],
    ids=["zeros between", "zeros behind", "bgzip", "an empty member"],
)
def test_members_of_gzip_are_joined_and_zeros_left_out(tmp_path: Path, parts: list[bytes]) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(b"".join(parts))
    assert lines_of(path) == [b"1", b"2", b"3"]
    assert lines_of(Drip(path.read_bytes())) == [b"1", b"2", b"3"]


def test_every_way_to_cut_a_gzip_file_is_told(tmp_path: Path) -> None:
    data = gzip.compress(b'{"prompt": "p"}\n' * 5, mtime=0)
    for length in range(4, len(data)):
        path = tmp_path / "in.jsonl.gz"
        path.write_bytes(data[:length])
        assert refusal(path) == (
            f"{path}: cannot be read: the gzip data ends in the middle; check that the file is complete"
        )


def test_parquet_of_polars_with_integers_of_128_bits_is_not_called_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "polars.parquet"
    path.write_bytes(INT128)
    message = refusal(path)
    assert message.startswith(
        f"{path}: holds a type that pyarrow {pa.__version__} cannot read: Integers with more than 64"
    )
    assert f"pl.read_parquet('{path}')" in message
    assert "complete" not in message
    assert "cut short" not in message
