"""The jobs root: whether files can be created atomically in it, its room, its clock, and who works there."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from packaging.version import InvalidVersion, Version

import batcher
from batcher.api.fleet import workers
from batcher.cli.doctor.finding import Check, Level, size_text
from batcher.cli.workers import remedy_text, where_text
from batcher.jobdir.heartbeats import Health, WorkerHeartbeat, read_heartbeats
from batcher.jobdir.probe import probe

#: Bytes. Below it a job of any size soon fills the disk.
LOW_DISK = 1 << 30
#: Seconds. Times in summaries come from several machines; beyond this they visibly disagree.
CLOCK_SKEW_S = 5.0
#: Workers in other folders that are named.
MAX_ELSEWHERE = 5


def check_jobs_dir(jobs_dir: Path) -> Iterator[Check]:
    """Whether files can be created atomically under the jobs root, what every commit rests on; and its disk and clock.

    Writes a file for the trial and removes it again, with the folders that were missing.
    """
    name = "jobs folder"
    found = probe(jobs_dir)
    if found.problem:
        yield Check(name, Level.FAIL, found.problem, found.remedy)
        return
    yield Check(name, Level.OK, f"{jobs_dir}: files are created atomically")
    free = shutil.disk_usage(next(each for each in (jobs_dir, *jobs_dir.parents) if each.exists())).free
    level, remedy = (Level.WARN, "make room, or use another --jobs-dir") if free < LOW_DISK else (Level.OK, "")
    yield Check("disk", level, f"{size_text(free)} free for jobs", remedy)
    yield clock_check("jobs folder clock", "the clock of the jobs folder's file system", found.clock_skew_s)


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


def check_elsewhere(jobs_dir: Path, broker: str) -> Check:
    """Whether workers of the broker work in another jobs folder. Raises BrokerError."""
    name = "workers elsewhere"
    found = [worker for worker in workers(jobs_dir=jobs_dir, broker=broker) if worker.is_elsewhere]
    if not found:
        return Check(name, Level.OK, f"none at the broker works in another folder than {jobs_dir}")
    shown = "; ".join(map(where_text, found[:MAX_ELSEWHERE]))
    more = f" and {len(found) - MAX_ELSEWHERE:,} more" if len(found) > MAX_ELSEWHERE else ""
    return Check(
        name,
        Level.WARN,
        f"of the broker's workers these are not in {jobs_dir}: {shown}{more}",
        f"where that is not meant, {remedy_text(found, jobs_dir)}",
    )


def loaded_models(jobs_dir: Path) -> dict[str, str]:
    """The models that workers of this machine or container have in memory, each with the name of one of them."""
    host = socket.gethostname()
    beats = [report.beat for report in read_heartbeats(jobs_dir) if report.health is not Health.GONE]
    ready = [beat for beat in beats if beat.host == host and beat.state.has_model]
    return {model: beat.name for beat in ready for model in beat.models}


def _by_version(beats: list[WorkerHeartbeat]) -> Iterator[str]:
    for version in sorted({beat.version for beat in beats}, key=_order):
        names = [f"{beat.name} on {beat.host}" for beat in beats if beat.version == version]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
        yield f"{version} by {shown}"


def _order(version: str) -> tuple[Version, str]:
    try:
        return Version(version), version
    except InvalidVersion:
        return Version("0"), version
