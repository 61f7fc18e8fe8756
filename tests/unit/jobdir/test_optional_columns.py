"""Result columns that only some jobs have: typed by the job's schema, null where there is nothing to hold."""

import json
import math
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from batcher import constraints
from batcher.errors import JobError
from batcher.jobdir.manifest import encode_manifest, parse_manifest
from batcher.jobdir.optional_columns import json_parts, optional_schema
from batcher.jobdir.results import RESULT_FIELDS, build_table, join_tables, read_file, result_schema, write_file
from batcher.types import Completion, Constraint, FinishReason, SamplingParams
from tests.support.job_files import CARRIED, answered, carried_of, failed, make_job

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": ["integer", "null"]},
        "score": {"type": "number"},
        "is_new": {"type": "boolean"},
        "kind": {"enum": ["a", "b"]},
        "born": {"type": "string", "format": "date"},
        "seen": {"type": "string", "format": "date-time"},
        "address": {"type": "object", "properties": {"city": {"type": "string"}}},
        "tags": {"type": "array", "items": {"type": "string"}},
        "extra": {"type": "object"},
    },
    "required": ["name", "tags"],
}
ADA = {
    "name": "Ada",
    "age": 36,
    "score": 1.5,
    "is_new": True,
    "kind": "a",
    "born": "1815-12-10",
    "seen": "2026-01-01T12:00:00Z",
    "address": {"city": "London"},
    "tags": ["x", "y"],
    "extra": {"deep": [1]},
}
AS_ROW = {
    **ADA,
    "born": date(1815, 12, 10),
    "seen": datetime(2026, 1, 1, 12, tzinfo=UTC),
    "extra": '{"deep": [1]}',
}


def params_of(constraint: Constraint | None, **others: Any) -> SamplingParams:
    return SamplingParams(constraint=constraint, **others)


SCHEMA = params_of(constraints.json_schema(PERSON))
CHOICE = params_of(constraints.choice(["yes", "no"]))


def table_of(*completions: Completion, params: SamplingParams) -> pa.Table:
    carried = carried_of(completion.request.row for completion in completions)
    return build_table(completions, carried=carried, attempt=1, worker="w", optional=optional_schema(params))


def select(query: str) -> list[tuple[Any, ...]]:
    found = duckdb.sql(f"SELECT {query}")
    assert found is not None
    rows: list[tuple[Any, ...]] = found.fetchall()
    return rows


@pytest.mark.parametrize(
    "params", [SamplingParams(), params_of(constraints.regex("a+")), params_of(constraints.JSON_OBJECT)]
)
def test_jobs_that_ask_for_nothing_have_the_columns_of_always(params: SamplingParams) -> None:
    assert optional_schema(params) == pa.schema([])
    assert result_schema(CARRIED, optional=optional_schema(params)) == pa.schema([*RESULT_FIELDS, *CARRIED])


def test_output_comes_behind_the_fixed_columns_and_before_the_carried() -> None:
    table = table_of(answered(0, json.dumps(ADA), params=SCHEMA), params=SCHEMA)

    assert table.schema.names == [*RESULT_FIELDS.names, "output", *CARRIED.names]
    [row] = table.to_pylist()
    assert row["output"] == AS_ROW
    assert json.loads(row["text"]) == ADA


def test_choices_have_a_label() -> None:
    table = table_of(answered(0, "yes", "no", params=CHOICE), params=CHOICE)

    assert table.schema.names == [*RESULT_FIELDS.names, "label", *CARRIED.names]
    assert table["label"].to_pylist() == ["yes", "no"]


def test_scored_labels_have_probabilities_that_add_up() -> None:
    params = params_of(constraints.scored_choice(["yes", "no"]), temperature=0.5)
    scored = answered(0, "no", params=params)
    scored = replace(scored, choices=(replace(scored.choices[0], label_logprobs=(-2.0, -1.0)),))
    table = table_of(scored, failed(1), params=params)

    assert table.schema.names == [*RESULT_FIELDS.names, "label", "label_probability", "scores", *CARRIED.names]
    assert table["label"].to_pylist() == ["no", None]
    # Twice as far from each other as at temperature 1.
    probability = 1 / (1 + math.exp(-2))
    assert table["label_probability"].to_pylist() == [pytest.approx(probability), None]
    assert table["scores"].to_pylist()[1] is None
    assert dict(table["scores"].to_pylist()[0]) == pytest.approx({"yes": 1 - probability, "no": probability})
    at_zero = replace(params, temperature=0)
    assert constraints.label_scores(scored.choices[0], at_zero) == constraints.label_scores(
        scored.choices[0], replace(params, temperature=1)
    )
    # However cold, they are numbers.
    coldest = replace(params, temperature=5e-324)
    assert constraints.label_scores(scored.choices[0], coldest) == {"yes": 0.0, "no": 1.0}


