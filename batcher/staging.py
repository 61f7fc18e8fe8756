"""The job directory while there is no job in it yet: one submit at a time, cleared of what a killed one left.

It may be any folder a user names, so nothing is deleted that is not certainly ours.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batcher.errors import JobError, StorageError
from batcher.jobdir import JobDir
from batcher.storage import TEMP_PREFIX

_SHARD_NAME = re.compile(r"^\d{5,}\.parquet$")
_PART_NAME = re.compile(r"^part-\d{5,}\.parquet$")


@contextmanager
def locked(job: JobDir) -> Iterator[None]:
    """Hold the job's folder against other submits; the kernel lets go when the process dies. Creates the folder.

    A folder that this call created and that is empty at the end is removed.
    """
    is_new = not job.path.exists()
    try:
        job.path.mkdir(parents=True, exist_ok=True)
        fd = os.open(job.path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileExistsError, NotADirectoryError) as exc:
        raise JobError(f"{job.path}: is not a folder; choose another folder or job id") from exc
    except OSError as exc:
        raise StorageError(f"{job.path}: cannot create the folder: {exc.strerror}") from exc
    try:
        _lock(fd, job)
        try:
            yield
        finally:
            # Only under the lock: without it, the folder may be another submit's that has not yet written anything.
            if is_new and not _entries(job.path):
                job.path.rmdir()
    finally:
        os.close(fd)


def _lock(fd: int, job: JobDir) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise JobError(f"{job.path}: another submit is writing this job; wait until it is done") from exc
    except OSError:
        # A file system without locks: of two submits at once, the first to create the manifest wins.
        return


def clear_leftovers(job: JobDir) -> None:
    """Delete what a submit without a manifest left. Raises JobError, deleting nothing, if anything else is there."""
    shards = _entries(job.shards_dir)
    parts = _entries(job.results_dir)
    is_ours = all(_SHARD_NAME.match(p.name) or p.name.startswith(TEMP_PREFIX) for p in shards) and all(
        _PART_NAME.match(p.name) or p.name.startswith(TEMP_PREFIX) for p in parts
    )
    has_worked = job.attempts_dir(0).parent.exists() or job.chunks_dir(0).parent.exists()
    if not is_ours or has_worked or (parts and not shards):
        raise JobError(
            f"{job.path}: holds files that are not of an unfinished submit; choose another folder, or empty this one"
        )
    # Results first: as long as they are there, so are shards, which tell whose they are.
    for folder in (job.results_dir, job.shards_dir):
        shutil.rmtree(folder, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StorageError(f"{folder}: cannot list: {exc.strerror}") from exc
