"""Small files that are large where they are read: each in bounded memory, and with a remedy that works."""

import gzip
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.submission.planner import submit
from batcher.submission.readers import bounds, json_lines, parquet_files
from batcher.submission.readers.bounds import Bounds, UnpackLimits
from batcher.submission.readers.files import NamedStream, TableBatch, expand, read_batches
from batcher.submission.readers.memory import ArrowRows, DictRows
from batcher.submission.readers.wide_rows import PIECE_BYTES
from batcher.submission.source import SubmitOptions
from batcher.submission.validation import ValidationReport, validate
from batcher.types import SamplingParams
from tests.support.bombs import BOMBS, GOOD_LINE, MB, write_dictionary, write_gzip, write_list, write_zstd

#: Of a process that reads all bombs one after another.
MAX_RSS_BYTES = 600 * MB


def make_options(**changes: Any) -> SubmitOptions:
    return SubmitOptions(default_model="m", params=SamplingParams(), known_models=None, **changes)


def check(path: Path, **changes: Any) -> ValidationReport:
    return validate([str(path)], make_options(**changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All bombs, written."""
    folder = tmp_path_factory.mktemp("bombs")
    for bomb in BOMBS:
        bomb.write(folder / bomb.name)
    return folder


#: Validates files, and prints for each what was found, and the process's largest memory until then.
PROGRAM = """
import json, sys
from pathlib import Path
from tests.unit.submission.test_bombs import InputError, check
for path in map(Path, sys.argv[1:]):
    try:
        found = check(path)
        said = [found.num_ok, found.num_bad, *found.bad]
    except InputError as exc:
        said = [str(exc)]
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    print(json.dumps([said, peak]))
"""


def test_bombs_are_read_in_bounded_memory_and_refused_with_a_remedy(folder: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, *(str(folder / bomb.name) for bomb in BOMBS)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    for bomb, line in zip(BOMBS, output.splitlines(), strict=True):
        said, peak = json.loads(line)
        assert peak < MAX_RSS_BYTES, bomb.name
        if bomb.problem is not None:
            assert re.search(bomb.problem, said[0]), (bomb.name, said)
            assert said[0].startswith((str(folder / bomb.name), "the input has more than")), said
        elif bomb.name == "dictionary.parquet":
            assert said == [2048, 0]
        elif bomb.name == "row.parquet":
            assert said[:2] == [0, 100]
            assert said[2].endswith("row 1: the row is longer than 32 MB; shorten the prompt")
        else:
            assert said[:2] == [1, 1], (bomb.name, said)
            assert f"{bomb.name}:1: " in said[2]


@pytest.mark.parametrize("pack", [write_gzip, write_zstd])
def test_blank_lines_are_read_once_they_are_left_out_as_the_message_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[Path, list[bytes]], None]
) -> None:
    monkeypatch.setattr(json_lines, "MAX_BLANK_BYTES", MB)
    path = tmp_path / "rows"
    pack(path, [b" \n" * MB, GOOD_LINE])
    with pytest.raises(InputError) as caught:
        check(path)
    pattern = re.search(r"as (grep -v '.*') does", str(caught.value))
    assert pattern is not None

    unpack = "gzip -dc" if pack is write_gzip else f"{sys.executable} -c '{ZSTDCAT}'"
    subprocess.run(f"{unpack} {path} | {pattern[1]} > {tmp_path}/less.jsonl", shell=True, check=True)

    assert check(tmp_path / "less.jsonl").num_ok == 1


#: Where there is no zstd command.
ZSTDCAT = (
    'import sys, shutil, pyarrow as pa; shutil.copyfileobj(pa.CompressedInputStream(sys.argv[1], "zstd"), '
    "sys.stdout.buffer)"
)


@pytest.mark.parametrize("pack", [write_gzip, write_zstd])
def test_ratio_is_refused_and_can_be_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Callable[[Path, list[bytes]], None]
) -> None:
    monkeypatch.setattr(bounds, "FREE_BYTES", 8 * MB)
    path = tmp_path / "alike"
    pack(path, [(b'{"prompt": "' + b"a" * 10_000 + b'"}\n') * 1000])
    with pytest.raises(
        InputError, match=r"alike: unpacks to more than 100 times its size .* or allow more with --max-ra"
    ):
        check(path, unpack_limits=UnpackLimits(max_ratio=100))

    for limit in (0, 100_000):
        assert check(path, unpack_limits=UnpackLimits(max_ratio=limit)).num_ok == 1000


def test_unpacked_bytes_are_bounded_and_more_can_be_allowed(tmp_path: Path) -> None:
    packed, table = tmp_path / "many.jsonl.gz", tmp_path / "many.parquet"
    packed.write_bytes(gzip.compress(GOOD_LINE * 10_000))
    write_dictionary(table, value_bytes=1000, num_rows=200)
    for path, num_ok in ((packed, 10_000), (table, 200)):
        with pytest.raises(
            InputError, match=r"unpacks to more than 100,000 bytes; split it, or allow more with --max-"
        ):
            check(path, unpack_limits=UnpackLimits(max_unpacked_bytes=100_000))
        assert check(path, unpack_limits=UnpackLimits(max_unpacked_bytes=210_000)).num_ok == num_ok


def test_plain_file_has_no_such_limits(tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_bytes(GOOD_LINE * 1000)
    assert check(path, unpack_limits=UnpackLimits(1, 1)).num_ok == 1000


def test_line_without_end_is_refused_where_a_long_one_is_an_error_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_SKIPPED_BYTES", 2 * MB)
    path = tmp_path / "long.jsonl"
    path.write_bytes(GOOD_LINE + b"x" * MB + b"\n" + GOOD_LINE)
    report = check(path, max_line_bytes=MB // 2)
    assert (report.num_ok, report.bad) == (2, (f"{path}:2: the line is longer than 0 MB; shorten the prompt",))

    path.write_bytes(GOOD_LINE + b"x" * 3 * MB)
    with pytest.raises(InputError, match=r"long\.jsonl:2: the line is longer .* one JSON object on each"):
        check(path, max_line_bytes=MB // 2)


def test_dictionary_is_written_out_a_piece_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "shared.parquet"
    write_dictionary(path, value_bytes=MB, num_rows=100)
    batches = [batch for batch in read_batches(expand([str(path)])) if isinstance(batch, TableBatch)]
    assert sum(batch.table.num_rows for batch in batches) == 100
    assert max(batch.table.nbytes for batch in batches) <= PIECE_BYTES + 1000
    assert batches[0].table.schema.field("prompt").type == pa.string()


def test_rows_around_one_that_is_too_long_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "one-long.parquet"
    prompts = ["a" * 100, "b" * 3 * MB, "c", None]
    chats = [[{"role": "user", "content": text}] for text in ("x", "y", "z" * 3 * MB, "w")]
    pq.write_table(pa.table({"prompt": prompts, "messages": chats}), path)
    report = check(path, max_line_bytes=2 * MB)
    assert (report.num_ok, report.num_bad) == (2, 2)
    said = "the row is longer than 2 MB; shorten the prompt"
    assert report.bad == (f"{path}: row 2: {said}", f"{path}: row 3: {said}")


def test_rows_in_memory_have_the_limits_of_rows_in_files(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b" * 3 * MB}]
    for source in (DictRows(rows), ArrowRows(pa.table({"prompt": [row["prompt"] for row in rows]}))):
        report = validate([source], make_options(max_line_bytes=2 * MB))
        assert (report.num_ok, report.num_bad) == (1, 1)
        assert "longer than 2 MB" in report.bad[0]


def test_list_of_equal_values_can_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "_FREE_COLUMN_BYTES", MB)
    path = tmp_path / "list.parquet"
    write_list(path, 200_000)
    with pytest.raises(
        InputError, match=r"list\.parquet: column 'list.list.element' unpacks .* allow more with --max-ratio"
    ):
        check(path)
    assert check(path, unpack_limits=UnpackLimits(max_ratio=0)).num_ok == 1


class StoppedError(Exception):
    pass


#: What makes no rows for long, or large ones.
LONG = [f"{kind}.jsonl.{packing}" for kind in ("newlines", "line") for packing in ("gz", "zst")]


@pytest.mark.parametrize("name", [*LONG, "sparse.jsonl", "members.jsonl.gz", "newlines.csv.gz", "dictionary.parquet"])
def test_reading_asks_at_each_block_and_ends_where_it_is_told_to(folder: Path, tmp_path: Path, name: str) -> None:
    num_asked = 0

    def checkpoint() -> None:
        nonlocal num_asked
        num_asked += 1
        if num_asked == 4:
            raise StoppedError

    job = JobDir(tmp_path / "job")
    with pytest.raises(StoppedError):
        submit(job, [str(folder / name)], make_options(), checkpoint=checkpoint)

    assert not job.exists()
    assert not job.path.exists()


@pytest.mark.parametrize("name", ["newlines.jsonl.gz", "line.jsonl.zst", "sparse.jsonl"])
def test_no_block_is_larger_than_what_is_unpacked_at_once(folder: Path, name: str) -> None:
    num_bytes, asked_at = 0, [0]

    class Counted:
        def __init__(self, path: Path) -> None:
            self.file = path.open("rb")

        def read(self, size: int = -1, /) -> bytes:
            nonlocal num_bytes
            data = self.file.read(size)
            num_bytes += len(data)
            return data

    stream = Counted(folder / name)
    with stream.file, pytest.raises(InputError):
        list(read_batches([NamedStream(stream, "x")], bounds=Bounds(lambda: asked_at.append(num_bytes))))

    assert max(after - before for before, after in itertools.pairwise(asked_at)) <= 256 << 10
