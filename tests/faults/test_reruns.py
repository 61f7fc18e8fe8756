"""Rows that run again, by real workers that are killed: whoever reads the results finds each row once, old or new."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from batcher.jobdir.folder import JobDir
from tests.faults.command_lines import prompts_of, resume_line, run_line
from tests.faults.interruption import Interruption
from tests.support.family import Family, start_worker, wait_until_ready
from tests.support.job_files import result_rows
from tests.support.waiting import wait_for

ROWS = 60
SHARD_ROWS = 20
TOKENS_BEFORE, TOKENS_AFTER = 4, 12
#: The random model would end its texts where it likes.
LONGER = ("--set", f"max_tokens={TOKENS_AFTER}", "--set", "ignore_eos=true", "--set", "temperature=0")


def complete(family: Family, model: Path) -> JobDir:
    job = JobDir(family.folder / "out")
    options = ("--max-tokens", TOKENS_BEFORE, "--threads", 1, "--shard-rows", SHARD_ROWS)
    family.run(*run_line(family, model, job, prompts_of(family, ROWS), *options), code=0)
    return job


def read_as_others_do(job: JobDir) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(job.results_dir).to_pylist()
    assert sorted(row["row"] for row in rows) == list(range(ROWS))
    return rows


def assert_answered_again(job: JobDir, before: list[dict[str, Any]], rows: set[int]) -> None:
    """These rows have longer answers, the others what they had; and what they had lies in `earlier`."""
    assert job.is_complete
    after = result_rows(job)
    assert [row["row"] for row in after] == list(range(ROWS))
    assert [row for row in after if row["row"] not in rows] == [row for row in before if row["row"] not in rows]
    assert {row["completion_tokens"] for row in after if row["row"] in rows} == {TOKENS_AFTER}
    earlier = pq.read_table(job.earlier_dir).to_pylist()
    assert sorted(earlier, key=lambda row: row["row"]) == [row for row in before if row["row"] in rows]
    assert list(job.path.glob("retries/*/*")) == list(job.path.glob("chunks/*/*")) == []


@pytest.mark.parametrize(
    ("function", "text"),
    [
        # The second shard's: the rows that it replaces are about to be kept, the part to be replaced, the retry closed.
        ("batcher.jobdir.local_store:create_if_absent", "earlier/part-00001"),
        ("batcher.jobdir.local_store:replace", "results/part-00001"),
        ("batcher.jobdir.local_store:move", "retries/00001"),
    ],
)
def test_workers_killed_at_a_commit_leave_each_row_once_and_are_made_up_for(
    family: Family, model: Path, function: str, text: str
) -> None:
    job = complete(family, model)
    before = result_rows(job)
    family.run("retry", job.path, "--where", "row >= 0", *LONGER, code=0)
    moment = Interruption(family.folder / "moment", function, text, "workers.child")
    family.start(*resume_line(job, model), env=moment.env)
    moment.wait()

    family.kill_all()

    read_as_others_do(job)
    assert not job.is_complete
    family.run(*resume_line(job, model), code=0)
    assert_answered_again(job, before, {*range(ROWS)})


def test_fleet_takes_up_rows_that_were_answered_and_keeps_the_others(
    family: Family, model: Path, redis_url: str
) -> None:
    job = JobDir(family.folder / "jobs" / "job")
    wait_until_ready(start_worker(family, redis_url, model, "w1"))
    options = ("--broker", redis_url, "--jobs-dir", job.path.parent)
    submit = ("--job-id", job.job_id, "--max-tokens", TOKENS_BEFORE, "--shard-rows", SHARD_ROWS, "--model", "tiny")
    family.run("submit", prompts_of(family, ROWS), *options, *submit, "--wait", code=0)
    before = result_rows(job)

    family.run("retry", job.path, "--broker", redis_url, "--where", "row < 30", *LONGER, code=0)

    wait_for(lambda: job.is_complete, what="the new answers")
    assert_answered_again(job, before, {*range(30)})
