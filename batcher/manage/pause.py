"""Pause of a job. Workers stop at their next row and take other work, and what is finished stays; `resume` goes on.

Unlike a cancelled job one that is paused is meant to go on: who waits for it waits longer, and a batch of the API is in
progress still.
"""

from enum import StrEnum

from batcher.jobdir.folder import JobDir
from batcher.manage.finish import finalize


class PauseResult(StrEnum):
    """What became of the wish to pause."""

    PAUSED = "paused"
    ALREADY_PAUSED = "already_paused"
    #: Nobody works on it as it is.
    CANCELLED = "cancelled"
    #: It was complete, or was completed at that moment.
    TOO_LATE = "too_late"


def pause(job: JobDir) -> PauseResult:
    """Pause `job`. Raises JobError where the manifest is wrong, StorageError where the disk says no."""
    if finalize(job) is not None:
        return PauseResult.TOO_LATE
    if job.is_cancelled:
        return PauseResult.CANCELLED
    is_new = job.pause()
    # Once more: workers may have completed it at this moment. That takes the mark back.
    if finalize(job) is not None:
        return PauseResult.TOO_LATE
    return PauseResult.PAUSED if is_new else PauseResult.ALREADY_PAUSED
