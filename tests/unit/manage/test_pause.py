"""Pause: once, of nothing that is over, and until the job is taken up again."""

from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from batcher.manage import pause as module
from batcher.manage.cancel import CancelResult, cancel
from batcher.manage.finish import Summary, finalize
from batcher.manage.pause import PauseResult, pause
from batcher.manage.resume import resume
from batcher.manage.status import JobState, read_status
from tests.support.job_files import complete_job, make_job, ok, write_part


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


def test_commit_between_the_look_and_the_mark_takes_the_mark_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path / "job", (1,))

    def look_and_commit(job: JobDir) -> Summary | None:
        summary = finalize(job)
        if summary is None and not job.is_paused:
            write_part(job, 0, [ok(0)])
        return summary

    monkeypatch.setattr(module, "finalize", look_and_commit)

    assert pause(job) is PauseResult.TOO_LATE
    assert job.is_complete
    assert not job.is_paused
