"""Sweeping in the background, for whoever waits: `run` for its job, a worker's supervisor for its jobs root.

A thread of its own talks to the broker, so that a broker that hangs holds up neither signals nor the terminal.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from batcher.broker import open_client
from batcher.errors import BatcherError, BrokerError
from batcher.jobdir import JobDir, list_jobs
from batcher.reconcile import TICK_INTERVAL_S, IdleSweep
from batcher.summary import finalize
from workers.app import enqueue, make_app

logger = logging.getLogger(__name__)

#: Does one round; gets the names of the workers whose process died since the last one.
Tick = Callable[[Sequence[str]], None]


class Sweeper:
    """Calls `tick` at once and then every 5 s, in a thread, within a `with` block.

    A broker that is away is borne for `patience_s` seconds (None: for ever); then, and on any other error, `check`
    raises it.
    """

    def __init__(self, tick: Tick, *, patience_s: float | None) -> None:
        self._tick = tick
        self._patience_s = patience_s
        self._dead: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failure: BatcherError | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not joined: it may be waiting for a broker that hangs, and what it does can be cut off anywhere.
        self._stopping.set()

    def on_death(self, worker: str) -> None:
        """Note that a worker's process died, so that the next round gives its leases back."""
        self._dead.put(worker)

    def check(self) -> None:
        """Raise what ended the sweeping, if anything has."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        last_heard = time.monotonic()
        is_away = False
        while self._failure is None:
            try:
                self._tick([self._dead.get() for _ in range(self._dead.qsize())])
                last_heard, is_away = time.monotonic(), False
            except BrokerError as exc:
                away_s = time.monotonic() - last_heard
                if self._patience_s is not None and away_s > self._patience_s:
                    self._failure = BrokerError(f"{exc}; the broker has been away for {away_s:.0f} s")
                elif not (is_away or self._stopping.is_set()):
                    is_away = True
                    logger.warning("%s; trying on", exc)
            except BatcherError as exc:
                self._failure = exc
            except Exception as exc:
                self._failure = BatcherError(f"the sweep ended with {exc!r}: a bug of Batcher")
                raise
            if self._stopping.wait(TICK_INTERVAL_S):
                return


class JobSweep:
    """Sweeps one job; `is_sending`: begins with a message for each shard that has no part."""

    def __init__(self, job: JobDir, broker_url: str, *, is_sending: bool) -> None:
        self._job = job
        self._enqueue = partial(enqueue, make_app(broker_url))
        self._sweep = IdleSweep(job, open_client(broker_url), enqueue=self._enqueue)
        self._is_sending = is_sending

    def tick(self, dead: Sequence[str]) -> None:
        """One round. Raises BrokerError; the next one makes up for it."""
        if self._is_sending:
            self._enqueue(self._job, self._job.pending_shards())
            self._is_sending = False
        for worker in dead:
            self._sweep.release_dead(worker)
        self._sweep.tick()


class RootSweep:
    """Sweeps all jobs under a jobs root for `models`, and finalizes those whose last worker died before it could."""

    def __init__(self, root: Path, broker_url: str, *, models: frozenset[str]) -> None:
        self._root = root
        self._models = models
        self._client = open_client(broker_url)
        self._enqueue = partial(enqueue, make_app(broker_url))
        # By path and identity of the manifest: a job deleted and submitted again under its name is another job.
        self._sweeps: dict[tuple[Path, int, int], IdleSweep] = {}

    def tick(self, dead: Sequence[str]) -> None:
        """One round. Raises BrokerError; the next one makes up for it. A damaged job is logged and left out."""
        self._sweeps = dict(self._unfinished())
        for sweep in self._sweeps.values():
            try:
                if finalize(sweep.job) is not None:
                    continue
                for worker in dead:
                    sweep.release_dead(worker)
                sweep.tick()
            except BrokerError:
                raise
            except BatcherError as exc:
                logger.warning("job %s is not swept: %s", sweep.job.job_id, exc)

    def _unfinished(self) -> Iterator[tuple[tuple[Path, int, int], IdleSweep]]:
        for job in list_jobs(self._root):
            if job.is_complete or job.is_cancelled:
                continue
            try:
                found = job.manifest_path.stat()
            except FileNotFoundError:
                continue  # Deleted since the listing.
            key = (job.path, found.st_ino, found.st_mtime_ns)
            known = self._sweeps.get(key)
            yield key, known or IdleSweep(job, self._client, enqueue=self._enqueue, models=self._models)
