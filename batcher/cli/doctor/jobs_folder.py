"""The jobs root: whether files can be created atomically in it, its room, its clock, and who works there."""

import contextlib
import errno
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from packaging.version import InvalidVersion, Version

import batcher
from batcher.cli.doctor.finding import Check, Level, size_text
from batcher.errors import StorageError
from batcher.jobdir.heartbeats import Health, WorkerHeartbeat, read_heartbeats
from batcher.jobdir.local_store import LOCAL

#: Bytes. Below it a job of any size soon fills the disk.
LOW_DISK = 1 << 30
#: Seconds. Times in summaries come from several machines; beyond this they visibly disagree.
CLOCK_SKEW_S = 5.0

_NO_HARD_LINKS = "use --jobs-dir on a file system with hard links (ext4, xfs, btrfs, NFS)"
_REMEDIES = {
    errno.EROFS: "mount the file system for writing (mount -o remount,rw), or give another folder with --jobs-dir",
    errno.EACCES: "give the folder to the user that workers run as (chown), or give another one with --jobs-dir",
    errno.EPERM: "give the folder to the user that workers run as (chown), or give another one with --jobs-dir",
    errno.ENOSPC: "make room on that file system (bytes or inodes), or give another folder with --jobs-dir",
    errno.EDQUOT: "make room within the quota, or give another folder with --jobs-dir",
}


def check_jobs_dir(jobs_dir: Path) -> Iterator[Check]:
    """Whether files can be created atomically under the jobs root, what every commit rests on; and its disk and clock.

    Writes a file for the trial and removes it again, with the folders that were missing.
    """
    name = "jobs folder"
    missing = [folder for folder in (jobs_dir, *jobs_dir.parents) if not folder.exists()]
    probe = jobs_dir / f".doctor-{uuid.uuid4().hex}"
    try:
        started_at = time.time()
        created = LOCAL.create(probe, b"1")
        # As at a commit, where the file system decides whether the name is free: `create` looks before it writes.
        second = LOCAL.begin(probe)
        second.write(b"2")
        again = second.commit()
        ended_at = time.time()
        if not created or again or probe.read_bytes() != b"1":
            yield Check(name, Level.FAIL, f"{jobs_dir}: creating a file that exists does not fail", _NO_HARD_LINKS)
            return
        written_at = probe.stat().st_mtime
        free = shutil.disk_usage(jobs_dir).free
    except (StorageError, OSError) as exc:
        # A remedy in it is for jobs that exist.
        message = str(exc).partition("; ")[0].replace(str(probe), str(jobs_dir))
        yield Check(name, Level.FAIL, message, _remedy(exc))
        return
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
            for folder in missing:
                folder.rmdir()
    yield Check(name, Level.OK, f"{jobs_dir}: files are created atomically")
    level, remedy = (Level.WARN, "make room, or use another --jobs-dir") if free < LOW_DISK else (Level.OK, "")
    yield Check("disk", level, f"{size_text(free)} free for jobs", remedy)
    # Between the two times, unless the clocks differ.
    skew_s = min(0.0, written_at - started_at) or max(0.0, written_at - ended_at)
    yield clock_check("jobs folder clock", "the clock of the jobs folder's file system", skew_s)


def _remedy(exc: Exception) -> str:
    cause = exc.__cause__ if isinstance(exc.__cause__, OSError) else exc
    # Only `link` has two names.
    if isinstance(cause, OSError) and cause.filename2 is not None:
        return _NO_HARD_LINKS
    known = _REMEDIES.get(cause.errno or 0) if isinstance(cause, OSError) else None
    return known or "give a folder you may write to, on a file system with hard links, with --jobs-dir"


def clock_check(name: str, whose: str, skew_s: float) -> Check:
    """What to say of a clock that is `skew_s` seconds ahead of this machine's."""
    if abs(skew_s) < CLOCK_SKEW_S:
        return Check(name, Level.OK, f"{whose} agrees with this machine's to {abs(skew_s):.1f} s")
    return Check(
        name,
        Level.WARN,
        f"{whose} is {abs(skew_s):,.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's, so times and "
        "durations that come from several machines are wrong",
        "set both clocks by NTP (`timedatectl set-ntp true`, or chronyd)",
    )


def check_workers(jobs_dir: Path) -> Check:
    """Whether the workers that live under the jobs root, and this machine, have the same version of Batcher."""
    name = "workers"
    beats = [report.beat for report in read_heartbeats(jobs_dir) if report.health is not Health.GONE]
    ours = batcher.__version__
    if not beats:
        return Check(name, Level.OK, f"none alive under {jobs_dir}")
    if {beat.version for beat in beats} == {ours}:
        number = "1 alive" if len(beats) == 1 else f"{len(beats):,} alive"
        return Check(name, Level.OK, f"{number} under {jobs_dir}, with batcher {ours} as here")
    newest = max([ours, *(beat.version for beat in beats)], key=_order)
    return Check(
        name,
        Level.WARN,
        f"mixed versions of batcher under {jobs_dir}: {ours} here; " + "; ".join(_by_version(beats)),
        f"install {newest} everywhere; a worker that is stopped with SIGTERM and started again loses nothing",
    )


def _by_version(beats: list[WorkerHeartbeat]) -> Iterator[str]:
    for version in sorted({beat.version for beat in beats}, key=_order):
        workers = [f"{beat.name} on {beat.host}" for beat in beats if beat.version == version]
        shown = ", ".join(workers[:5]) + (f" and {len(workers) - 5:,} more" if len(workers) > 5 else "")
        yield f"{version} by {shown}"


def _order(version: str) -> tuple[Version, str]:
    try:
        return Version(version), version
    except InvalidVersion:
        return Version("0"), version
