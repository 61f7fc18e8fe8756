"""One command at a time changes what a job is: submit, retry, delete. Workers are none of them, and never wait here.

The store holds the job's folder, at most for as long as the process lives. That spares the holder from what others
could do between two of its steps; where a file system knows no locks, a crash-safe order of the steps must do.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from batcher.errors import JobBusyError
from batcher.jobdir.folder import JobDir

#: Seconds for which another command is waited for: none that is about to end should make this one fail.
PATIENCE_S = 1.0
_POLL_INTERVAL_S = 0.02

BUSY = "another command (submit, retry or delete) is changing this job; wait until it is done"


@contextmanager
def exclusive(job: JobDir, *, patience_s: float = PATIENCE_S, busy: str = BUSY) -> Iterator[bool]:
    """Hold the folder of `job`, which must exist, against other commands. Yields False where there are no such locks.

    Raises JobBusyError saying `busy` where another holds it for longer than `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    while (hold := job.store.hold(job.path)) is None:
        if time.monotonic() >= deadline:
            raise JobBusyError(f"{job.path}: {busy}")
        time.sleep(_POLL_INTERVAL_S)
    try:
        yield hold.is_certain
    finally:
        hold.release()
