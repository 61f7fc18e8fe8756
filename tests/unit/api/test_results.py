"""Results as tables: in input order, with the input's columns, from files that are checked."""

import sys
from datetime import date
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import batcher
from batcher import constraints
from batcher.errors import CorruptFileError, InputError, JobError, MissingPackageError
from batcher.jobdir.folder import JobDir
from batcher.manage.finish import finalize
from batcher.types import SamplingParams
from tests.support.job_files import (
    answered,
    failed,
    finished_job,
    make_job,
    make_request,
    ok,
    write_chunk,
    write_part,
)


@pytest.fixture
def job(tmp_path: Path) -> batcher.Job:
    finished_job(tmp_path / "job")
    return batcher.open(tmp_path / "job")


def interleaved(path: Path) -> JobDir:
    """Rows 0 to 8 in three shards that overlap, as those of several models do."""
    rows = ((0, 3, 8), (1, 2, 7), (4, 5, 6))
    job = make_job(path, [[make_request(row) for row in shard] for shard in rows])
    for shard, numbers in enumerate(rows):
        write_part(job, shard, [ok(row, num_choices=2) if row == 3 else ok(row) for row in numbers])
    finalize(job)
    return job


def test_frame_has_a_row_a_choice_in_input_order_with_the_inputs_columns(job: batcher.Job) -> None:
    found = job.results().to_pandas()

    assert isinstance(found, pd.DataFrame)
    assert list(zip(found["row"], found["index"], strict=True)) == [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (3, 1),
        (4, 0),
        (5, 0),
    ]
    assert list(found["topic"][:2]) == ["topic-0", "topic-1"]
    assert list(found["status"][:2]) == ["ok", "error"]
    assert found["text"][0] == "text 0.0"
    assert pd.isna(found["text"][1])
    assert list(found.columns) == job.results().columns
    assert len(job.results()) == len(found)


@pytest.mark.parametrize("is_complete", [False, True])
def test_answers_to_a_schema_are_typed_in_every_form(tmp_path: Path, is_complete: bool) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}, "at": {"type": "string", "format": "date"}}}
    params = SamplingParams(constraint=constraints.json_schema(schema))
    folder = make_job(tmp_path / "job", (2,), params=params)
    rows = [answered(0, '{"city": "Rome", "at": "2026-01-02"}', params=params), failed(1)]
    if is_complete:
        write_part(folder, 0, rows)
        finalize(folder)
    else:
        write_chunk(folder, 0, rows)
    results = batcher.Job(folder).results(partial=not is_complete)

    rome = {"city": "Rome", "at": date(2026, 1, 2)}
    assert results.columns[-3:] == ["output", "topic", "tags"]
    assert [row["output"] for row in results] == [rome, None]
    assert list(results.to_pandas()["output"]) == [rome, None]
    assert results.to_polars()["output"].to_list() == [rome, None]
    assert results.dataset().to_table()["output"].to_pylist() == [rome, None]
    assert "Rome" in results._repr_html_()
    with duckdb.connect() as connection:
        connection.register("results", results.to_table())
        assert connection.execute("select output.city from results where output.at > '2026-01-01'").fetchall() == [
            ("Rome",)
        ]


def test_shards_that_overlap_come_out_in_input_order(tmp_path: Path) -> None:
    results = batcher.Job(interleaved(tmp_path / "job")).results()

    expected = [0, 1, 2, 3, 3, 4, 5, 6, 7, 8]
    assert results.to_table()["row"].to_pylist() == expected
    assert [row["row"] for row in results] == expected
    assert [row for batch in results.to_batches(["row"]) for row in batch["row"].to_pylist()] == expected
    assert [row["index"] for row in results if row["row"] == 3] == [0, 1]


def test_first_rows_come_before_the_last_file_is_read(tmp_path: Path) -> None:
    job = interleaved(tmp_path / "job")
    rows = iter(batcher.Job(job).results())

    assert next(rows)["row"] == 0
    job.part_path(2).write_bytes(b"damaged")
    with pytest.raises(CorruptFileError, match=r"part-00002.parquet.*resume"):
        list(rows)


def test_columns_can_be_chosen(job: batcher.Job) -> None:
    assert job.results().to_pandas(["custom_id", "topic"]).columns.tolist() == ["custom_id", "topic"]
    assert job.results().to_table("text").column_names == ["text"]
    assert job.results().to_table(["text", "row"]).column_names == ["text", "row"]
    with pytest.raises(InputError, match=r"columns: there is no column 'txt'; did you mean text\? There are: row, "):
        job.results().to_table(["txt"])


def test_condition_says_which_rows_and_the_order_stays(job: batcher.Job) -> None:
    chosen = job.results(where="row > 1 and status = 'ok'")

    assert [row["row"] for row in chosen] == [2, 3, 3, 5]
    assert len(chosen) == 4
    assert chosen.to_table(["topic"]).to_pydict() == {"topic": ["topic-2", "topic-3", "topic-3", "topic-5"]}
    assert chosen.dataset().count_rows() == 4
    assert len(job.results(where="row > 99")) == job.results(where="row > 99").to_table("row").num_rows == 0
    assert "(row > 1 and status = 'ok')" in repr(chosen)
    with pytest.raises(InputError, match="did you mean text"):
        job.results(where="txt = ''")


