"""Cancellation: once, and never of what is complete."""

from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from batcher.manage import cancel as module
from batcher.manage.cancel import CancelResult, cancel
from batcher.manage.finish import Summary, finalize
from tests.support.job_files import complete_job, make_job, ok, write_part


def test_job_is_cancelled_once(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")

    assert [cancel(job), cancel(job)] == [CancelResult.CANCELLED, CancelResult.ALREADY_CANCELLED]
    assert job.is_cancelled


def test_complete_job_is_finished_and_not_cancelled(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")

    assert cancel(job) is CancelResult.TOO_LATE
    assert job.is_complete
    assert not job.is_cancelled


def test_commit_between_the_look_and_the_mark_takes_the_mark_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path / "job", (1,))

    def look_and_commit(job: JobDir) -> Summary | None:
        summary = finalize(job)
        if summary is None and not job.is_cancelled:
            write_part(job, 0, [ok(0)])
        return summary

    monkeypatch.setattr(module, "finalize", look_and_commit)

    assert cancel(job) is CancelResult.TOO_LATE
    assert job.is_complete
    assert not job.is_cancelled
