"""Parquet as others write it: names of columns, intervals."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batcher.arrow.values import json_values
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.submission.planner import submit
from batcher.submission.validation import validate
from tests.support.completing import complete
from tests.support.manual_engine import ManualEngine
from tests.support.submitted import carried_rows, make_options, rows_of


def test_columns_of_the_same_name_are_all_carried(tmp_path: Path) -> None:
    arrays = [pa.array(["p"]), pa.array([1]), pa.array([2]), pa.array(["other"]), pa.array([3])]
    table = pa.Table.from_arrays(arrays, names=["prompt", "n", "n", "prompt", "n_2"])
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(table, tmp_path / name)
    job = JobDir(tmp_path / "job")

    submit(job, [str(tmp_path / "a.parquet"), str(tmp_path / "b.parquet")], make_options())

    assert [row.request.prompts for row in rows_of(job)] == [("p",), ("p",)]
    assert carried_rows(job).to_pydict() == {"n": [1, 1], "n_3": [2, 2], "prompt_2": ["other", "other"], "n_2": [3, 3]}


def test_results_are_read_by_duckdb_whatever_the_names(tmp_path: Path) -> None:
    names = ["Name", "name", "TEXT", "a.b", 'a"b', "a\nb", "é", "x" * 5000, "carried"]
    columns = {"prompt": ["p"]} | {name: [i] for i, name in enumerate(names)}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    job = JobDir(tmp_path / "job")
    submit(job, [str(tmp_path / "in.parquet")], make_options())
    complete(job, ManualEngine())

    found = duckdb.read_parquet(f"{tmp_path}/job/results/*.parquet")

    values = dict(zip(found.columns, found.fetchall()[0], strict=True))
    expected = {"name": "name_2", "TEXT": "input_TEXT"}
    assert {name: values[expected.get(name, name)] for name in names} == {name: i for i, name in enumerate(names)}


def test_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["p"], "name!!": [1]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"name!!", b"name\xff\xfe"))

    with pytest.raises(InputError, match="the name of a column is not UTF-8"):
        validate([str(path)], make_options())


def test_duckdb_types_without_a_type_in_arrow_are_values_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    duckdb.sql(
        "copy (select 'p' as prompt, interval '14 months 3 days 500 milliseconds' as i, 'infinity'::date as d, "
        f"'{{}}'::json as j, [uuid '00000000-0000-0000-0000-000000000007'] as u) to '{path}'"
    )
    job = JobDir(tmp_path / "job")

    submit(job, [str(path)], make_options(template="{i} {d} {u}"))

    assert rows_of(job)[0].request.prompts == ('P14M3DT0.5S +5881580-07-11 ["00000000-0000-0000-0000-000000000007"]',)
    carried = carried_rows(job)
    assert json_values(carried["i"]) == ["P14M3DT0.5S"]
    assert [str(carried[name].type) for name in ("j", "u")] == [
        "extension<arrow.json>",
        "list<element: extension<arrow.uuid>>",
    ]
