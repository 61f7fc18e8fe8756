"""Cancellation: once, and never of what is complete; a pause of what becomes complete, too."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from types import ModuleType

import pytest

from batcher.jobdir.folder import JobDir
from batcher.manage import cancel as cancelling
from batcher.manage import pause as pausing
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


@pytest.mark.parametrize(("module", "halt"), [(cancelling, cancelling.cancel), (pausing, pausing.pause)])
def test_commit_between_the_look_and_the_mark_takes_the_mark_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, halt: Callable[[JobDir], StrEnum]
) -> None:
    job = make_job(tmp_path / "job", (1,))

    def look_and_commit(job: JobDir) -> Summary | None:
        summary = finalize(job)
        if summary is None and not job.is_halted:
            write_part(job, 0, [ok(0)])
        return summary

    monkeypatch.setattr(module, "finalize", look_and_commit)

    assert halt(job) == CancelResult.TOO_LATE
    assert job.is_complete
    assert not job.is_halted