def test_options_of_pandas_are_passed_on(job: batcher.Job) -> None:
    found = job.results().to_pandas(types_mapper=pd.ArrowDtype)

    assert found["tags"][0] == ["a", "0"]
    assert found.dtypes["row"] == pd.ArrowDtype(pa.int64())


def test_polars_has_the_same_rows_and_types(job: batcher.Job) -> None:
    found = job.results().to_polars(["row", "topic", "tags"])

    assert found.schema == {"row": pl.Int64, "topic": pl.String, "tags": pl.List(pl.String)}
    assert found["row"].to_list() == [0, 1, 2, 3, 3, 4, 5]
    assert pl.DataFrame(job.results()).equals(job.results().to_polars())


def test_whatever_takes_arrow_tables_takes_results(job: batcher.Job) -> None:
    results = job.results()

    assert pa.table(results).equals(results.to_table())
    with duckdb.connect() as connection:
        connection.register("results", results.to_table())
        assert connection.execute("select count(*), max(topic) from results").fetchall() == [(7, "topic-5")]


def test_errors_are_the_rows_that_failed(job: batcher.Job) -> None:
    found = job.errors()

    assert [(row["row"], row["error_code"]) for row in found] == [(1, "timeout"), (4, "context_length_exceeded")]
    assert len(found) == 2
    assert found.dataset().count_rows() == 2
    assert found.to_pandas()["error_message"][0] == "row 1: timeout"


def test_job_without_errors_has_a_table_without_rows(tmp_path: Path) -> None:
    found = batcher.Job(interleaved(tmp_path / "job")).errors()

    assert found.to_table().num_rows == 0
    assert found.to_table().schema.equals(found.schema)
    assert found.dataset().count_rows() == 0


def test_dataset_is_scanned_with_columns_and_filters(job: batcher.Job) -> None:
    dataset = job.results().dataset()

    assert dataset.schema.equals(job.results().schema)
    assert dataset.to_table(columns=["row"], filter=pc.field("topic") == "topic-5")["row"].to_pylist() == [5]


def test_job_that_is_not_complete_has_results_only_on_demand(tmp_path: Path) -> None:
    folder = make_job(tmp_path / "job", [[make_request(0), make_request(3)], [make_request(1), make_request(2)]])
    write_chunk(folder, 0, [ok(3)])
    write_part(folder, 1, [ok(1), failed(2)])
    job = batcher.open(tmp_path / "job")

    with pytest.raises(JobError, match=r"not complete \(3 of 4 rows done\); wait\(\) for it, or resume\(\)"):
        job.results()

    assert job.results(partial=True).to_pandas()["row"].tolist() == [1, 2, 3]
    assert job.results(partial=True).dataset().count_rows() == 3
    assert [row["row"] for row in job.errors()] == [2]


def test_job_without_any_result_has_a_table_without_rows(tmp_path: Path) -> None:
    make_job(tmp_path / "job")
    results = batcher.open(tmp_path / "job").results(partial=True)

    assert results.to_table().num_rows == results.dataset().count_rows() == len(results) == 0
    assert list(results) == []


def test_notebook_sees_the_first_rows_and_no_markup_of_theirs(tmp_path: Path) -> None:
    folder = make_job(tmp_path / "job", (20,))
    write_part(folder, 0, [ok(row, text="<b>" if row == 0 else "x" * 500) for row in range(20)])
    shown = batcher.open(tmp_path / "job").results()._repr_html_()

    assert "&lt;b&gt; 0.0" in shown
    assert "<b>" not in shown
    assert shown.count("<tr>") == 11
    assert len(shown) < 10_000


def test_notebook_reads_no_more_of_a_job_than_it_shows(tmp_path: Path) -> None:
    folder = make_job(tmp_path / "job", (12, 12, 12))
    for shard in range(3):
        write_part(folder, shard, [ok(12 * shard + row) for row in range(12)])
    finalize(folder)
    folder.part_path(2).write_bytes(b"damaged")

    assert batcher.open(folder.path).results()._repr_html_().count("<tr>") == 11


def test_rows_are_counted_by_footers(job: batcher.Job) -> None:
    expected = (len(job.results().to_table()), len(job.errors().to_table()))
    for path in (job.path / "results").glob("*.parquet"):
        data = path.read_bytes()
        path.write_bytes(data[:4] + b"damaged" + data[11:])

    assert (len(job.results()), len(job.errors())) == expected
    with pytest.raises(CorruptFileError):
        job.results().to_table()


@pytest.mark.parametrize("package", ["pandas", "polars"])
def test_package_that_is_missing_is_named(job: batcher.Job, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingPackageError, match=f"{package} is not installed here; install it, or use to_table"):
        getattr(job.results(), f"to_{package}")()


def test_it_says_what_it_is(job: batcher.Job) -> None:
    assert repr(job.errors()).startswith("<Results of 'job' (errors): row, custom_id, ")
    assert repr(job.results()).endswith("topic, tags>")
