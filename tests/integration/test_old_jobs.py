"""Jobs that an older Batcher made: commands of today show them, go on with them, and write out their results.

tests/data/job_e075c6b/README.md says what is in them, and how they were made.
"""

import json
import os
import shutil
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from batcher.jobdir.folder import JobDir
from tests.support.family import Command, Family, chunk_rows
from tests.support.job_files import result_rows
from tests.support.serving import serve
from tests.support.waiting import wait_for

DATA = Path(__file__).parents[1] / "data" / "job_e075c6b"
#: The command that made the interrupted job, but for its model.
MADE_BY = ("run", "tickets.parquet", "bodies.jsonl", "-o", "jobs/interrupted", "--shard-rows", 6, "--max-tokens", 4)
#: Rows of the interrupted job, and their choices.
ROWS = 18
CHOICES = 25
REFUSED = {15: "invalid_request", 16: "invalid_request", 17: "model_not_found"}
TOO_LONG = {3: "context_length_exceeded"}
KEY = "0123456789abcdef"


@pytest.fixture
def jobs(family: Family) -> Path:
    """A copy of the old jobs and their inputs in the folder of `family`."""
    shutil.copytree(DATA, family.folder, dirs_exist_ok=True)
    # Of a worker that was killed long ago; in a fresh checkout it would be alive.
    for beat in (family.folder / "jobs").glob("*/.workers/*"):
        os.utime(beat, (0, 0))
    return family.folder / "jobs"


@pytest.fixture
def interrupted(family: Family, jobs: Path) -> JobDir:
    job = JobDir(jobs / "interrupted")
    family.jobs.append(job.path)
    return job


def ran(family: Family, *arguments: object, code: int = 0) -> Command:
    """A command that has ended as it should."""
    command = family.run(*arguments)
    assert command.process.returncode == code, command.stderr
    return command


def completed_rows(job: JobDir, saved: list[dict[str, Any]], *, errors: Mapping[int, str]) -> list[dict[str, Any]]:
    """The audit of a complete job of which `saved` was finished: its result rows."""
    found = result_rows(job)
    assert [(row["row"], row["index"]) for row in found] == sorted((row["row"], row["index"]) for row in found)
    assert sorted({row["row"] for row in found}) == list(range(ROWS))
    assert len(found) == CHOICES
    assert {row["row"]: row["error_code"] for row in found if row["status"] != "ok"} == errors
    assert job.success_path.exists()
    kept = {(row["row"], row["index"]) for row in saved}
    assert [row for row in found if (row["row"], row["index"]) in kept] == saved
    return found


def saved_rows(job: JobDir) -> list[dict[str, Any]]:
    """What was finished when the job was interrupted, in order: rows of parts and of chunks."""
    chunks = [str(path) for path in job.path.glob("chunks/*/*.parquet")]
    rows = [*result_rows(job), *pads.dataset(chunks).to_table().to_pylist()]
    return sorted(rows, key=lambda row: (row["row"], row["index"]))


def test_command_that_made_an_old_job_completes_it(family: Family, model: Path, interrupted: JobDir) -> None:
    # Given
    saved = saved_rows(interrupted)
    assert len({row["row"] for row in saved}) == 11
    assert set(chunk_rows(interrupted)) == {9, 10}, "two rows of a shard that was not finished"
    parts = {path: path.read_bytes() for path in interrupted.results_dir.glob("*.parquet")}
    before = json.loads(ran(family, "status", "interrupted", "--jobs-dir", "jobs", "--json").stdout)
    assert (before["state"], before["num_rows"], before["num_done"], before["num_errors"]) == ("running", ROWS, 11, 4)
    assert (before["num_committed"], before["num_claimed"], before["num_attempts"]) == (2, 2, 5)
    assert [worker["health"] for worker in before["workers"]] == ["gone"]

    # When
    run = ran(family, *MADE_BY, "--model", f"tiny={model}", "--threads", 1, code=1)

    # Then
    assert "Resuming: 11 of 18 rows done." in run.stderr
    assert "18 in = 14 ok + 4 error" in run.stdout
    rows = completed_rows(interrupted, saved, errors=REFUSED | TOO_LONG)
    assert {path: path.read_bytes() for path in parts} == parts
    ids = {row["row"]: row["id"] for row in rows if row["status"] == "ok"}
    assert len(set(ids.values())) == len(ids) == 14
    assert [row["custom_id"] for row in rows if not row["index"]] == [
        *(f"ticket-{i}" for i in range(6)),
        *("n-of-three", "echoed", "logprobs", "chat", "plain", "best", "bias", "two-prompts", "n-of-two"),
        *("refused", "row-16", "other-model"),
    ]
    assert {row["row"]: row["attempts"] for row in rows if 6 <= row["row"] < 15} == {
        **dict.fromkeys(range(6, 15), 3),
        **dict.fromkeys((9, 10), 1),
    }
    texts = {row["custom_id"]: row["text"] for row in rows if not row["index"]}
    assert texts["echoed"].startswith("hello")
    logprobs = json.loads(next(row["logprobs"] for row in rows if row["custom_id"] == "logprobs"))
    assert len(logprobs["token_logprobs"]) == 3

    again = ran(family, *MADE_BY, "--model", f"tiny={model}", code=1)
    assert "The job is complete" in again.stderr
    assert again.stdout == run.stdout


