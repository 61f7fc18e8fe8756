"""The jobs root: which jobs are in it, and which folder a job id means, none outside it.

A link under the root that leads out of it is refused, so that an id, which anyone at the broker can send, reaches only
what the owner of the root put there. The root itself may be a link. Inside a job directory links are followed: whoever
can write there wrote the manifest, and is trusted.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from batcher.errors import InputError, JobError, StorageError
from batcher.ids import ID_PATTERN, check_id, new_job_id
from batcher.jobdir.folder import JobDir
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.store import Store


def make_root(jobs_dir: Path) -> Path:
    """The jobs root at `jobs_dir`, without links, made if it is not there. Raises InputError where that can't be."""
    root = jobs_dir.resolve()
    try:
        LOCAL.make_folder(root)
    except (JobError, StorageError) as exc:
        raise InputError(f"--jobs-dir {jobs_dir}: {exc}") from exc
    return root


def locate_job(root: Path, job_id: str) -> Path:
    """The folder that `job_id` means under `root`, without links; it need not exist.

    Raises InputError where `job_id` is not an id, and JobError where it is a link that leads out of `root`.
    """
    link = root / check_id(job_id, what="job id")
    # os.path.realpath, as Path.resolve raises on a link to itself.
    found = Path(os.path.realpath(link))
    if found.parent != Path(os.path.realpath(root)):
        raise JobError(f"{link}: a link that leads out of the jobs folder, to {found}; give that path if you trust it")
    return found


def find_job(job: str, root: Path) -> JobDir:
    """The job that is meant by the path of a job directory, else by an id under `root`. Raises JobError."""
    as_path = Path(job)
    if JobDir(as_path).exists():
        return JobDir.open(as_path.resolve())
    if as_path.name != job:
        raise JobDir(as_path).missing()
    return JobDir.open(locate_job(root, job))


@contextlib.contextmanager
def place_job(root: Path, job_id: str | None) -> Iterator[JobDir]:
    """Where a job under `root` is to be made: by the id `job_id`, or for None by a new one that nobody else has.

    The folder of a new id is made here, which only the first to draw it can, and goes at the end of the block if
    nothing is in it. Raises what `locate_job` raises, and JobError or StorageError where no folder can be made.
    """
    if job_id is not None:
        yield JobDir(locate_job(root, job_id))
        return
    job = JobDir(locate_job(root, new_job_id()))
    while not job.store.make_folder(job.path):
        job = JobDir(locate_job(root, new_job_id()))
    try:
        yield job
    finally:
        with contextlib.suppress(StorageError):
            job.store.drop_folder(job.path)


def check_place(job: JobDir) -> None:
    """Raise JobError where the folder of a job that is to be made lies inside another job: it would go with that one.

    A `manifest.json` makes a folder a job only where shards lie beside it: others have files of that name, too.
    """
    if job.exists():
        return
    for parent in job.path.parents:
        other = JobDir(parent, job.store)
        with contextlib.suppress(StorageError):
            if any(other.has(path) for path in (other.manifest_path, other.deleted_path)) and (
                other.shards_dir.name in other.store.names(parent)
            ):
                raise JobError(
                    f"{job.path}: lies inside the job {parent}, and would be deleted with it; choose a folder beside it"
                )


def list_jobs(root: Path, store: Store = LOCAL) -> Iterator[JobDir]:
    """The jobs under `root`, by name. A link to a folder is none; what can't be read is one, and tells when it is."""
    return (job for job in _folders(root, store) if _is_there(job, job.manifest_path))


def list_batches(root: Path, store: Store = LOCAL) -> Iterator[JobDir]:
    """The jobs under `root`, and the batches that are not jobs yet or never will be, by name."""
    return (job for job in _folders(root, store) if _is_there(job, job.manifest_path) or _is_there(job, job.batch_path))


def _is_there(job: JobDir, path: Path) -> bool:
    try:
        return job.has(path)
    except StorageError:
        return True


def _folders(root: Path, store: Store) -> Iterator[JobDir]:
    names = (name for name in store.names(root) if ID_PATTERN.match(name))
    return (JobDir(root / name, store) for name in names if not os.path.islink(root / name))  # noqa: PTH114
