"""The time in which a job was worked on: rests between attempts are none of it."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import write_file
from batcher.jobdir.retries import close_shard
from batcher.manage.finish import finalize
from batcher.manage.retry import parse_where, retry
from batcher.manage.worked import covered_s
from tests.support.job_files import make_job, ok, result_table, write_chunk


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0),
        ([(10, 12)], 2),
        ([(10, 20), (12, 14)], 10),
        ([(12, 25), (10, 20)], 15),
        ([(10, 12), (600, 603)], 5),
        ([(10, 9), (20, 21)], 1),
    ],
)
def test_times_that_overlap_count_once(spans: list[tuple[float, float]], seconds: float) -> None:
    assert covered_s(spans) == seconds


def test_time_between_a_complete_job_and_its_retry_is_no_work(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    began = claim(job)
    commit(job, at=began + 2)
    first = finalize(job)
    assert first is not None

    assert retry(job, where=parse_where(job, ["row = 1"]), settings={"max_tokens": 6}).selection.num_rows == 1
    claim(job, at=began + 600)
    commit(job, at=began + 603)

    again = finalize(job)
    assert again is not None
    assert (first.elapsed_s, first.tokens_per_s) == pytest.approx((2, 3), abs=0.01)
    assert (again.elapsed_s, again.tokens_per_s) == pytest.approx((5, 1.2), abs=0.01)
    assert again.finished_at.timestamp() == pytest.approx(began + 603)


def test_night_between_an_interruption_and_the_resume_is_no_work(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    began = claim(job)
    chunk = write_chunk(job, 0, [ok(0)])
    os.utime(chunk, (began + 4,) * 2)
    claim(job, at=began + 36_000)
    commit(job, at=began + 36_006)

    summary = finalize(job)

    assert summary is not None
    assert (summary.elapsed_s, summary.tokens_per_s) == pytest.approx((10, 0.6), abs=0.01)


def test_attempt_of_an_older_batcher_lasts_to_the_next(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    began = claim(job)
    claim(job, at=began + 20, notes_rest=False)
    commit(job, at=began + 26)

    summary = finalize(job)

    assert summary is not None
    assert summary.elapsed_s == pytest.approx(26, abs=0.01)


def claim(job: JobDir, *, at: float | None = None, notes_rest: bool = True) -> float:
    """Claim shard 0, now or as if it were `at`. Returns when that was."""
    path = job.attempt_path(0, attempt=job.claim_attempt(0, worker="w"))
    record = json.loads(path.read_text())
    if at is not None:
        record["claimed_at"] = datetime.fromtimestamp(at, UTC).isoformat()
    if not notes_rest:
        del record["idle_since"]
    path.write_text(json.dumps(record))
    return datetime.fromisoformat(record["claimed_at"]).timestamp()


def commit(job: JobDir, *, at: float) -> None:
    """Give shard 0 its part, or a new one that answers its retries."""
    path = job.part_path(0)
    path.unlink(missing_ok=True)
    write_file(path, result_table([ok(0), ok(1)]))
    os.utime(path, (at, at))
    close_shard(job, 0, job.open_retries(0))
