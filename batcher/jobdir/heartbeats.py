"""Signs of life of workers: what `batcher status` says of them without asking a broker or a process.

    HOME/.workers/<worker name>~<instance>.json     replaced every few seconds by the worker's supervisor

The instance is an id that no other supervisor has, so that two workers to whom somebody gave one name show both. (In
signs of older versions there is none, nor a `~`.) A worker that died is not shown beside one that took its name since.

HOME is the jobs root for `batcher worker`, the job directory for the workers of `batcher run` and of a local `resume`.
Nothing's correctness rests on these files, so they are replaced without a flush to disk, a damaged one is passed over,
and who can't write his goes on working.

How old a sign is: by the store's clock, which stamps each file when it is written, and never by the clocks of the
machines: on a shared folder one of them may be a day off for good. Where the reader's own clock makes somebody look
gone, the store is asked what time it is. Clocks that are set back or forth are borne:
whoever lives replaces his file within an interval, so a sign that is far from now, be it in the past or in the future,
is nobody's.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError

from batcher.errors import StorageError
from batcher.ids import ID_PATTERN, check_id
from batcher.jobdir.listing import WORKERS_NAME
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.pulse import SEPARATOR, WorkerState, heads, is_gone, signs
from batcher.jobdir.store import Entry, Store

#: Seconds without a step of the engine, while it has work, from which a supervisor calls its worker stalled. A step
#: takes less, but for huge models on slow machines; those are called stalled at times, which harms nobody.
STALLED_AFTER_S = 10.0
#: Seconds after which the file of a worker that is gone is deleted.
FORGET_AFTER_S = 24 * 3600.0

#: Of the file that asks a worker to drain, beside its sign of life (see `drains`).
DRAIN_SUFFIX = ".drain"

_Seconds = Annotated[float, Field(ge=0, le=1e9)]
_Interval = Annotated[float, Field(gt=0, le=1e6)]
_Number = Annotated[int, Field(ge=0)]
_Rate = Annotated[float, Field(ge=0, le=1e9)]


class Health(StrEnum):
    """What a reader makes of it: who has `gone` gave no sign of life for some intervals, whatever his state was."""

    ALIVE = "alive"
    STALLED = "stalled"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class HeldShard:
    """A shard that a worker works on, and what this attempt at it has made.

    `num_tokens` are completion tokens of its rows, also of those that are not finished, `num_copied` those of them for
    which nothing was computed, as an equal row has the same answer. Its rows may take `max_tokens` in all; 0 where
    nobody knows yet.
    """

    job_id: str
    shard: _Number
    attempt: _Number
    num_tokens: _Number = 0
    num_copied: _Number = 0
    max_tokens: _Number = 0


@dataclass(frozen=True, slots=True)
class WorkerHeartbeat:
    """One sign of life. `started_at` and `beat_at` are by the worker's clock: good to show, not to compare.

    The next one follows within `interval_s`. `stalled_s` are seconds since the engine's last step while it has work, 0
    while it moves. `num_crashes` counts deaths of the child since the supervisor started; `last_crash` says how the
    last one ended (`signal SIGSEGV`), "" before the first. `instance` tells workers of one name apart. Of the engines
    in memory `num_slots` are the sequences that they compute at a time, of which `num_running` are taken, by live
    requests too, and `tokens_per_s` the completion tokens of the last seconds.
    """

    name: str
    host: str
    pid: int
    version: str
    models: tuple[str, ...]
    started_at: AwareDatetime
    beat_at: AwareDatetime
    state: WorkerState
    interval_s: _Interval
    stalled_s: _Seconds = 0.0
    shards: tuple[HeldShard, ...] = ()
    num_crashes: _Number = 0
    last_crash: str = ""
    instance: str = ""
    num_slots: _Number = 0
    num_running: _Number = 0
    tokens_per_s: _Rate = 0.0


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A sign of life as a reader found it, `age_s` seconds after it was given."""

    beat: WorkerHeartbeat
    health: Health
    age_s: float

    @property
    def stalled_s(self) -> float:
        """Seconds that the engine has made no step, up to now; 0 where it moves, or where nobody knows."""
        return self.beat.stalled_s + self.age_s if self.health is Health.STALLED else 0.0

    @property
    def takes_shards(self) -> bool:
        """Whether it could take a shard, now or later."""
        return self.health is not Health.GONE and not self.beat.state.is_leaving

    @property
    def finishes_shards(self) -> bool:
        """Whether it goes on with the shards that it has, as one does that drains."""
        return self.health is not Health.GONE and self.beat.state is not WorkerState.STOPPING


_HEARTBEAT = TypeAdapter(WorkerHeartbeat)


def workers_dir(home: Path) -> Path:
    """Where the workers of a jobs root, or of a job, keep their signs of life."""
    return home / WORKERS_NAME


def heartbeat_path(home: Path, name: str, instance: str = "") -> Path:
    """The file of one worker. Raises InputError for a name that is no safe file name."""
    return workers_dir(home) / f"{check_id(name, what='worker name')}{instance and SEPARATOR}{instance}.json"


