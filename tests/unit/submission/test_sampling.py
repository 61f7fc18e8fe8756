"""The first rows of an input, and samples of it: the same rows each time, from whatever they are read."""

import gzip
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import InputError, JobError, StorageError
from batcher.jobdir.folder import JobDir
from batcher.selection import RowSelection
from batcher.submission import sampling
from batcher.submission.planner import submit
from batcher.submission.readers.files import NamedStream, ReadOptions
from batcher.submission.readers.memory import ArrowRows, DictRows
from batcher.submission.readers.raw_rows import LineBatch, Origin
from batcher.submission.sampling import Reservoir, select_rows
from batcher.submission.source import Input
from batcher.submission.validation import validate
from tests.support.submitted import carried_rows, make_options, names_in, rows_of, write_lines

NUM_ROWS = 9_000  # more than any reader hands on at a time
ROWS = [{"prompt": f"p{number}", "label": f"l{number}"} for number in range(NUM_ROWS)]


def as_lines(folder: Path) -> list[Input]:
    return [write_lines(folder / "rows.jsonl", *ROWS)]


def as_gzip(folder: Path) -> list[Input]:
    (folder / "rows.jsonl.gz").write_bytes(
        gzip.compress(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS), mtime=0)
    )
    return [str(folder / "rows.jsonl.gz")]


def as_csv(folder: Path) -> list[Input]:
    pyarrow.csv.write_csv(pa.Table.from_pylist(ROWS), folder / "rows.csv")
    return [str(folder / "rows.csv")]


def as_parquet(folder: Path) -> list[Input]:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=700)
    return [str(folder / "rows.parquet")]


def as_files(folder: Path) -> list[Input]:
    """Of several kinds; and blank lines are no rows."""
    pq.write_table(pa.Table.from_pylist(ROWS[4000:8000]), folder / "b.parquet")
    first = write_lines(folder / "a.jsonl", *ROWS[:100], b"", b"  ", *ROWS[100:4000])
    return [first, str(folder / "b.parquet"), write_lines(folder / "c.jsonl", *ROWS[8000:])]


def as_stdin(folder: Path) -> list[Input]:
    return [NamedStream(io.BytesIO(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)))]


def as_dicts(folder: Path) -> list[Input]:
    return [DictRows(iter(ROWS))]


def as_table(folder: Path) -> list[Input]:
    return [ArrowRows(pa.Table.from_pylist(ROWS))]


KINDS = [as_lines, as_gzip, as_csv, as_parquet, as_files, as_stdin, as_dicts, as_table]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("selection", [RowSelection(sample=20), RowSelection(limit=4100)], ids=str)
def test_rows_are_the_same_whatever_they_are_read_from(
    tmp_path: Path, make: Callable[[Path], list[Input]], selection: RowSelection
) -> None:
    job = JobDir(tmp_path / "job")

    submit(job, make(tmp_path), make_options(selection=selection))

    numbers = list(range(4100)) if selection.limit else drawn(20, of=NUM_ROWS)
    requests = [row.request for row in rows_of(job)]
    assert [request.row for request in requests] == numbers
    assert [request.prompts for request in requests] == [(f"p{number}",) for number in numbers]
    assert [request.custom_id for request in requests] == [f"row-{number}" for number in numbers]
    assert carried_rows(job)["label"].to_pylist() == [f"l{number}" for number in numbers]
    # The input is the same, however far it was read.
    assert not submit(job, make(tmp_path), make_options(selection=selection)).is_new


def drawn(number: int, *, of: int, seed: int = 0) -> list[int]:
    reservoir = Reservoir(number, seed=seed)
    reservoir.add(of)
    return sorted(reservoir.drawn)


#: Of a million. Whoever draws his sample again finds these, in any version.
RECORDED = [54060, 256470, 424552, 499964, 743708, 859805, 868085, 968579]


def test_a_sample_has_the_same_rows_in_every_version() -> None:
    assert drawn(8, of=1_000_000) == RECORDED
    assert drawn(8, of=1_000_000, seed=1) != RECORDED


@given(
    size=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 300), max_size=6).map(sorted),
    seed=st.integers(0, 2**63 - 1),
)
def test_a_sample_has_its_size_and_depends_on_nothing_but_the_number_of_rows(
    size: int, cuts: list[int], seed: int
) -> None:
    reservoir = Reservoir(size, seed=seed)
    entered: set[int] = set()
    for start, end in pairwise([0, *cuts, 300]):
        positions = reservoir.add(end - start)
        assert positions == sorted(set(positions))
        assert all(0 <= position < end - start for position in positions)
        entered |= {start + position for position in positions}

    assert sorted(reservoir.drawn) == drawn(size, of=300, seed=seed)
    assert len(reservoir.drawn) == size
    assert reservoir.drawn <= entered


@pytest.mark.parametrize(("size", "number"), [(1, 10), (3, 10), (9, 10), (20, 200)])
def test_each_row_is_as_likely_as_any_other_and_so_is_each_pair(size: int, number: int) -> None:
    rounds = 4000
    singles: Counter[int] = Counter()
    neighbours = 0
    for seed in range(rounds):
        rows = drawn(size, of=number, seed=seed)
        singles.update(rows)
        neighbours += sum(b - a == 1 for a, b in pairwise(rows))

    expected = rounds * size / number
    # Seeds are fixed, so this holds or not; five standard deviations allow any generator that is one.
    assert all(abs(singles[row] - expected) < 5 * expected**0.5 for row in range(number))
    pairs = rounds * size * (size - 1) / number
    assert abs(neighbours - pairs) <= 5 * pairs**0.5 + 1


