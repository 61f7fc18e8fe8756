"""Whether workers of this machine live, as a health check asks: often, and inside a worker's memory limit.

`heartbeats` has all that a sign of life says, and takes pydantic for it, as much memory again as the rest of the check.
How old a sign is: by the worker's clock, which is the reader's too, as both are on one machine.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from batcher.errors import StorageError
from batcher.jobdir.listing import WORKERS_NAME
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.store import Entry, Head, Store

#: A worker that missed so many of its own intervals in a row is gone, but not before so many seconds: intervals can be
#: shorter than a busy machine takes to run somebody.
MISSED_BEATS = 3
MIN_GONE_AFTER_S = 5.0
#: Between name and instance in the name of a sign's file; in no name of a worker.
SEPARATOR = "~"
#: A sign of life has some hundred bytes; a larger file is something else.
_MAX_BYTES = 1 << 18


class WorkerState(StrEnum):
    """What a worker does by its supervisor's account."""

    LOADING = "loading"  # its child starts and loads the model
    IDLE = "idle"  # waits for shards
    WORKING = "working"
    STALLED = "stalled"  # has work, and its engine has made no step for heartbeats.STALLED_AFTER_S
    RESTARTING = "restarting"  # its child died, and the next one has not started yet
    DRAINING = "draining"  # finishes the shards that it has, and takes no more
    STOPPING = "stopping"

    @property
    def has_model(self) -> bool:
        """Whether the model is in memory."""
        return self not in (WorkerState.LOADING, WorkerState.RESTARTING)

    @property
    def is_leaving(self) -> bool:
        """Whether it takes no more shards."""
        return self in (WorkerState.DRAINING, WorkerState.STOPPING)


@dataclass(frozen=True, slots=True)
class Pulse:
    """A worker's last sign of life, `age_s` seconds after it was given."""

    name: str
    state: WorkerState
    age_s: float
    interval_s: float

    @property
    def is_gone(self) -> bool:
        """Whether the worker should have given another by now."""
        return is_gone(self.age_s, interval_s=self.interval_s)

    @property
    def is_ready(self) -> bool:
        """Whether the model is in memory and the engine moves."""
        return self.state.has_model and self.state is not WorkerState.STALLED


def is_gone(age_s: float, *, interval_s: float) -> bool:
    """Whether a sign of this age is nobody's: it is far from now, be it in the past or in the future."""
    return abs(age_s) > max(MIN_GONE_AFTER_S, MISSED_BEATS * interval_s)


def read_pulses(home: Path, *, host: str, now: float, store: Store = LOCAL) -> list[Pulse]:
    """The workers under `home` that run on `host`, by name; `now` is in Unix seconds. Raises StorageError.

    Files that are no signs of life are passed over.
    """
    files = [path for path, _ in heads(signs(store.list(home / WORKERS_NAME)))]
    return sorted(_pulses(files, store, host=host, now=now), key=lambda pulse: pulse.name)


def signs(entries: Iterable[Entry]) -> list[Entry]:
    """The files that are called as signs of life are."""
    return [entry for entry in entries if entry.path.suffix == ".json"]


def heads(files: Iterable[Entry]) -> Iterator[tuple[Path, Head]]:
    """Those that are no larger than signs of life, with what is known of them; one that was just removed is none."""
    for entry in files:
        head = entry.head()
        if head is not None and head.size <= _MAX_BYTES:
            yield entry.path, head


def _pulses(files: list[Path], store: Store, *, host: str, now: float) -> Iterator[Pulse]:
    for path in files:
        # One that was taken away just now is none, and so is one that somebody else wrote.
        with contextlib.suppress(OSError, StorageError, ValueError, TypeError, KeyError, RecursionError):
            beat = json.loads(store.read(path))
            name, _, instance = path.stem.partition(SEPARATOR)
            if beat["host"] == host and (beat["name"], beat.get("instance", "")) == (name, instance):
                beat_at = datetime.fromisoformat(beat["beat_at"]).timestamp()
                yield Pulse(name, WorkerState(beat["state"]), now - beat_at, float(beat["interval_s"]))
