"""Jobs with schemas on a real engine: typed from the rows to the frame, whoever validates, whatever is killed."""

import json
from datetime import date
from pathlib import Path
from typing import Any, Literal

import duckdb
import jsonschema
import polars as pl
import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import batcher
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from tests.faults.injection import inject
from tests.support.family import Family, assert_every_row_once, has_chunks, start_worker
from tests.support.job_files import result_rows
from tests.support.waiting import wait_for


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Part(Closed):
    name: str = Field(max_length=8)
    number: int = Field(ge=0, le=99)


class Order(Closed):
    kind: Literal["new", "again"]
    day: date
    note: str | None = Field(max_length=8)
    weight: float = Field(ge=0, le=10)
    parts: list[Part] = Field(max_length=2)


NUMBER = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["a"],
    "additionalProperties": False,
}
CHECKS = "def is_some(answer):\n    return answer['a'] > 0\n"


def value_of(text: str) -> dict[str, Any] | None:
    """None where a day is none of the calendar, as of the year 0: a pattern of dates knows no more."""
    try:
        return Order.model_validate_json(text).model_dump()
    except ValidationError:
        return None


def test_pydantic_model_becomes_a_struct_of_valid_answers(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": f"order {row}", "output": row} for row in range(40)]

    job = batcher.run(rows, tmp_path / "out", model=str(model), json_schema=Order, max_tokens=400, ctx=1024)

    results = job.results()
    frame = results.to_polars()
    assert frame.schema["output"] == pl.Struct(
        {
            "kind": pl.String,
            "day": pl.Date,
            "note": pl.String,
            "weight": pl.Float64,
            "parts": pl.List(pl.Struct({"name": pl.String, "number": pl.Int64})),
        }
    )
    assert frame["input_output"].to_list() == list(range(40))
    schema = Order.model_json_schema()
    answers = [row for row in results if row["finish_reason"] == "stop"]
    assert len(answers) > 20
    for row in answers:
        jsonschema.validate(json.loads(row["text"]), schema)
        assert row["output"] == value_of(row["text"])
    cut = [row for row in results if row["finish_reason"] == "length"]
    assert all(row["output"] is None for row in cut)
    path = f"{job.path}/results/*.parquet"
    with duckdb.connect() as connection:
        counted = connection.execute(
            f"SELECT count(output.kind), count(output.parts[1].number) FROM '{path}'"
        ).fetchone()
    parts = [row["output"]["parts"] for row in answers if row["output"] is not None]
    assert counted == (len(parts), sum(len(each) > 0 for each in parts))


def test_own_function_is_asked_of_each_answer_in_the_workers(family: Family, model: Path) -> None:
    (family.folder / "checks.py").write_text(CHECKS)
    script = f"""
        import batcher, checks
        rows = [{{"prompt": f"row {{row}}"}} for row in range(30)]
        options = dict(model={str(model)!r}, json_schema={NUMBER!r}, max_tokens=64)
        job = batcher.run(rows, "out", validate=checks.is_some, retry_invalid=100, **options)
        assert all(row["output"]["a"] for row in job.results())
        strict = batcher.run(rows, "strict", validate="checks:is_some", **options)
        refused = [row for row in strict.results() if row["error_code"] == "invalid_answer"]
        assert refused and all(row["output"] is None for row in refused)
    """

    command = family.start_script("\n".join(line[8:] for line in script.splitlines()))

    assert command.wait() == 0, command.stderr


def test_functions_that_workers_cannot_import_are_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match="put the function into a module"):
        batcher.run([{"prompt": "a"}], tmp_path / "out", model=str(model), validate=lambda answer: True)

    assert not (tmp_path / "out").exists()


def test_worker_calls_a_function_that_it_was_started_with_and_no_other(
    family: Family, redis_url: str, model: Path
) -> None:
    (family.folder / "checks.py").write_text(CHECKS)
    (family.folder / "number.json").write_text(json.dumps(NUMBER))
    (family.folder / "p.jsonl").write_text("".join(f'{{"prompt": "row {row}"}}\n' for row in range(20)))
    command = family.run(
        *("submit", "p.jsonl", "--model", "tiny", "--broker", redis_url, "--jobs-dir", "jobs", "--json-schema"),
        *("number.json", "--max-tokens", 64, "--validate", "checks:is_some", "--retry-invalid", 100),
        code=0,
    )
    job = JobDir(family.folder / "jobs" / command.stdout.splitlines()[0])

    stranger = start_worker(family, redis_url, model, "stranger")
    wait_for(lambda: "start it with --allow-validator checks:is_some" in stranger.stderr, what="a refusal")
    stranger.process.terminate()
    stranger.wait()
    assert not job.committed_shards()

    start_worker(family, redis_url, model, "friend", "--allow-validator", "checks:is_some")
    family.run("resume", job.path, "--broker", redis_url, code=0)
    wait_for(lambda: job.is_complete, what="the job is complete")
    assert_every_row_once(job, 20)
    assert all(row["output"]["a"] for row in result_rows(job))


def test_rows_that_are_computed_anew_come_out_once_after_a_kill(family: Family, model: Path) -> None:
    """Given a run whose rows take several tries, when it is killed amid them, then the same command ends it."""
    (family.folder / "checks.py").write_text(CHECKS)
    (family.folder / "number.json").write_text(json.dumps(NUMBER))
    (family.folder / "p.jsonl").write_text("".join(f'{{"prompt": "row {row}"}}\n' for row in range(60)))
    arguments = (
        *("run", "p.jsonl", "-o", "out", "--model", f"tiny={model}", "--slots", 4, "--json-schema", "number.json"),
        *("--max-tokens", 64, "--validate", "checks:is_some", "--retry-invalid", 100, "--seed", 7),
    )
    job = JobDir(family.folder / "out")
    family.start(*arguments, env=inject(slow_step_s=0.05))
    wait_for(lambda: job.exists() and has_chunks(job), what="finished rows")
    family.kill_all()
    assert not job.success_path.exists()

    family.run(*arguments, code=0)

    rows = assert_every_row_once(job, 60)
    assert all(row["output"]["a"] for row in rows)
    assert {row["attempts"] for row in rows} == {1, 2}
