"""Cancellation of a job. Workers stop at their next row, and what is finished stays; `resume` takes it up again."""

from enum import StrEnum

from batcher.jobdir.folder import JobDir
from batcher.manage.finish import finalize


class CancelResult(StrEnum):
    """What became of the wish to cancel."""

    CANCELLED = "cancelled"
    ALREADY_CANCELLED = "already_cancelled"
    #: It was complete, or was completed at that moment.
    TOO_LATE = "too_late"


def cancel(job: JobDir) -> CancelResult:
    """Cancel `job`. Raises JobError where the manifest is wrong, StorageError where the disk says no."""
    is_new = finalize(job) is None and job.cancel()
    # Once more: workers may have completed it at this moment. That takes the mark back.
    if finalize(job) is not None:
        return CancelResult.TOO_LATE
    return CancelResult.CANCELLED if is_new else CancelResult.ALREADY_CANCELLED
