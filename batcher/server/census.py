"""The jobs and workers of a jobs root in numbers, for the metrics; by files alone, like `batcher status`."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from batcher.errors import BatcherError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import WorkerReport, read_heartbeats
from batcher.jobdir.root import list_jobs
from batcher.manage.status import JobState, Status, StatusReader

logger = logging.getLogger(__name__)

#: Seconds that a census is good for: a scrape comes every 15 s or so, and several servers may share a jobs root.
FRESH_S = 5.0

#: What tells a job from an earlier state of it: the versions of its manifest and `_SUCCESS`; None: not there.
_Stamp = tuple[str | None, str | None]


@dataclass(frozen=True, slots=True)
class Census:
    """Jobs by state, shards and rows of all jobs by theirs, and the workers by their signs of life."""

    jobs: Mapping[str, int]
    shards: Mapping[str, int]
    rows: Mapping[str, int]
    workers: tuple[WorkerReport, ...]


class CensusTaker:
    """Counts a jobs root now and then. For any thread; `take` reads files, so not for an event loop's.

    A job that is complete is read once: until its `_SUCCESS` or manifest change, so do none of its numbers.
    """

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._root = root
        self._clock = clock
        self._lock = Lock()
        self._last: tuple[float, Census] | None = None
        self._readers: dict[Path, StatusReader] = {}
        self._complete: dict[Path, tuple[_Stamp, Status]] = {}

    def take(self) -> Census:
        """The newest numbers, at most FRESH_S old. Never raises for a job that can't be read; it is left out."""
        with self._lock:
            if self._last is None or self._clock() - self._last[0] > FRESH_S:
                census = self._count()
                self._last = (self._clock(), census)
            return self._last[1]

    def _count(self) -> Census:
        jobs = Counter({state.value: 0 for state in JobState})
        shards = Counter({"committed": 0, "claimed": 0, "waiting": 0})
        rows = Counter({"ok": 0, "error": 0, "pending": 0})
        seen = set()
        for job in self._list():
            seen.add(job.path)
            status = self._status(job)
            if status is None:
                continue
            jobs[status.state.value] += 1
            shards.update(committed=status.num_committed, claimed=status.num_claimed, waiting=status.num_waiting)
            rows.update(ok=status.num_ok, error=status.num_errors, pending=status.num_rows - status.num_done)
        for known in (self._readers, self._complete):
            for path in known.keys() - seen:
                del known[path]
        return Census(jobs, shards, rows, tuple(read_heartbeats(self._root)))

    def _list(self) -> list[JobDir]:
        try:
            return list(list_jobs(self._root))
        except BatcherError as exc:
            logger.warning("%s", exc)
            return []

    def _status(self, job: JobDir) -> Status | None:
        stamp = (_version(job, job.manifest_path), _version(job, job.success_path))
        if job.path in self._complete:
            known, status = self._complete[job.path]
            if known == stamp:
                return status
            # Opened again by a retry, or another job under the same name.
            del self._complete[job.path]
        reader = self._readers.setdefault(job.path, StatusReader(job))
        try:
            status = reader.read()
        except (BatcherError, OSError):
            # Deleted meanwhile, or damaged; `batcher status` tells of it.
            self._readers.pop(job.path, None)
            return None
        if status.is_complete:
            self._complete[job.path] = (stamp, status)
            self._readers.pop(job.path, None)
        return status


def _version(job: JobDir, path: Path) -> str | None:
    head = job.store.head(path)
    return None if head is None else head.version
