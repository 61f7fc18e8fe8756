"""Whether workers of this machine live, as a health check asks: often, and inside a worker's memory limit.

`heartbeats` has all that a sign of life says, and takes pydantic for it, as much memory again as the rest of the check.
How old a sign is: by the worker's clock, which is the reader's too, as both are on one machine.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from batcher.errors import StorageError
from batcher.jobdir.listing import WORKERS_NAME
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.store import Store

#: A worker that missed so many of its own intervals in a row is gone, but not before so many seconds: intervals can be
#: shorter than a busy machine takes to run somebody.
MISSED_BEATS = 3
MIN_GONE_AFTER_S = 5.0
#: Between name and instance in the name of a sign's file; in no name of a worker.
SEPARATOR = "~"


@dataclass(frozen=True, slots=True)
class Pulse:
    """A worker's last sign of life, `age_s` seconds after it was given; `state` is a `heartbeats.WorkerState`."""

    name: str
    state: str
    age_s: float
    interval_s: float

    @property
    def is_gone(self) -> bool:
        """Whether the worker should have given another by now."""
        return is_gone(self.age_s, interval_s=self.interval_s)


def is_gone(age_s: float, *, interval_s: float) -> bool:
    """Whether a sign of this age is nobody's: it is far from now, be it in the past or in the future."""
    return abs(age_s) > max(MIN_GONE_AFTER_S, MISSED_BEATS * interval_s)


def read_pulses(home: Path, *, host: str, now: float, store: Store = LOCAL) -> list[Pulse]:
    """The workers under `home` that run on `host`, by name; `now` is in Unix seconds. Raises StorageError.

    Files that are no signs of life are passed over.
    """
    files = [entry.path for entry in store.list(home / WORKERS_NAME) if entry.path.suffix == ".json"]
    return sorted(_pulses(files, store, host=host, now=now), key=lambda pulse: pulse.name)


def _pulses(files: list[Path], store: Store, *, host: str, now: float) -> Iterator[Pulse]:
    for path in files:
        # One that was taken away just now is none, and so is one that somebody else wrote.
        with contextlib.suppress(OSError, StorageError, ValueError, TypeError, KeyError):
            beat = json.loads(store.read(path))
            name, _, instance = path.stem.partition(SEPARATOR)
            if beat["host"] == host and (beat["name"], beat.get("instance", "")) == (name, instance):
                beat_at = datetime.fromisoformat(beat["beat_at"]).timestamp()
                yield Pulse(name, str(beat["state"]), now - beat_at, float(beat["interval_s"]))
