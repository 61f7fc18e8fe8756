"""Parquet as others write it: names of columns, intervals."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batcher.arrow.values import json_values
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.submission.planner import submit
from batcher.submission.readers.bounds import NO_BOUNDS
from batcher.submission.readers.parquet_files import read_tables
from batcher.submission.validation import validate
from tests.support.completing import complete
from tests.support.manual_engine import ManualEngine
from tests.support.submitted import carried_rows, make_options, rows_of

#: Columns of each kind that Parquet stores in ways of their own, and these ways beside dictionaries.
TEXTS = ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]
STORED: dict[str, tuple[pa.DataType, Any, list[str]]] = {
    "texts": (pa.string(), lambda i: f"text {i % 700} " * (i % 5), TEXTS),
    "bytes": (pa.binary(), lambda i: b"\xff" * (i % 9), TEXTS),
    "lists of texts": (pa.list_(pa.string()), lambda i: [f"{i}", None, "same"][: i % 4], TEXTS),
    "fixed bytes": (pa.binary(4), lambda i: b"%4d" % (i % 10_000), ["PLAIN", "DELTA_BYTE_ARRAY", "BYTE_STREAM_SPLIT"]),
    "integers": (pa.int64(), lambda i: i * i, ["PLAIN", "DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT"]),
    "numbers": (pa.float64(), lambda i: i / 7, ["PLAIN", "BYTE_STREAM_SPLIT"]),
    "truths": (pa.bool_(), lambda i: i % 3 == 0, ["PLAIN", "RLE"]),
}
WAYS = [(kind, way) for kind, (_, _, ways) in STORED.items() for way in [None, *ways]]


def read_all(path: Path) -> pa.Table:
    with path.open("rb") as file:
        return pa.concat_tables([batch.table for batch in read_tables(file, path.name, bounds=NO_BOUNDS)])


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_values_are_the_same_however_they_are_stored(tmp_path: Path, kind: str, way: str | None, version: str) -> None:
    type_, value, _ = STORED[kind]
    values = [None if i % 11 == 0 else value(i) for i in range(5_000)]
    table = pa.table({"prompt": [f"p {i}" for i in range(5_000)], "x": pa.array(values, type_)})
    leaf = "x.list.element" if pa.types.is_list(type_) else "x"
    path = tmp_path / "in.parquet"
    pq.write_table(
        *(table, path),
        use_dictionary=way is None,
        column_encoding=None if way is None else {"prompt": "PLAIN", leaf: way},
        data_page_version=version,
        row_group_size=3_000,
    )

    assert read_all(path).equals(table)


@pytest.mark.parametrize("group", [100, 1_500, 5_000])
def test_chats_that_lie_in_several_row_groups(tmp_path: Path, group: int) -> None:
    chats = [
        [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "x" * (i % 50)}] for i in range(4_000)
    ]
    table = pa.table({"messages": chats, "of": [{"name": f"{i % 3}", "all": [str(i)]} for i in range(4_000)]})
    path = tmp_path / "in.parquet"
    pq.write_table(table, path, row_group_size=group, dictionary_pagesize_limit=5_000)

    assert read_all(path).equals(table)


def test_texts_as_duckdb_writes_them_for_the_second_version(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    duckdb.sql(f"copy (select 'text ' || i as prompt from range(40000) t(i)) to '{path}' (parquet_version v2)")
    assert "DELTA_LENGTH_BYTE_ARRAY" in pq.read_metadata(path).row_group(0).column(0).encodings

    assert read_all(path).column("prompt").to_pylist() == [f"text {i}" for i in range(40_000)]


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
