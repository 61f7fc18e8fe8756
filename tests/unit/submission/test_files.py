"""Reading input files: compression, globs, line splitting, Parquet, and files that can't be used."""

import gzip
import io
import os
import resource
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import InputError
from batcher.submission.readers import json_lines, parquet_files
from batcher.submission.readers.files import LineBatch, NamedStream, TableBatch, expand, read_batches


def zstd(data: bytes) -> bytes:
    compressed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return compressed


def lines_of(inputs: Sequence[str | NamedStream]) -> list[tuple[str, bytes | None]]:
    found: list[tuple[str, bytes | None]] = []
    for batch in read_batches(expand(inputs)):
        assert isinstance(batch, LineBatch)
        found.extend((batch.origin.source(i), line) for i, line in enumerate(batch.lines))
    return found


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstd),
        ("gz-without-its-suffix", gzip.compress),
        ("zst-without-its-suffix", zstd),
        ("two-members.gz", lambda data: gzip.compress(data[:5]) + gzip.compress(data[5:])),
        ("two-frames.zst", lambda data: zstd(data[:5]) + zstd(data[5:])),
    ],
)
def test_plain_and_compressed_lines_read_alike(tmp_path: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / name
    path.write_bytes(pack(b'{"a": 1}\n{"a": 2}'))
    assert lines_of([str(path)]) == [(f"{path}:1", b'{"a": 1}'), (f"{path}:2", b'{"a": 2}')]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_standard_input_reads_like_a_file(pack: Callable[[bytes], bytes]) -> None:
    stdin = io.BytesIO(pack(b"1\n\n2\n"))
    assert lines_of([NamedStream(stdin)]) == [("<stdin>:1", b"1"), ("<stdin>:3", b"2")]


def test_byte_order_mark_crlf_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf{}\r\n\r\n \t\r\n[]\r\n")
    assert lines_of([str(path)]) == [(f"{path}:1", b"{}\r"), (f"{path}:4", b"[]\r")]


def test_named_pipe_is_read_as_it_comes(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(gzip.compress(b"1\n2\n"),))
    writer.start()
    assert [line for _, line in lines_of([str(path)])] == [b"1", b"2"]
    writer.join()


def test_pipe_that_was_left_without_waiting_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as writer:
        batches = read_batches([NamedStream(stream)])
        for line in (b'{"a": 1}', b'{"a": 2}'):
            later = threading.Timer(0.2, writer.write, [line + b"\n"])
            later.start()
            assert next(batches).lines == [line]  # type: ignore[union-attr]
            later.join()


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("has_path", [False, True])
def test_lines_of_a_pipe_come_when_they_are_written(has_path: bool, is_packed: bool) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as writer:
        packer = zlib.compressobj(wbits=31)

        def write(line: bytes) -> None:
            writer.write(packer.compress(line) + packer.flush(zlib.Z_SYNC_FLUSH) if is_packed else line)

        write(b'{"a": 1}\n')
        batches = read_batches(expand([f"/dev/fd/{reading}" if has_path else NamedStream(stream)]))
        # With the end of the line, as there may be more of it else. It would wait for ever, as the pipe stays open.
        assert next(batches).lines == [b'{"a": 1}']  # type: ignore[union-attr]
        write(b'{"a": 2}\n{"a": 3}\n')
        assert next(batches).lines == [b'{"a": 2}', b'{"a": 3}']  # type: ignore[union-attr]


def test_file_with_a_high_descriptor_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2\n3\n")
    number, most = 1500, resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(number + 1, most[0]), most[1]))
    with path.open("rb") as file:
        os.dup2(file.fileno(), number)
    with os.fdopen(number, "rb") as high:
        assert [line for _, line in lines_of([NamedStream(high)])] == [b"1", b"2", b"3"]
    resource.setrlimit(resource.RLIMIT_NOFILE, most)


class DripStream:
    """A stream that gives its bytes in pieces of the given sizes, as a pipe may."""

    def __init__(self, data: bytes, sizes: Sequence[int]) -> None:
        self._data = io.BytesIO(data)
        self._sizes: Iterator[int] = iter([*sizes, *[1 << 20] * 3])

    def read(self, size: int = -1, /) -> bytes:
        return self._data.read(min(size, next(self._sizes, size)))


@given(
    st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=20),
    st.lists(st.integers(1, 20), max_size=30),
)
def test_lines_and_numbers_do_not_depend_on_how_the_stream_is_cut(lines: list[bytes], sizes: list[int]) -> None:
    found: list[tuple[int, bytes | None]] = []
    for first, batch in json_lines._split_lines(DripStream(b"\n".join(lines), sizes), "x", 1 << 20):
        found.extend((number, line) for number, line in enumerate(batch, start=first) if line and not line.isspace())
    expected = [(i, line) for i, line in enumerate(b"\n".join(lines).split(b"\n"), start=1)]
    assert found == [(number, line) for number, line in expected if line and not line.isspace()]


def test_line_beyond_the_bound_is_dropped_and_its_neighbours_kept() -> None:
    bound = 3 * json_lines._BLOCK_BYTES
    given_lines = [b"a", b"x" * (bound + 1), b"y" * bound, b"z" * bound * 2, b"b", b"w" * (bound + 1)]
    batches = json_lines._split_lines(io.BytesIO(b"\n".join(given_lines)), "x", bound)
    found = [line for _, batch in batches for line in batch]
    assert found == [b"a", None, b"y" * bound, None, b"b", None]


