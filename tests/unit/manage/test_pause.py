"""Pause: once, of nothing that is over, and until the job is taken up again."""

from pathlib import Path

from batcher.manage.cancel import CancelResult, cancel
from batcher.manage.pause import PauseResult, pause
from batcher.manage.resume import resume
from batcher.manage.status import JobState, read_status
from tests.support.job_files import complete_job, make_job


def test_job_is_paused_once_until_it_is_taken_up_again(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")

    assert [pause(job), pause(job)] == [PauseResult.PAUSED, PauseResult.ALREADY_PAUSED]
    assert read_status(job).state is JobState.PAUSED

    resume(job)

    assert read_status(job).state is JobState.WAITING
    assert pause(job) is PauseResult.PAUSED


def test_complete_job_is_finished_and_not_paused(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")

    assert pause(job) is PauseResult.TOO_LATE
    assert job.is_complete
    assert not job.is_paused


def test_cancelled_job_stays_cancelled(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    job.cancel()

    assert pause(job) is PauseResult.CANCELLED
    assert not job.is_paused


def test_paused_job_can_be_cancelled_and_one_resume_takes_back_both(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    pause(job)

    assert cancel(job) is CancelResult.CANCELLED
    assert read_status(job).state is JobState.CANCELLED

    resume(job)

    assert read_status(job).state is JobState.WAITING
