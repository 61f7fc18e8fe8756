"""The job directory while there is no job in it yet: one submit at a time, cleared of what a killed one left.

It may be any folder a user names, so nothing is deleted that is not certainly ours.
"""

import contextlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

from batcher.errors import JobError, StorageError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.lock import exclusive

_SHARD_NAME = re.compile(r"^\d{5,}\.parquet$")
_PART_NAME = re.compile(r"^part-\d{5,}\.parquet$")

_BUSY = "another submit is writing this job, or it is being deleted; wait until that is done"


@contextmanager
def locked(job: JobDir) -> Iterator[None]:
    """Hold the job's folder against other submits; the kernel lets go when the process dies. Creates the folder.

    A folder that this call created and that is empty at the end is removed. Where the file system has no locks, of two
    submits at once the first to create the manifest wins.
    """
    is_new = job.store.make_folder(job.path)
    with exclusive(job, patience_s=0, busy=_BUSY):
        try:
            yield
        finally:
            # Only under the lock: without it, the folder may be another submit's that has not yet written anything.
            if is_new and not job.store.names(job.path):
                with contextlib.suppress(StorageError):
                    job.store.drop_folder(job.path)


def clear_leftovers(job: JobDir) -> None:
    """Delete what a submit without a manifest left. Raises JobError, deleting nothing, if anything else is there."""
    if job.has(job.deleted_path):
        raise job.missing()
    shards, parts = job.store.names(job.shards_dir), job.store.names(job.results_dir)
    is_ours = all(map(_SHARD_NAME.match, shards)) and all(map(_PART_NAME.match, parts))
    worked = {job.attempts_root.name, job.chunks_root.name}
    if not is_ours or not worked.isdisjoint(job.store.names(job.path)) or (parts and not shards):
        raise JobError(
            f"{job.path}: holds files that are not of an unfinished submit; choose another folder, or empty this one"
        )
    # Results first: as long as they are there, so are shards, which tell whose they are.
    for folder in (job.results_dir, job.shards_dir):
        with contextlib.suppress(StorageError):
            job.store.delete_tree(folder)
    job.store.discard([job.standing_path])
    # Of a manifest that was not finished.
    job.store.discard([entry.path for entry in job.store.leftovers(job.path, is_deep=False)])
