"""Whether a folder takes jobs: tried as a commit does it, with a file that is created once and can't be created again.

For whoever is going to work in it, so that he says so at the start and not shard by shard.
"""

import contextlib
import errno
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from batcher.errors import InputError, StorageError
from batcher.jobdir.local_store import LOCAL
from batcher.paths import whose

_NO_HARD_LINKS = "use --jobs-dir on a file system with hard links (ext4, xfs, btrfs, NFS)"
_REMEDIES = {
    errno.EROFS: "mount the file system for writing (mount -o remount,rw), or give another folder with --jobs-dir",
    errno.ENOSPC: "make room on that file system (bytes or inodes), or give another folder with --jobs-dir",
    errno.EDQUOT: "make room within the quota, or give another folder with --jobs-dir",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """What a trial found. `problem` is "" where files are created atomically, as jobs need it.

    `clock_skew_s` are the seconds that the clock of the folder's file system is ahead of this machine's.
    """

    problem: str = ""
    remedy: str = ""
    clock_skew_s: float = 0.0


def probe(folder: Path) -> Probe:
    """Try to create a file under `folder`, and once more. Leaves nothing behind, nor folders that were missing."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    path = folder / f".probe-{uuid.uuid4().hex}"
    try:
        started_at = time.time()
        created = LOCAL.create(path, b"1")
        # As at a commit, where the file system decides whether the name is free: `create` looks before it writes.
        second = LOCAL.begin(path)
        second.write(b"2")
        again = second.commit()
        ended_at = time.time()
        if not created or again or path.read_bytes() != b"1":
            return Probe(f"{folder}: creating a file that exists does not fail", _NO_HARD_LINKS)
        written_at = path.stat().st_mtime
    except (StorageError, OSError) as exc:
        # A remedy in it is for jobs that exist.
        message = str(exc).partition("; ")[0].replace(str(path), str(folder))
        return Probe(message, _remedy(exc, folder))
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            for each in missing:
                each.rmdir()
    # Between the two times, unless the clocks differ.
    return Probe(clock_skew_s=min(0.0, written_at - started_at) or max(0.0, written_at - ended_at))


def check_takes_jobs(jobs_dir: Path) -> None:
    """Raise InputError with the remedy where no job can be worked on under `jobs_dir`, which need not exist."""
    found = probe(jobs_dir.resolve())
    if found.problem:
        raise InputError(f"--jobs-dir {found.problem}; {found.remedy}")


def _remedy(exc: Exception, folder: Path) -> str:
    cause = exc.__cause__ if isinstance(exc.__cause__, OSError) else exc
    if not isinstance(cause, OSError):
        return "give a folder you may write to, on a file system with hard links, with --jobs-dir"
    # Only `link` has two names.
    if cause.filename2 is not None:
        return _NO_HARD_LINKS
    if cause.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{whose(folder)}: make it with `install -d -o {os.geteuid()} -g {os.getegid()} FOLDER` (of a container: "
            "on the host, what is mounted there), or run as its owner (Docker: --user; compose: `user:`), or give "
            "another one with --jobs-dir"
        )
    return _REMEDIES.get(cause.errno or 0, "give a folder you may write to with --jobs-dir")
