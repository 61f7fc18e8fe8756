"""Several inputs of batches are read at once, in turns, so that none holds up another.

Each input has a thread, but one of them goes on at a time, a block after the other: reading keeps one core busy, so all
at once would be done no earlier, and what a block takes while it is checked would be there as often. Whoever waits for
its turn holds what it has unpacked of a block and the shards it fills. Small inputs have room of their own, as those
who come in numbers are large.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from batcher.jobdir.folder import JobDir
from batcher.server.batches.intake import ReadingInterruptedError
from batcher.submission.readers.bounds import Checkpoint

logger = logging.getLogger(__name__)

#: Inputs that are read at once, and how many of them may be large.
MAX_INTAKES = 6
MAX_LARGE_INTAKES = 2

#: Has a function called beside the caller; returns what waits for its end.
Start = Callable[[Callable[[], None]], Callable[[], None]]


class Turns:
    """One thread goes on at a time; who has gone a step waits behind all others. For all threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: The first has the turn.
        self._queue: deque[object] = deque()

    @contextmanager
    def joined(self) -> Iterator[Callable[[], None]]:
        """Take part: blocks until it is this one's turn. Yields what passes the turn on and waits for the next."""
        me = object()
        with self._changed:
            self._queue.append(me)
            self._await(me)
        try:
            yield partial(self._pass_on, me)
        finally:
            with self._changed:
                self._queue.popleft()
                self._changed.notify_all()

    def _pass_on(self, me: object) -> None:
        with self._changed:
            if len(self._queue) > 1:
                self._queue.rotate(-1)
                self._changed.notify_all()
                self._await(me)

    def _await(self, me: object) -> None:
        self._changed.wait_for(lambda: self._queue[0] is me)


class Intakes:
    """The inputs that are being read. For one thread, but `turn` is for those that read.

    `is_stopping` says that nothing more is to be read, and `on_end` is called where one is done.
    """

    def __init__(self, *, is_stopping: Callable[[], bool], on_end: Callable[[JobDir], None], start: Start) -> None:
        self._is_stopping = is_stopping
        self._on_end = on_end
        self._start = start
        self._turns = Turns()
        self._running: dict[Path, bool] = {}
        self._joins: dict[Path, Callable[[], None]] = {}

    def has_room(self, *, is_large: bool) -> bool:
        """Whether another input can be read now."""
        running = list(self._running.values())
        return len(running) < MAX_INTAKES and not (is_large and sum(running) >= MAX_LARGE_INTAKES)

    def is_reading(self, job: JobDir) -> bool:
        """Whether the input of this job is being read."""
        return job.path in self._running

    def begin(self, job: JobDir, read: Callable[[], None], *, is_large: bool) -> None:
        """Have an input read. There must be room, and it must not be read already."""
        self._joins = {path: join for path, join in self._joins.items() if path in self._running}
        self._running[job.path] = is_large
        self._joins[job.path] = self._start(partial(self._run, job, read))

    @contextmanager
    def turn(self) -> Iterator[Checkpoint]:
        """Read in turns with the others: yields what is to be called before each block.

        It raises ReadingInterruptedError where nothing more is to be read.
        """
        with self._turns.joined() as pass_on:

            def checkpoint() -> None:
                pass_on()
                if self._is_stopping():
                    raise ReadingInterruptedError

            yield checkpoint

    def join(self) -> None:
        """Wait until nothing is read any more."""
        for join in list(self._joins.values()):
            join()

    def _run(self, job: JobDir, read: Callable[[], None]) -> None:
        try:
            read()
        except Exception:
            # A bug, but one that must not end the batches of everybody.
            logger.exception("batch %s: unforeseen error; it is tried again", job.job_id)
        finally:
            del self._running[job.path]
            self._on_end(job)


def start_thread(work: Callable[[], None]) -> Callable[[], None]:
    """Have `work` done in a thread of its own; returns what waits for it."""
    thread = threading.Thread(target=work, name="intake")
    thread.start()
    return thread.join
