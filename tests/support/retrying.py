"""Retries in tests: a condition on a job's rows, and workers that answer what a retry has opened."""

from batcher.arrow.conditions import Condition
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import read_file
from batcher.jobdir.workload import Workload
from batcher.manage.retry import parse_where
from tests.support.job_files import (
    ok,
    result_table,
)


def resume(job: JobDir, *, text: str = "again") -> list[int]:
    """Finish the job as workers do. Returns the rows that were run."""
    ran: list[int] = []
    for info in job.pending_shards():
        claim = job.claim(info.shard, worker="w2")
        work = Workload(job, info.shard, claim=claim)
        if work.finish_commit():
            continue
        done = {row for table in work.saved for row in table["row"].to_pylist()}
        missing = [row.request.row for row in work.rows if row.request.row not in done]
        ran += missing
        table = result_table([ok(row, text=text) for row in missing], attempt=claim.attempt)
        assert work.commit(work.join(table))
        job.delete_chunks(info.shard, work.chunks)
    return ran


def texts(job: JobDir, shard: int) -> list[str | None]:
    found: list[str | None] = read_file(job.part_path(shard))["text"].to_pylist()
    return found


def where(job: JobDir, *conditions: str) -> Condition | None:
    return parse_where(job, conditions)
