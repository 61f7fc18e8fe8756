"""One command at a time changes what a job is: submit, retry, delete. Workers are none of them, and never wait here.

A lock of the kernel on the job's folder, which goes with the process. It spares its holder from what others could do
between two of its steps; where a file system has no such locks, a crash-safe order of the steps must do.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from batcher.errors import JobBusyError, JobError, StorageError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.store import reason

#: Seconds for which another command is waited for: none that is about to end should make this one fail.
PATIENCE_S = 1.0
_POLL_INTERVAL_S = 0.02

BUSY = "another command (submit, retry or delete) is changing this job; wait until it is done"


@contextmanager
def exclusive(job: JobDir, *, patience_s: float = PATIENCE_S, busy: str = BUSY) -> Iterator[bool]:
    """Hold the folder of `job`, which must exist, against other commands. Yields False where there are no such locks.

    Raises JobBusyError saying `busy` where another holds it for longer than `patience_s`.
    """
    descriptor, is_locked = _lock(job, deadline=time.monotonic() + patience_s, busy=busy)
    try:
        yield is_locked
    finally:
        os.close(descriptor)


def _lock(job: JobDir, *, deadline: float, busy: str) -> tuple[int, bool]:
    while True:
        descriptor = _open(job)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise JobBusyError(f"{job.path}: {busy}") from exc
            time.sleep(_POLL_INTERVAL_S)
            continue
        except OSError:
            return descriptor, False
        if _is_same(job, descriptor):
            return descriptor, True
        # Whoever held it before has removed it, and another folder is there by now, or none.
        os.close(descriptor)


def _open(job: JobDir) -> int:
    try:
        return os.open(job.path, os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError as exc:
        raise JobError(f"{job.path}: is not a folder; choose another folder or job id") from exc
    except FileNotFoundError as exc:
        raise JobError(f"{job.path}: the folder is gone; another command has deleted it") from exc
    except OSError as exc:
        raise StorageError(f"{job.path}: cannot open the folder: {reason(exc)}") from exc


def _is_same(job: JobDir, descriptor: int) -> bool:
    try:
        return os.path.samestat(job.path.stat(), os.fstat(descriptor))
    except OSError:
        return False