def test_globs_are_sorted_and_folders_skipped(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.txt"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "z.jsonl").mkdir()
    inputs: list[str | NamedStream] = [f"{tmp_path}/*.jsonl", NamedStream(io.BytesIO(), "upload"), f"{tmp_path}/c.txt"]
    assert [file.name for file in expand(inputs)] == [
        f"{tmp_path}/a.jsonl",
        f"{tmp_path}/b.jsonl",
        "upload",
        f"{tmp_path}/c.txt",
    ]


def test_file_whose_name_looks_like_a_pattern_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a[1].jsonl"
    path.write_text("{}")
    assert [file.name for file in expand([str(path)])] == [str(path)]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.jsonl", None, "no such file"),
        ("*.nothing", None, "no file matches"),
        ("empty.jsonl", b"", "holds no rows"),
        ("blank.jsonl", b"\n \r\n\n", "holds no rows"),
        ("empty.gz", b"", "holds no rows"),
        ("empty.parquet", b"", "is empty"),
        ("text.parquet", b'{"prompt": "x"}\n' * 9, "cannot be read as Parquet"),
        ("cut.parquet", b"PAR1" + b"\x00" * 100, "cannot be read as Parquet"),
        ("cut.jsonl.gz", gzip.compress(os.urandom(100_000))[:50_000], "cannot be read"),
        ("cut.jsonl.zst", zstd(os.urandom(100_000))[:50_000], "cannot be read"),
        ("x.jsonl.bz2", b"BZh9", "bzip2 is not read"),
        ("x.jsonl", b"BZh9", "is compressed with bzip2"),
        ("book.xlsx", b"PK\x03\x04", "a spreadsheet is not read; save the sheet as CSV"),
        ("book", b"PK\x03\x04", "is a zip file or a spreadsheet"),
        ("wide.jsonl", '{"prompt": "p"}'.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("plain.jsonl.gz", b'{"prompt": "p"}', "is not compressed, but its name says so"),
        ("junk.gz", gzip.compress(b"{}\n", mtime=0) + b"junk", "cannot be read: the gzip data is damaged"),
    ],
)
def test_unusable_file_is_named_with_what_is_wrong(
    tmp_path: Path, name: str, content: bytes | None, problem: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(read_batches(expand([str(path)])))
    assert str(caught.value).startswith(f"{path}: {problem}")
    assert "\n" not in str(caught.value)


def test_folder_and_empty_list_and_a_bare_dash_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder without a file to read; name one that has \.parquet"):
        expand([str(tmp_path)])
    with pytest.raises(InputError, match="no input"):
        expand([])
    with pytest.raises(InputError, match="no standard input"):
        expand(["-"])


def test_parquet_from_standard_input_is_refused() -> None:
    with pytest.raises(InputError, match="Parquet can't be read from a stream"):
        lines_of([NamedStream(io.BytesIO(b"PAR1...."))])


@pytest.mark.parametrize("name", ["a.parquet", "parquet-without-its-suffix"])
def test_parquet_rows_are_numbered_over_row_groups(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pq.write_table(pa.table({"prompt": [str(i) for i in range(10)]}), path, row_group_size=4)
    batches = list(read_batches(expand([str(path)])))
    assert all(isinstance(batch, TableBatch) for batch in batches)
    sources = [batch.origin.source(i) for batch in batches for i in range(len(batch.origin.numbers))]
    assert sources == [f"{path}: row {number}" for number in range(1, 11)]


def test_parquet_with_large_rows_comes_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "PIECE_BYTES", 100_000)
    path = tmp_path / "large.parquet"
    pq.write_table(pa.table({"prompt": [str(i) * 10_000 for i in range(50)]}), path, use_dictionary=False)
    sizes = [len(batch.origin.numbers) for batch in read_batches(expand([str(path)]))]
    assert sum(sizes) == 50
    assert max(sizes) <= 10


def test_parquet_damaged_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    pq.write_table(pa.table({"prompt": ["x" * 100] * 1000}), path, compression="snappy", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[10:400] = b"\xff" * 390
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        list(read_batches(expand([str(path)])))


def test_column_that_pyarrow_cannot_read_is_named_with_the_remedy(tmp_path: Path) -> None:
    # Given an array of a fixed length that is null, as DuckDB writes it and pyarrow cannot read it
    path = tmp_path / "fixed.parquet"
    rows = "select [1, 2, 3]::{} as a, 'x' as prompt union all select null, 'y'"
    duckdb.sql(f"copy ({rows.format('int[3]')}) to '{path}'")

    with pytest.raises(InputError, match=r"fixed\.parquet: column 'a' cannot be read by pyarrow .* any length"):
        list(read_batches(expand([str(path)])))

    # When the remedy is followed
    duckdb.sql(f"copy ({rows.format('int[]')}) to '{path}'")
    assert len(list(read_batches(expand([str(path)])))) == 1


def test_parquet_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "none.parquet"
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), path)
    with pytest.raises(InputError, match="holds no rows"):
        list(read_batches(expand([str(path)])))
