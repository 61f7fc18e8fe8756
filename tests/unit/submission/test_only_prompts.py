"""Parquet of nothing but the fields of requests: no column goes along, and the rows are counted all the same."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import read_file
from batcher.manage.export import ExportFormat, export
from batcher.manage.finish import finalize
from batcher.manage.repair import repair
from batcher.submission.planner import submit
from batcher.submission.readers.files import NamedStream
from batcher.submission.validation import validate
from tests.support.completing import complete
from tests.support.manual_engine import ManualEngine
from tests.support.submitted import make_options, rows_of, write_lines

ROWS = 40
TABLES = {
    "prompt": {"prompt": [f"p{row}" for row in range(ROWS)]},
    "fields": {
        "custom_id": [f"id-{row}" for row in range(ROWS)],
        "prompt": [f"p{row}" for row in range(ROWS)],
        "max_tokens": [None if row % 3 else 7 for row in range(ROWS)],
        # Some rows are refused, and rows of two models fill shards in turns.
        "temperature": [9.0 if row % 10 == 9 else 0.5 for row in range(ROWS)],
        "model": [("tiny", "other")[row % 2] for row in range(ROWS)],
    },
    "text": {"text": [f"p{row}" for row in range(ROWS)]},
    "null beside it": {"prompt": [f"p{row}" for row in range(ROWS)], "nothing": pa.nulls(ROWS)},
}


@pytest.fixture(scope="module")
def engine() -> ManualEngine:
    return ManualEngine()


@pytest.mark.parametrize("shape", TABLES)
def test_table_of_nothing_but_fields_is_validated_and_run(tmp_path: Path, engine: ManualEngine, shape: str) -> None:
    pq.write_table(pa.table(TABLES[shape]), tmp_path / "in.parquet", row_group_size=9)
    changes: dict[str, Any] = {"prompt_column": "text"} if shape == "text" else {}
    options = make_options(known_models=frozenset({"tiny", "other"}), **changes)
    inputs = [str(tmp_path / "in.parquet")]

    report = validate(inputs, options)
    job = JobDir(tmp_path / "job")
    submit(job, inputs, options)
    complete(job, engine)

    num_refused = 4 if shape == "fields" else 0
    assert (report.num_ok, report.num_bad) == (ROWS - num_refused, num_refused)
    assert [row.request.prompts for row in rows_of(job)] == [(f"p{row}",) for row in range(ROWS)]
    export(job, tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet").sort_by("row")
    assert out["row"].to_pylist() == list(range(ROWS))
    assert out["text"].to_pylist() == [None if num_refused and row % 10 == 9 else f"<p{row}>" for row in range(ROWS)]
    for layout in ExportFormat:
        assert export(job, tmp_path / "out.jsonl", layout=layout, force=True) == ROWS
    assert export(job, tmp_path / "out.csv") == ROWS


def test_such_a_table_among_files_with_columns_has_nulls_in_them(tmp_path: Path, engine: ManualEngine) -> None:
    pq.write_table(pa.table({"prompt": ["a", "b"]}), tmp_path / "1.parquet")
    second = write_lines(tmp_path / "2.jsonl", {"prompt": "c", "note": "n"}, {"prompt": "d"})
    pq.write_table(pa.table({"prompt": ["e"], "number": [5]}), tmp_path / "3.parquet")
    first, third = str(tmp_path / "1.parquet"), str(tmp_path / "3.parquet")
    job = JobDir(tmp_path / "job")

    with Path(second).open("rb") as stdin:
        submit(job, [first, second, third, NamedStream(stdin)], make_options())
    complete(job, engine)

    export(job, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["note"] for line in lines] == [None, None, "n", None, None, "n", None]
    assert [line["number"] for line in lines] == [None, None, None, None, 5, None, None]
    assert [line["choices"][0]["text"] for line in lines] == ["<a>", "<b>", "<c>", "<d>", "<e>", "<c>", "<d>"]


def test_part_without_other_columns_that_is_damaged_is_computed_again(tmp_path: Path, engine: ManualEngine) -> None:
    pq.write_table(pa.table({"prompt": ["a", "b"]}), tmp_path / "in.parquet")
    job = JobDir(tmp_path / "job")
    submit(job, [str(tmp_path / "in.parquet")], make_options())
    complete(job, engine)
    part = job.part_path(0)
    part.write_bytes(part.read_bytes()[:-9])

    assert len(repair(job)) == 1
    assert finalize(job) is None
    complete(job, engine)

    assert read_file(part)["text"].to_pylist() == ["<a>", "<b>"]