def test_old_job_is_resumed_retried_and_exported(family: Family, model: Path, interrupted: JobDir) -> None:
    # Given
    saved = saved_rows(interrupted)
    partial = ran(family, "export", interrupted.path, "-o", "partial.jsonl", "--partial")
    assert "partial.jsonl: 11 lines" in partial.stdout

    # When
    ran(family, "resume", interrupted.path, "--model", f"tiny={model}", "--threads", 1, code=1)
    completed_rows(interrupted, saved, errors=REFUSED | TOO_LONG)
    retried = ran(family, "retry", interrupted.path)
    ran(family, "resume", interrupted.path, "--model", f"tiny={model}", "--threads", 1, code=1)

    # Then
    assert "Reopened 1 row in 1 shard." in retried.stdout
    rows = completed_rows(interrupted, [row for row in saved if row["row"] not in TOO_LONG], errors=REFUSED)
    assert (rows[3]["custom_id"], rows[3]["status"], rows[3]["completion_tokens"]) == ("ticket-3", "ok", 11)
    table = pads.dataset(interrupted.results_dir, format="parquet").to_table()
    assert table.num_rows == CHOICES
    assert_carried(table)
    assert_exports(family, interrupted, rows)


def assert_carried(table: pa.Table) -> None:
    """The input columns of both files have gone along, with their types."""
    tickets = pq.read_table(DATA / "tickets.parquet")
    for name in ("priority", "opened", "price", "raw", "tags", "from"):
        # Whole numbers of both files have become of one type.
        expected = pa.int64() if name == "priority" else tickets[name].type
        assert table[name].type == expected
        assert table[name].slice(0, tickets.num_rows).to_pylist() == tickets[name].to_pylist()
    # `text` is a column of ours.
    assert table["input_text"].slice(0, tickets.num_rows).to_pylist() == tickets["text"].to_pylist()
    bodies = {row["custom_id"]: (row["priority"], row["input_text"]) for row in table.slice(6).to_pylist()}
    assert bodies["n-of-three"] == (100, "carried")
    assert bodies["plain"] == (104, "ü")
    assert bodies["other-model"] == (None, "no worker has it")


def assert_exports(family: Family, job: JobDir, rows: list[dict[str, Any]]) -> None:
    """Each form of export has all rows, in order."""
    for name, *options in (("rows.parquet",), ("rows.csv",), ("rows.jsonl",), ("lines.jsonl", "--format", "openai")):
        ran(family, "export", job.path, "-o", name, *options)
    assert pq.read_table(family.folder / "rows.parquet").to_pylist() == rows
    # Texts of this model may hold line breaks.
    csv = pacsv.read_csv(family.folder / "rows.csv", parse_options=pacsv.ParseOptions(newlines_in_values=True))
    assert csv["custom_id"].to_pylist() == [row["custom_id"] for row in rows]
    requests = [list(choices) for _, choices in groupby(rows, key=lambda row: row["row"])]
    bodies = read_lines((family.folder / "rows.jsonl").read_bytes())
    lines = read_lines((family.folder / "lines.jsonl").read_bytes())
    for request, body, line in zip(requests, bodies, lines, strict=True):
        assert body["custom_id"] == line["custom_id"] == request[0]["custom_id"]
        said = line["response"]["body"]
        assert body.get("id") == said.get("id") == request[0]["id"]
        if request[0]["status"] == "ok":
            texts = [choice.get("text", choice.get("message", {}).get("content")) for choice in said["choices"]]
            assert texts == [row["text"] for row in request]
        else:
            assert "error" in said
    assert bodies[0]["from"] == {"name": "n0", "age": 0}


def read_lines(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


def answer(line: dict[str, Any]) -> list[Any]:
    """Of a line of a batch's output, what stays as it is when another version writes it."""
    body = line["response"]["body"]
    return [line["custom_id"], *(body[name] for name in ("id", "object", "created", "model", "choices"))]


def test_server_shows_an_old_batch_and_completes_its_retried_row(family: Family, model: Path, jobs: Path) -> None:
    (job,) = (JobDir(path) for path in jobs.glob("batch_*"))
    family.jobs.append(job.path)
    (output, errors) = (next(job.batch_dir.glob(f"{kind}-*.jsonl")).read_bytes() for kind in ("output", "errors"))
    keys = family.folder / "keys.txt"
    keys.write_text(KEY)
    keys.chmod(0o600)

    with (
        serve(family, "--model", f"tiny={model}", "--api-keys-file", keys, "--threads", 1) as server,
        httpx.Client(base_url=server.base_url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as client,
    ):

        def content(file_id: str) -> bytes:
            return client.get(f"files/{file_id}/content").raise_for_status().content

        def batch() -> dict[str, Any]:
            found: dict[str, Any] = client.get(f"batches/{job.job_id}").raise_for_status().json()
            return found

        old = batch()
        assert (old["status"], old["metadata"]) == ("completed", {"team": "old"})
        assert old["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
        assert content(old["output_file_id"]) == output
        assert content(old["error_file_id"]) == errors
        assert len(content(old["input_file_id"]).splitlines()) == 3
        assert json.loads(errors)["custom_id"] == "b"

        ran(family, "retry", job.path)
        wait_for(lambda: batch()["request_counts"]["completed"] == 3, what="the failed row is completed")
        wait_for(lambda: batch()["status"] == "completed", what="the batch is complete again")

        lines = read_lines(content(batch()["output_file_id"]))
        assert [line["custom_id"] for line in lines] == ["a", "b", "c"]
        assert [answer(line) for line in (lines[0], lines[2])] == [answer(line) for line in read_lines(output)]
        assert batch()["error_file_id"] is None
