"""The job directory while there is no job in it yet: one submit at a time, cleared of what a killed one left.

It may be any folder a user names, so nothing is deleted that is not certainly ours.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batcher.errors import JobError, StorageError
from batcher.jobdir import store
from batcher.jobdir.folder import JobDir
from batcher.jobdir.lock import exclusive
from batcher.jobdir.store import TEMP_PREFIX

_SHARD_NAME = re.compile(r"^\d{5,}\.parquet$")
_PART_NAME = re.compile(r"^part-\d{5,}\.parquet$")

_BUSY = "another submit is writing this job, or it is being deleted; wait until that is done"


@contextmanager
def locked(job: JobDir) -> Iterator[None]:
    """Hold the job's folder against other submits; the kernel lets go when the process dies. Creates the folder.

    A folder that this call created and that is empty at the end is removed. Where the file system has no locks, of two
    submits at once the first to create the manifest wins.
    """
    is_new = not job.path.exists()
    try:
        job.path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as exc:
        raise JobError(f"{job.path}: is not a folder; choose another folder or job id") from exc
    except OSError as exc:
        raise StorageError(f"{job.path}: cannot create the folder: {store.reason(exc)}") from exc
    with exclusive(job, patience_s=0, busy=_BUSY):
        try:
            yield
        finally:
            # Only under the lock: without it, the folder may be another submit's that has not yet written anything.
            if is_new and not _entries(job.path):
                with contextlib.suppress(OSError):
                    job.path.rmdir()


def clear_leftovers(job: JobDir) -> None:
    """Delete what a submit without a manifest left. Raises JobError, deleting nothing, if anything else is there."""
    if job.deleted_path.exists():
        raise JobError(f"{job.path}: the deletion of a job here was interrupted; finish it with `batcher delete`")
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
    # Of a manifest that was not finished.
    store.sweep_temporary(job.path)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StorageError(f"{folder}: cannot list: {store.reason(exc)}") from exc