@pytest.mark.parametrize(("params", "text", "name"), [(SCHEMA, json.dumps(ADA), "output"), (CHOICE, "yes", "label")])
def test_what_is_cut_off_or_failed_or_fits_nothing_is_null(params: SamplingParams, text: str, name: str) -> None:
    rows = (
        answered(0, text, params=params, finish_reason=FinishReason.LENGTH),
        failed(1),
        answered(2, "neither", params=params),
        answered(3, text, params=params),
    )
    table = table_of(*rows, params=params)

    assert [value is None for value in table[name].to_pylist()] == [True, True, True, False]
    assert table["text"].to_pylist() == [text, None, "neither", text]


def test_a_row_with_a_constraint_of_its_own_has_what_fits_the_column() -> None:
    other = params_of(constraints.json_schema({"type": "object", "properties": {"name": {"type": "string"}}}))
    table = table_of(
        answered(0, '{"name": "Ada"}', params=other),
        answered(1, '{"name": "Ada", "tags": []}', params=other),
        params=SCHEMA,
    )

    assert [value and value["name"] for value in table["output"].to_pylist()] == [None, "Ada"]
    assert table_of(answered(0, "yes", params=SamplingParams()), params=CHOICE)["label"].to_pylist() == [None]


def test_an_echoed_prompt_is_no_part_of_the_answer() -> None:
    params = replace(CHOICE, echo=True)
    row = answered(0, "prompt 0.0yes", params=params)
    echoed = replace(row, choices=tuple(replace(choice, num_echoed=len("prompt 0.0")) for choice in row.choices))

    assert table_of(echoed, params=params)["label"].to_pylist() == ["yes"]


def test_columns_have_their_types_in_duckdb_pandas_and_polars(tmp_path: Path) -> None:
    null = answered(1, "{", params=SCHEMA, finish_reason=FinishReason.LENGTH)
    write_file(tmp_path / "part.parquet", table_of(answered(0, json.dumps(ADA), params=SCHEMA), null, params=SCHEMA))
    path = str(tmp_path / "part.parquet")

    [(found, kind), (nothing, _)] = select(f"output, typeof(output) FROM '{path}' ORDER BY row")
    assert {**found, "seen": found["seen"].astimezone(UTC)} == AS_ROW
    assert nothing is None
    assert kind.replace('"', "") == (
        "STRUCT(name VARCHAR, age BIGINT, score DOUBLE, is_new BOOLEAN, kind VARCHAR, born DATE, "
        "seen TIMESTAMP WITH TIME ZONE, address STRUCT(city VARCHAR), tags VARCHAR[], extra VARCHAR)"
    )
    assert select(f"output.address.city, count(*) FROM '{path}' GROUP BY 1 ORDER BY 1") == [("London", 1), (None, 1)]

    frame = pl.read_parquet(path)
    assert frame.schema["output"] == pl.Struct(
        {
            "name": pl.String,
            "age": pl.Int64,
            "score": pl.Float64,
            "is_new": pl.Boolean,
            "kind": pl.String,
            "born": pl.Date,
            "seen": pl.Datetime("us", "UTC"),
            "address": pl.Struct({"city": pl.String}),
            "tags": pl.List(pl.String),
            "extra": pl.String,
        }
    )
    assert frame["output"].to_list() == [AS_ROW, None]

    first, second = pd.read_parquet(path)["output"]
    assert {**first, "tags": list(first["tags"])} == AS_ROW
    assert second is None


def test_files_come_back_as_they_were_written_and_join(tmp_path: Path) -> None:
    table = table_of(answered(0, json.dumps(ADA), params=SCHEMA), params=SCHEMA)
    write_file(tmp_path / "chunk.parquet", table)
    read = read_file(tmp_path / "chunk.parquet")
    schema = result_schema(CARRIED, optional=optional_schema(SCHEMA))

    joined = join_tables([read, table_of(answered(1, "{}", params=SCHEMA), params=SCHEMA)], schema)

    assert read.equals(table)
    assert joined["output"].to_pylist() == [AS_ROW, None]
    assert joined.schema.equals(schema, check_metadata=True)


def test_manifest_has_the_columns_and_the_marks_of_json_text(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", params=SCHEMA)

    assert job.manifest.optional.equals(optional_schema(SCHEMA), check_metadata=True)
    assert json_parts(SCHEMA) == ("output.extra: the schema names no properties of it",)


def test_manifest_of_a_job_without_names_none(tmp_path: Path) -> None:
    manifest = make_job(tmp_path / "job").manifest

    assert manifest.optional_ipc == ""
    assert manifest.optional == pa.schema([])


def test_damaged_columns_are_told(tmp_path: Path) -> None:
    manifest = replace(make_job(tmp_path / "job").manifest, optional_ipc="bm8=")

    with pytest.raises(JobError, match="optional_ipc is no schema"):
        parse_manifest(encode_manifest(manifest), path=tmp_path)