def test_all_rows_of_a_smaller_input_are_taken(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", *ROWS[:3])

    for selection in (RowSelection(sample=4), RowSelection(limit=4), RowSelection(sample=3)):
        assert validate([path], make_options(selection=selection)).num_rows == 3


def test_bad_rows_are_rows_and_keep_their_place(tmp_path: Path) -> None:
    lines: list[Any] = [{"prompt": "a"}, b"{torn", {"prompt": 5}, {"prompt": "b"}]
    path = write_lines(tmp_path / "p.jsonl", *lines, *ROWS)
    (tmp_path / "p.csv").write_text("prompt,x\na,1\nb\nc,3\nd,4,5\n")

    first = validate([path], make_options(selection=RowSelection(limit=4)))
    cells = validate([str(tmp_path / "p.csv")], make_options(selection=RowSelection(sample=4)))

    assert (first.num_ok, first.num_bad) == (2, 2)
    assert f"{path}:2" in first.bad[0]
    assert (cells.num_ok, cells.num_bad) == (2, 2)
    assert "p.csv: row 4" in cells.bad[1]
    for seed in range(30):
        with_broken = validate([str(tmp_path / "p.csv")], make_options(selection=RowSelection(sample=2), seed=seed))
        rows = [number for number in drawn(2, of=4, seed=seed) if number in (1, 3)]
        assert [f"row {row + 1}:" in message for row, message in zip(rows, with_broken.bad, strict=True)] == [
            True for _ in rows
        ]


def test_the_first_rows_are_read_and_hardly_more(tmp_path: Path) -> None:
    good = write_lines(tmp_path / "a.jsonl", *ROWS[:50])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    inputs = [good, str(tmp_path / "b.parquet")]

    assert validate(inputs, make_options(selection=RowSelection(limit=50))).num_rows == 50
    with pytest.raises(InputError, match=r"b\.parquet"):
        validate(inputs, make_options(selection=RowSelection(limit=51)))


def test_of_a_generator_no_more_is_taken_than_a_batch(tmp_path: Path) -> None:
    taken = 0

    def endless() -> Iterator[LineBatch]:
        nonlocal taken
        while True:
            taken += 1
            yield LineBatch(Origin("f", ":", range(10 * taken, 10 * taken + 10)), [b"{}"] * 10)

    found = [row for each in select_rows(endless(), RowSelection(limit=25), seed=0) for row in each.rows]

    assert (found, taken) == (list(range(25)), 3)


def test_a_large_sample_waits_on_the_disk_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_HELD_BYTES", 100)
    job = JobDir(tmp_path / "job")

    submit(job, as_files(tmp_path), make_options(selection=RowSelection(sample=7000), seed=3))

    assert [row.request.row for row in rows_of(job)] == drawn(7000, of=NUM_ROWS, seed=3)
    assert names_in(tmp_path) >= {"a.jsonl", "b.parquet", "c.jsonl"}
    assert {name.partition("/")[0] for name in names_in(tmp_path)} == {"a.jsonl", "b.parquet", "c.jsonl", "job"}


def test_a_disk_without_room_for_the_sample_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_HELD_BYTES", 100)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))

    with pytest.raises(StorageError, match="gone: cannot write a temporary file"):
        list(select_rows([LineBatch(Origin("f", ":", range(500)), [b"{}"] * 500)], RowSelection(sample=9), seed=0))


def test_a_sample_is_a_job_of_its_own_and_the_same_command_finds_it(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", *ROWS[:100])
    job = JobDir(tmp_path / "job")
    sample = make_options(selection=RowSelection(sample=20))

    assert submit(job, [path], sample).is_new
    assert not submit(job, [path], sample).is_new
    assert JobDir.open(job.path).manifest.selection == RowSelection(sample=20)
    with pytest.raises(JobError, match="a job of a sample of 20 rows of the input, and this is one of all rows"):
        submit(job, [path], make_options())
    with pytest.raises(JobError, match="and this is one of the first 20 rows"):
        submit(job, [path], make_options(selection=RowSelection(limit=20)))


def test_rows_outside_the_sample_may_have_its_ids(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", *({"prompt": "a", "custom_id": "same"} for _ in range(5)))

    assert validate([path], make_options(selection=RowSelection(sample=1))).num_ok == 1
    with pytest.raises(InputError, match=r"used twice, by .*:1 and .*:2"):
        validate([path], make_options(selection=RowSelection(limit=2)))


def test_the_column_of_files_comes_along(tmp_path: Path) -> None:
    paths: list[Input] = [write_lines(tmp_path / f"{name}.jsonl", *ROWS[:10]) for name in "ab"]
    job = JobDir(tmp_path / "job")

    submit(job, paths, make_options(selection=RowSelection(sample=6), reading=ReadOptions(file_column="file")))

    files = [paths[row // 10] for row in drawn(6, of=20)]
    assert carried_rows(job)["file"].to_pylist() == files
