"""Rows in memory as input: dicts as the lines of a file, tables with their types, one digest for one content."""

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import InputError, JobError
from batcher.jobdir.folder import JobDir
from batcher.submission.planner import submit
from batcher.submission.readers.bounds import NO_BOUNDS
from batcher.submission.readers.files import ReadOptions
from batcher.submission.readers.memory import ArrowRows, DictRows
from batcher.submission.source import Input
from tests.support.submitted import carried_rows, make_options, rows_of, write_lines


def submit_rows(folder: Path, rows: Input, **options: Any) -> JobDir:
    job = JobDir(folder)
    submit(job, [rows], make_options(**options))
    return JobDir.open(folder)


def test_dicts_are_what_the_lines_of_a_file_would_be(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "a", "max_tokens": 3, "n": 1, "tags": ["x"]},
        {"prompt": ["b", "c"], "custom_id": 7, "n": 2.5},
        {"messages": [{"role": "user", "content": "hi"}], "meta": {"k": 1}},
        {"prompt": None},
    ]
    of_file, of_dicts = JobDir(tmp_path / "file"), JobDir(tmp_path / "dicts")

    submit(of_file, [write_lines(tmp_path / "rows.jsonl", *rows)], make_options())
    submit(of_dicts, [DictRows(rows)], make_options())

    assert [row.request for row in rows_of(of_dicts)] == [row.request for row in rows_of(of_file)]
    assert carried_rows(of_dicts).equals(carried_rows(of_file))
    assert JobDir.open(of_dicts.path).manifest.inputs == ("-",)


def test_values_that_json_lacks_are_what_the_page_says(tmp_path: Path) -> None:
    row = {
        "prompt": np.str_("a"),
        "max_tokens": np.int64(3),
        "day": dt.date(2026, 1, 2),
        "at": pd.Timestamp("2026-01-02T03:04:05Z"),
        "price": Decimal("1.20"),
        "key": UUID(int=7),
        "bytes": b"\xff",
        "vector": np.array([1, 2]),
        "gone": pd.NaT,
        "missing": pd.NA,
    }

    job = submit_rows(tmp_path / "job", DictRows([row]))

    (found,) = carried_rows(job).to_pylist()
    assert rows_of(job)[0].request.params.max_tokens == 3
    assert found == {
        "day": "2026-01-02",
        "at": "2026-01-02T03:04:05Z",
        "price": "1.20",
        "key": "00000000-0000-0000-0000-000000000007",
        "bytes": "/w==",
        "vector": [1, 2],
        "gone": None,
        "missing": None,
    }


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("text", r'source: row 1: is of type str; give dicts, such as \{"prompt": "\.\.\."\}'),
        ({"prompt": "b", "x": object()}, r"source: row 1: has a value that JSON and Arrow do not know \(.*object.*\)"),
        ({"prompt": "b", "x": {1}}, r"source: row 1: .*a set has no order; give a list"),
    ],
    ids=["no-dict", "no-value", "set"],
)
def test_what_is_no_row_is_refused_by_its_number(tmp_path: Path, row: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        submit_rows(tmp_path / "job", DictRows([{"prompt": "a"}, row]))

    assert not (tmp_path / "job").exists()


def test_bad_row_is_told_by_the_number_that_results_have(tmp_path: Path) -> None:
    job = submit_rows(tmp_path / "job", DictRows([{"prompt": "a"}, {"prompt": "b", "temperature": 9}]))

    error = rows_of(job)[1].error
    assert error is not None
    assert error.message.startswith("source: row 1: temperature is 9")


def test_half_of_an_emoji_makes_a_bad_row(tmp_path: Path) -> None:
    job = submit_rows(tmp_path / "job", DictRows([{"prompt": "\ud83d", "custom_id": "half"}, {"prompt": "b"}]))

    assert [row.error is None for row in rows_of(job)] == [False, True]
    assert rows_of(job)[0].request.custom_id == "half"


TABLE = pa.table(
    {
        "prompt": ["a", "b", None],
        "at": pa.array([1, None, 3], pa.timestamp("ns")),
        "kind": pa.array(["x", "y", "x"]).dictionary_encode(),
        "nested": pa.array([[{"k": Decimal("1.5")}], [], None]),
    }
)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TABLE,
        lambda: TABLE.to_reader(max_chunksize=2),
        lambda: pa.chunked_array(TABLE.to_struct_array().chunks),
        lambda: duckdb.sql("select * from source_table"),
        lambda: TABLE.to_pandas(types_mapper=pd.ArrowDtype),
        lambda: pl.from_arrow(TABLE),
    ],
    ids=["table", "reader", "chunked-structs", "duckdb", "pandas", "polars"],
)
def test_whatever_speaks_arrow_keeps_its_types(tmp_path: Path, make: Any) -> None:
    duckdb.register("source_table", TABLE)
    job = submit_rows(tmp_path / "job", ArrowRows(make()))

    carried = carried_rows(job)
    assert carried["at"].to_pylist() == TABLE["at"].to_pylist()
    assert carried.schema.field("at").type == pa.timestamp("ns")
    assert carried["kind"].to_pylist() == ["x", "y", "x"]
    assert carried["nested"].to_pylist() == TABLE["nested"].to_pylist()
    assert [row.error is None for row in rows_of(job)] == [True, True, False]


