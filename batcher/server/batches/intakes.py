"""Several inputs of batches are read at once, in turns, so that none holds up another.

Each input has a thread, but one of them goes on at a time, until its next block: reading keeps one core busy, so all at
once would be done no earlier, and what a block takes while it is checked would be there as often. Who has had the least
time goes on. Few inputs may be large; one that only then shows that it is gives its place to others and begins anew
when there is room for a large one.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batcher.jobdir.folder import JobDir
from batcher.server.batches.intake import ReadingInterruptedError
from batcher.submission.readers.bounds import Checkpoint

logger = logging.getLogger(__name__)

#: Inputs that are read at once, and how many of them may be large.
MAX_INTAKES = 6
MAX_LARGE_INTAKES = 2
#: Seconds of reading after which an input is large.
SMALL_S = 10.0

#: Has a function called beside the caller; returns what waits for its end.
Start = Callable[[Callable[[], None]], Callable[[], None]]


@dataclass(slots=True, eq=False)
class _Turn:
    """One that takes turns. Seconds: how long it has gone on, and when it began to; it entered as if it had gone on for
    `entered_s`."""

    entered_s: float
    used_s: float
    since: float = 0.0


class TimeShares:
    """One thread goes on at a time: the one that has had the least time, since it came, of all. For all threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._turns: list[_Turn] = []
        self._running: _Turn | None = None

    @contextmanager
    def joined(self) -> Iterator[Callable[[], float]]:
        """Take part: blocks until it is this one's turn.

        Yields what gives the others their turns, waits for the next and returns the seconds that this one has had.
        """
        with self._changed:
            # As much as the others: who comes late has no right to all that they have had.
            least_s = min((turn.used_s for turn in self._turns), default=0.0)
            mine = _Turn(least_s, least_s)
            self._turns.append(mine)
            self._await(mine)
        try:
            yield partial(self._pass_on, mine)
        finally:
            with self._changed:
                self._turns.remove(mine)
                self._end(mine)

    def _pass_on(self, mine: _Turn) -> float:
        with self._changed:
            self._end(mine)
            self._await(mine)
            return mine.used_s - mine.entered_s

    def _end(self, mine: _Turn) -> None:
        mine.used_s += self._clock() - mine.since
        self._running = None
        self._changed.notify_all()

    def _await(self, mine: _Turn) -> None:
        self._changed.wait_for(lambda: self._running is None and mine is min(self._turns, key=lambda turn: turn.used_s))
        self._running = mine
        mine.since = self._clock()


class Intakes:
    """The inputs that are being read. For one thread, but `turn` is for those that read.

    `is_stopping` says that nothing more is to be read, and `on_end` is called where one is done.
    """

    def __init__(
        self,
        *,
        is_stopping: Callable[[], bool],
        on_end: Callable[[JobDir], None],
        start: Start,
        shares: TimeShares | None = None,
    ) -> None:
        self._is_stopping = is_stopping
        self._on_end = on_end
        self._start = start
        self._shares = shares or TimeShares()
        self._lock = threading.Lock()
        #: Whether each input that is read is large, and those that turned out to be.
        self._running: dict[Path, bool] = {}
        self._grown: set[Path] = set()
        self._joins: dict[Path, Callable[[], None]] = {}

    def is_reading(self, job: JobDir) -> bool:
        """Whether the input of this job is being read."""
        return job.path in self._running

    @property
    def has_room(self) -> bool:
        """Whether another input can be read now, if it is not large."""
        return len(self._running) < MAX_INTAKES

    def has_grown(self, job: JobDir) -> bool:
        """Whether the input of this job has turned out to be large, and given its place to others."""
        return job.path in self._grown

    def begin(self, job: JobDir, read: Callable[[], None], *, is_large: bool) -> bool:
        """Have an input read that is not read already. Returns False where there is no room now."""
        with self._lock:
            if not self.has_room or (is_large and not self._has_room_for_large()):
                return False
            self._running[job.path] = is_large
            self._grown.discard(job.path)
        self._joins = {path: join for path, join in self._joins.items() if path in self._running}
        self._joins[job.path] = self._start(partial(self._run, job, read))
        return True

    @contextmanager
    def turn(self, job: JobDir) -> Iterator[Checkpoint]:
        """Read in turns with the others: yields what is to be called before each block.

        It raises ReadingInterruptedError where nothing more is to be read, for now.
        """
        with self._shares.joined() as pass_on:

            def checkpoint() -> None:
                seconds = pass_on()
                if self._is_stopping() or (seconds > SMALL_S and not self._may_be_large(job)):
                    raise ReadingInterruptedError

            yield checkpoint

    def join(self) -> None:
        """Wait until nothing is read any more."""
        for join in list(self._joins.values()):
            join()

    def _may_be_large(self, job: JobDir) -> bool:
        with self._lock:
            if not self._running[job.path]:
                self._grown.add(job.path)
                self._running[job.path] = self._has_room_for_large()
            return self._running[job.path]

    def _has_room_for_large(self) -> bool:
        return sum(self._running.values()) < MAX_LARGE_INTAKES

    def _run(self, job: JobDir, read: Callable[[], None]) -> None:
        try:
            read()
        except Exception:
            # A bug, but one that must not end the batches of everybody.
            logger.exception("batch %s: unforeseen error; it is tried again", job.job_id)
        finally:
            with self._lock:
                del self._running[job.path]
            self._on_end(job)


def start_thread(work: Callable[[], None]) -> Callable[[], None]:
    """Have `work` done in a thread of its own; returns what waits for it."""
    thread = threading.Thread(target=work, name="intake")
    thread.start()
    return thread.join