def utc_now() -> datetime:
    """The worker's clock, for `started_at` and `beat_at`."""
    return datetime.now(UTC)


def write_heartbeat(home: Path, beat: WorkerHeartbeat, *, store: Store = LOCAL) -> None:
    """Replace a worker's sign of life, atomically, not durably. Raises StorageError where the disk says no."""
    store.replace(
        heartbeat_path(home, beat.name, beat.instance), _HEARTBEAT.dump_json(beat, indent=1), is_durable=False
    )


def remove_heartbeat(home: Path, name: str, instance: str = "", *, store: Store = LOCAL) -> None:
    """Take leave, at an orderly end. Raises StorageError where the disk says no; a file already gone is no error."""
    path = heartbeat_path(home, name, instance)
    store.delete_many([path, path.with_suffix(DRAIN_SUFFIX)])


def read_heartbeats(
    home: Path, *, now: datetime | None = None, listed: Sequence[Entry] | None = None, store: Store = LOCAL
) -> list[WorkerReport]:
    """What the workers of a jobs root, or of a job, have to say, by name, those of one name by age; never raises.

    `now` is the store's time, for tests; it is found out where it matters. `listed` are the files, if somebody has just
    listed them. Files that are no heartbeats are passed over.
    """
    files = _files(home, store) if listed is None else signs(listed)
    found = [(beat, head.modified_s) for path, head in heads(files) if (beat := _read(path, store)) is not None]
    if not found:
        return []
    reports = _judge(found, time.time() if now is None else now.timestamp())
    if now is None and any(report.health is Health.GONE for report in reports):
        # Or the clock of this machine goes wrong. Asked only now, since it means to write.
        newest = max(modified_s for _, modified_s in found)
        reports = _judge(found, _store_time(workers_dir(home), store, newest=newest))
    old = _superseded(reports)
    left = [report for report in reports if report.beat not in old]
    return sorted(left, key=lambda report: (report.beat.name, report.beat.started_at, report.beat.instance))


def sweep_heartbeats(home: Path, *, now: datetime | None = None, store: Store = LOCAL) -> int:
    """Delete the files of workers that are gone for over a day, or that another took the name of, and what killed
    writers left. Never raises.

    Returns how many. One that still lived would be back within its interval. Files of others are left alone.
    """
    folder = workers_dir(home)
    with contextlib.suppress(StorageError):
        # An empty one is what a failure of the power can leave.
        ours = [(path, head) for path, head in heads(_files(home, store)) if not head.size or _read(path, store)]
        ours += heads(store.leftovers(folder))
        if not ours:
            return 0
        newest = max(head.modified_s for _, head in ours)
        moment = _store_time(folder, store, newest=newest) if now is None else now.timestamp()
        old = {path for path, head in ours if moment - head.modified_s > FORGET_AFTER_S}
        found = [(beat, head.modified_s) for path, head in ours if (beat := _read(path, store)) is not None]
        old |= {heartbeat_path(home, beat.name, beat.instance) for beat in _superseded(_judge(found, moment))}
        store.discard(sorted(old | {path.with_suffix(DRAIN_SUFFIX) for path in old}))
        return len(old)
    return 0


def _superseded(reports: list[WorkerReport]) -> list[WorkerHeartbeat]:
    """The signs of those that are gone and whose name another has, or had later."""
    last: dict[str, WorkerReport] = {}
    for report in sorted(reports, key=lambda report: (report.health is not Health.GONE, -report.age_s)):
        last[report.beat.name] = report
    return [each.beat for each in reports if each.health is Health.GONE and each is not last[each.beat.name]]


def _judge(found: list[tuple[WorkerHeartbeat, float]], now: float) -> list[WorkerReport]:
    reports = []
    for beat, mtime in found:
        age_s = now - mtime
        if is_gone(age_s, interval_s=beat.interval_s):
            health = Health.GONE
        else:
            health = Health.STALLED if beat.state is WorkerState.STALLED else Health.ALIVE
        reports.append(WorkerReport(beat, health, round(max(0.0, age_s), 3)))
    return reports


def _files(home: Path, store: Store) -> Sequence[Entry]:
    try:
        return signs(store.list(workers_dir(home)))
    except StorageError:
        return ()


def _read(path: Path, store: Store) -> WorkerHeartbeat | None:
    name, _, instance = path.stem.partition(SEPARATOR)
    if not ID_PATTERN.match(name):
        return None
    try:
        beat = _HEARTBEAT.validate_json(store.read(path))
    except (OSError, StorageError, ValidationError):
        return None
    return beat if (beat.name, beat.instance) == (name, instance) else None


def _store_time(folder: Path, store: Store, *, newest: float) -> float:
    """Unix seconds by the clock that stamps the files of `folder`; not before `newest`, a stamp found in it."""
    try:
        return store.now_s(folder)
    except StorageError:
        # A folder to read only: two clocks that can be wrong, of which the later one is right more often.
        return max(newest, time.time())