def test_frame_with_an_index_of_its_own_carries_it_along(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b", "c"]}, index=pd.Index([7, 8, 9], name="ticket"))

    job = submit_rows(tmp_path / "job", ArrowRows(frame[frame.prompt != "b"]))

    assert carried_rows(job).to_pydict() == {"ticket": [7, 9]}


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: pd.Series(["a"]), "Series cannot be read as an Arrow table"),
        (lambda: pd.DataFrame({"prompt": ["a", 1]}), "DataFrame cannot be read as an Arrow table: .*column prompt"),
    ],
    ids=["series", "mixed"],
)
def test_what_is_no_table_is_refused(make: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        ArrowRows(make())


def test_missing_column_is_told_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source: no column 'prompt'; it has: text; name the prompt's column"):
        submit_rows(tmp_path / "job", ArrowRows(pa.table({"text": ["a"]})))


def test_options_for_files_are_refused(tmp_path: Path) -> None:
    for rows in (DictRows([{"prompt": "a"}]), ArrowRows(TABLE)):
        with pytest.raises(InputError, match="are for files"):
            submit_rows(tmp_path / "job", rows, reading=ReadOptions(file_column="file"))


@pytest.mark.parametrize("rows", [DictRows([]), ArrowRows(TABLE.slice(0, 0))], ids=["dicts", "table"])
def test_no_rows_are_no_job(tmp_path: Path, rows: Input) -> None:
    with pytest.raises(InputError, match="holds no rows"):
        submit_rows(tmp_path / "job", rows)


# -- the digest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda rows: DictRows(rows), lambda rows: ArrowRows(pa.Table.from_pylist(rows))])
def test_same_rows_find_their_job_again_and_others_do_not(tmp_path: Path, make: Any) -> None:
    rows = [{"prompt": f"p{i}", "k": i} for i in range(50)]
    job = submit_rows(tmp_path / "job", make(rows))

    assert submit(job, [make(list(rows))], make_options()).manifest == job.manifest

    with pytest.raises(JobError, match="holds a job with other input"):
        submit(job, [make([*rows[:-1], {"prompt": "p49", "k": 0}])], make_options())


@given(cuts=st.lists(st.integers(0, 40), max_size=6), start=st.integers(0, 5))
def test_how_a_table_is_cut_and_stored_does_not_count(cuts: list[int], start: int) -> None:
    words = [None if i % 7 == 0 else f"word {i}" for i in range(40)]
    table = pa.table({"prompt": words, "n": pa.array(range(40), pa.int8())})
    ends = [0, *sorted(cuts), 40]
    pieces = [table.slice(a, b - a) for a, b in pairwise(ends)]
    padded = pa.concat_tables([table.slice(0, start), table]).slice(start)

    whole = ArrowRows(table).digest()

    assert ArrowRows(pa.concat_tables(pieces)).digest() == whole
    assert ArrowRows(padded).digest() == whole
    # What stands below a null is not a value.
    garbage = pa.array(words).fill_null("garbage")
    masked = pa.StringArray.from_buffers(40, *garbage.buffers()[1:], pa.array(words).buffers()[0])
    assert ArrowRows(table.set_column(0, "prompt", masked)).digest() == whole


@pytest.mark.parametrize(
    "other",
    [
        pa.table({"prompt": ["a", "b"], "n": pa.array([1, 2], pa.int32())}),
        pa.table({"prompt": ["a", "b"], "m": [1, 2]}),
        pa.table({"prompt": ["a", "b"], "n": [1, None]}),
        pa.table({"prompt": ["ab", ""], "n": [1, 2]}),
        pa.table({"prompt": ["a"], "n": [1]}),
    ],
    ids=["type", "name", "null", "border", "fewer"],
)
def test_types_names_and_values_count(other: pa.Table) -> None:
    assert ArrowRows(pa.table({"prompt": ["a", "b"], "n": [1, 2]})).digest() != ArrowRows(other).digest()


def test_text_that_is_no_utf8_has_a_digest_too() -> None:
    def rows(data: bytes) -> ArrowRows:
        text = pa.array([data]).cast(pa.string(), safe=False)
        return ArrowRows(
            pa.table({"prompt": text, "nested": pa.array([[data]]).cast(pa.list_(pa.string()), safe=False)})
        )

    assert rows(b"\xff").digest() == rows(b"\xff").digest() != rows(b"\xfe").digest()


def test_stream_is_read_once_and_a_piece_at_a_time(tmp_path: Path) -> None:
    num_made: list[int] = []

    def make() -> Iterator[dict[str, str]]:
        for i in range(20_000):
            num_made.append(i)
            yield {"prompt": "p"}

    batches = DictRows(make()).batches(ReadOptions(), NO_BOUNDS)

    assert len(next(batches).lines) == len(num_made) < 10_000
    assert sum(len(batch.lines) for batch in batches) + 4096 == len(num_made) == 20_000


def test_stream_that_fails_midway_is_told_with_its_reason(tmp_path: Path) -> None:
    def batches() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"prompt": ["a", "b"]})
        raise pa.ArrowInvalid("the connection is gone")

    reader = pa.RecordBatchReader.from_batches(pa.schema([("prompt", pa.string())]), batches())

    with pytest.raises(InputError, match=r"source: cannot be read beyond row 2: .*the connection is gone"):
        submit_rows(tmp_path / "job", ArrowRows(reader))
