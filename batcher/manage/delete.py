"""Deletion of a job, also of one that is being worked on.

The manifest goes first, in one step and under another name: from then on there is no job, writers stop (see
`JobDir.check_exists`), and a deletion that was interrupted can be told from somebody's folder and finished. Then all
that is the job's own goes; a writer that was in the midst of its last file can make that take a second try.
"""

import time
from pathlib import Path

from pydantic_core import from_json

from batcher.errors import JobError, StorageError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import workers_dir
from batcher.jobdir.lock import exclusive
from batcher.jobdir.root import find_job

#: Seconds for which writers are borne that had not heard of the deletion. They stop at their next file.
PATIENCE_S = 10.0
_RETRY_INTERVAL_S = 0.05


def can_be_deleted(job: JobDir) -> bool:
    """Whether there is a job, a batch that is not one yet or has failed, or what an interrupted deletion left."""
    return job.exists() or job.has(job.deleted_path) or _has_batch(job)


def _has_batch(job: JobDir) -> bool:
    """Whether the folder is a batch's: others have files called batch.json, too."""
    if not job.has(job.batch_path):
        return False
    try:
        found = from_json(job.store.read(job.batch_path))
    except FileNotFoundError:
        return False
    except ValueError:
        # Of ours where the server that wrote it has left more than that.
        return bool(job.store.names(job.batch_dir))
    return isinstance(found, dict) and found.keys() >= {"batch_id", "input_file_id"}


def find_deletable(named: str, root: Path) -> JobDir:
    """As `find_job`; also a batch that is no job, and what an interrupted deletion left. Raises JobError."""
    for path in (Path(named), root / named):
        job = JobDir(path.resolve())
        is_meant = path.name == named or path == Path(named)
        if is_meant and can_be_deleted(job) and not job.exists():
            return job
    return find_job(named, root)


def delete_job(job: JobDir) -> list[str]:
    """Delete the job's own files, and its folder if nothing else is in it. Returns the names of what is left there.

    Links are deleted, not what they lead to. Raises JobError where there is no job or another command is changing it,
    StorageError where the disk says no; the same call finishes what was begun.
    """
    with exclusive(job):
        if job.exists():
            job.store.move(job.manifest_path, job.deleted_path)
        elif job.has(job.deleted_path):
            pass
        elif _has_batch(job):
            job.store.move(job.batch_path, job.deleted_path)
        else:
            raise JobError(f"{job.path}: no job here (no manifest.json); another command has deleted it")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            own = own_names(job)
            stuck = {name for name in job.store.names(job.path) if name in own and not _remove(job, job.path / name)}
            job.store.delete_many([entry.path for entry in job.store.leftovers(job.path, is_deep=False)])
            # One look for both: what appears after it is not taken for somebody else's.
            entries = {*job.store.names(job.path)} - {job.deleted_path.name}
            if again := sorted((entries & own) - stuck):
                if time.monotonic() > deadline:
                    path = job.path / again[0]
                    raise StorageError(f"{path}: is there again and again; stop who writes it, then delete again")
                time.sleep(_RETRY_INTERVAL_S)
                continue
            job.store.delete_many([job.deleted_path])
            if entries or job.store.drop_folder(job.path):
                return sorted(entries)


def _remove(job: JobDir, path: Path) -> bool:
    """Delete one of the job's own. Returns False for what stays, as a folder where somebody has mounted a disk."""
    try:
        return job.store.delete_tree(path)
    except StorageError as exc:
        raise StorageError(f"{exc}; run the command again") from exc


def own_names(job: JobDir) -> frozenset[str]:
    """What can be there of a job, but for the mark of its deletion."""
    folders = (
        *(job.results_dir, job.chunks_root, job.attempts_root, job.shards_dir),
        *(job.damaged_dir, job.retries_root, job.earlier_dir, workers_dir(job.path), job.batch_dir),
    )
    files = (job.summary_path, job.cancelled_path, job.paused_path, job.standing_path, job.batch_path)
    return frozenset(path.name for path in (*folders, *files))
