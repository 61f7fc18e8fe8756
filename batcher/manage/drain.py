"""Draining of workers: each finishes the shards that it has, takes no more, and ends in good order."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from batcher.errors import InputError
from batcher.jobdir.drains import ask_to_drain
from batcher.jobdir.heartbeats import Health, WorkerHeartbeat, WorkerReport, read_heartbeats
from batcher.jobdir.pulse import SEPARATOR
from batcher.words import counted

#: Seconds between two looks at workers that drain.
LOOK_INTERVAL_S = 1.0
#: Workers that an error names.
_MAX_NAMED = 10


@dataclass(frozen=True, slots=True)
class Drain:
    """A worker that was asked to drain. `is_new`: for the first time."""

    beat: WorkerHeartbeat
    is_new: bool


def drain(root: Path, *workers: str) -> list[Drain]:
    """Ask workers of the jobs root to drain, each by its name, as the instance NAME~INSTANCE, or by its host.

    A name goes before a host of that name. Raises InputError where one means nobody, or several of one name, and then
    nobody is asked; StorageError where the disk says no.
    """
    beats = list({_key(report.beat): report.beat for worker in workers for report in _meant(root, worker)}.values())
    for beat in beats:
        if not beat.instance:
            raise InputError(
                f"{_described(beat)} is of an older Batcher ({beat.version}), which can't drain; end it with SIGTERM: "
                "its finished rows are kept, and its shards go to others"
            )
    return [Drain(beat, ask_to_drain(root, beat.name, beat.instance)) for beat in beats]


def wait_until_ended(
    root: Path, beats: Sequence[WorkerHeartbeat], *, pause: Callable[[float], object] = time.sleep
) -> Iterator[tuple[WorkerHeartbeat, bool]]:
    """Block until each of these workers has ended, and give each then: True in good order, False where it is gone.

    `pause` sleeps so many seconds between two looks.
    """
    left = {(beat.name, beat.instance): beat for beat in beats}
    while left:
        found = {(each.beat.name, each.beat.instance): each for each in read_heartbeats(root)}
        for key in list(left):
            report = found.get(key)
            if report is None or report.health is Health.GONE:
                yield left.pop(key), report is None
        if left:
            pause(LOOK_INTERVAL_S)


def _meant(root: Path, worker: str) -> list[WorkerReport]:
    """The living workers that somebody means by `worker`."""
    reports = read_heartbeats(root)
    alive = [report for report in reports if report.health is not Health.GONE]
    name, _, instance = worker.partition(SEPARATOR)
    named = [each for each in alive if each.beat.name == name and instance in ("", each.beat.instance)]
    if len(named) > 1:
        choices = ", ".join(f"{_key(each.beat)} ({_where(each.beat)})" for each in named[:_MAX_NAMED])
        raise InputError(f"{worker}: {counted(len(named), 'worker')} have that name; give one of {choices}")
    found = named or [each for each in alive if each.beat.host == worker]
    if found:
        return found
    gone = [each for each in reports if each.beat.name == name]
    if gone:
        raise InputError(f"{worker}: gone: it has given no sign of life for {gone[0].age_s:.0f} s; nothing is to drain")
    others = ", ".join(_described(each.beat) for each in alive[:_MAX_NAMED]) or "none"
    raise InputError(f"{worker}: no worker of {root} has that name or runs on such a host; alive: {others}")


def _key(beat: WorkerHeartbeat) -> str:
    return f"{beat.name}{SEPARATOR}{beat.instance}"


def _described(beat: WorkerHeartbeat) -> str:
    return f"{beat.name} ({_where(beat)})"


def _where(beat: WorkerHeartbeat) -> str:
    return f"on {beat.host}, pid {beat.pid}"
