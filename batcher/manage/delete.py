"""Deletion of a job, also of one that is being worked on.

The manifest goes first, in one step and under another name: from then on there is no job, writers stop (see
`JobDir.check_exists`), and a deletion that was interrupted can be told from somebody's folder and finished. Then all
that is the job's own goes; a writer that was in the midst of its last file can make that take a second try.
"""

import errno
import shutil
import time
from pathlib import Path

from batcher.errors import JobError, StorageError
from batcher.jobdir import store
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import workers_dir
from batcher.jobdir.lock import exclusive

#: Seconds for which writers are borne that had not heard of the deletion. They stop at their next file.
PATIENCE_S = 10.0
_RETRY_INTERVAL_S = 0.05


def can_be_deleted(job: JobDir) -> bool:
    """Whether there is a job, a batch that is none yet or has failed, or what an interrupted deletion left of one."""
    return job.exists() or job.deleted_path.is_file() or job.batch_path.is_file()


def delete_job(job: JobDir) -> list[str]:
    """Delete the job's own files, and its folder if nothing else is in it. Returns the names of what is left there.

    Links are deleted, not what they lead to. Raises JobError where there is no job or another command is changing it,
    StorageError where the disk says no; the same call finishes what was begun.
    """
    with exclusive(job):
        if job.exists():
            store.move(job.manifest_path, job.deleted_path)
        elif job.deleted_path.is_file():
            pass
        elif job.batch_path.is_file():
            store.move(job.batch_path, job.deleted_path)
        else:
            raise JobError(f"{job.path}: no job here (no manifest.json); another command has deleted it")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            for path in _own(job):
                _remove(path)
            # One look for both: what appears after it is not taken for somebody else's.
            entries = set(_list(job.path)) - {job.deleted_path}
            if own := [path for path in entries if _is_own(job, path)]:
                if time.monotonic() > deadline:
                    raise StorageError(f"{own[0]}: is there again and again; stop who writes it, then delete again")
                time.sleep(_RETRY_INTERVAL_S)
                continue
            store.delete(job.deleted_path)
            if entries or _remove_folder(job.path):
                return sorted(path.name for path in entries)


def _own(job: JobDir) -> list[Path]:
    """What is there of the job, but for the mark of its deletion."""
    return [path for path in _list(job.path) if _is_own(job, path)]


def _is_own(job: JobDir, path: Path) -> bool:
    folders = (
        *(job.results_dir, job.chunks_dir(0).parent, job.attempts_dir(0).parent, job.shards_dir),
        *(job.damaged_dir, workers_dir(job.path), job.batch_dir),
    )
    is_named = path in (*folders, job.summary_path, job.cancelled_path, job.batch_path)
    return (is_named or path.name.startswith(store.TEMP_PREFIX)) and not _is_empty_mount(path)


def _is_empty_mount(path: Path) -> bool:
    """Whether somebody has mounted a file system there, of which nothing is left but its root."""
    return path.is_mount() and not _list(path)


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return  # Another file in it, by its writer: the next look finds what is left.
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.EBUSY):
            raise StorageError(f"{path}: cannot delete: {store.reason(exc)}; run the command again") from exc


def _remove_folder(folder: Path) -> bool:
    """Remove the job's folder. False: a writer that had not heard of the deletion has put something into it."""
    try:
        folder.rmdir()
    except OSError as exc:
        if exc.errno == errno.ENOTEMPTY:
            return False
        if exc.errno != errno.EBUSY:  # A mount point, which is empty, and stays.
            raise StorageError(f"{folder}: cannot delete: {store.reason(exc)}") from exc
    return True


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise StorageError(f"{folder}: cannot list: {store.reason(exc)}") from exc
