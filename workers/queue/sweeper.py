"""Sweeping in the background, for whoever waits: `run` for its job, a worker's supervisor for its jobs root.

A thread of its own talks to the broker, so that a broker that hangs holds up neither signals nor the terminal.
"""

import contextlib
import logging
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from batcher import __version__
from batcher.broker.client import cursor_key, open_client, queue_keys, queue_name, queued_key, trouble
from batcher.broker.leases import Pace
from batcher.broker.presence import MAX_MODELS, Announcer, Presence
from batcher.broker.sender import Sender
from batcher.broker.sweep import LOOK_AGE_S, Every, Sweep
from batcher.broker.turns import Turns
from batcher.errors import BatcherError, BrokerError, StorageError
from batcher.jobdir.folder import JobDir, Watch
from batcher.jobdir.root import list_jobs
from batcher.manage.finish import finalize
from workers.process.events import WorkerConfig

logger = logging.getLogger(f"batcher.{__name__}")

#: Seconds. Between two rounds at least, and from the moment when a lease can expire to the look for it.
_SHORTEST_WAIT_S = 0.05
#: Seconds that a job's own queues outlive the last look of whoever swept them.
_OWN_TTL_S = 86_400

#: Seconds for an answer of a broker from which nothing is wanted but that it deletes them.
_DROP_PATIENCE_S = 2.0

#: Does one round; gets the ids of the processes that died since the last one, returns the seconds after which another
#: is due at the latest.
Tick = Callable[[Sequence[str]], float]


class Sweeper:
    """Calls `first` once, and then `tick` whenever it is due, in a thread, within a `with` block.

    A broker that is away is borne for `patience_s` seconds (None: for ever), asked every `retry_interval_s`; then, and
    on any other error, `check` raises it.
    """

    def __init__(
        self,
        tick: Tick,
        *,
        first: Callable[[], object] | None = None,
        patience_s: float | None,
        retry_interval_s: float,
    ) -> None:
        self._first = first
        self._tick = tick
        self._patience_s = patience_s
        self._retry_interval_s = retry_interval_s
        self._deaths: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._failure: BatcherError | None = None
        self._is_stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not joined: it may be waiting for a broker that hangs, and what it does can be cut off anywhere.
        self._is_stopping = True
        self._wake.set()

    def on_death(self, process: str) -> None:
        """Have the shards of a dead process sent again at once; `process` is the id by which it claimed them."""
        self._deaths.put(process)
        self._wake.set()

    def check(self) -> None:
        """Raise what ended the sweeping, if anything has."""
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        last_heard = time.monotonic()
        is_away = False
        deaths: list[str] = []
        while self._failure is None:
            wait_s = self._retry_interval_s
            try:
                if self._first is not None:
                    self._first()
                    self._first = None
                deaths += [self._deaths.get() for _ in range(self._deaths.qsize())]
                wait_s = self._tick(deaths)
                deaths = []
                last_heard, is_away = time.monotonic(), False
            except BrokerError as exc:
                away_s = time.monotonic() - last_heard
                if self._patience_s is not None and away_s > self._patience_s:
                    self._failure = BrokerError(f"{exc}; the broker has been away for {away_s:.0f} s")
                elif not (is_away or self._is_stopping):
                    is_away = True
                    logger.warning("%s; trying on", exc)
            except BatcherError as exc:
                self._failure = exc
            except Exception as exc:
                self._failure = BatcherError(f"the sweep ended with {exc!r}: a bug of Batcher")
                raise
            self._wake.wait(max(wait_s, _SHORTEST_WAIT_S))
            self._wake.clear()
            if self._is_stopping:
                return


class JobSweep:
    """Sweeps one job, as `watch` sees it; `sender` sends what it finds to the queues of `scope`.

    Queues that are the job's own are kept from outliving it for long: a command that is killed leaves them behind.
    """

    def __init__(self, watch: Watch, broker_url: str, *, scope: str, lease_ttl_s: float) -> None:
        self._client = open_client(broker_url)
        self._own_keys = own_keys(watch.job) if scope == watch.job.manifest.identity else []
        sender = Sender(broker_url, scope=scope)
        self._sweep = Sweep(watch.job, self._client, sender=sender, lease_ttl_s=lease_ttl_s, watch=watch)
        self._interval_s = Pace(lease_ttl_s).sweep_interval_s
        self._look = Every(self._interval_s)

    def tick(self, deaths: Sequence[str]) -> float:
        """One round. Raises BrokerError; the next one makes up for it."""
        for process in deaths:
            self._sweep.release_dead(process)
        next_expiry_s = self._sweep.reap()
        if self._look.is_due():
            self._sweep.look(max_age_s=LOOK_AGE_S)
            self._keep_own()
        return min(self._interval_s, next_expiry_s + _SHORTEST_WAIT_S)

    def _keep_own(self) -> None:
        try:
            with self._client.pipeline(transaction=False) as pipe:
                for key in self._own_keys:
                    pipe.expire(key, _OWN_TTL_S)
                pipe.execute()
        except redis.RedisError as exc:
            raise BrokerError(f"broker: the job's queues could not be kept: {trouble(exc)}") from exc


def own_keys(job: JobDir) -> list[str]:
    """What a broker holds of the queues that are a job's own."""
    scope = job.manifest.identity
    keys: list[str] = []
    for model in job.manifest.models:
        queue = queue_name(model, scope=scope)
        keys += [*queue_keys(model, scope=scope), queued_key(job.job_id, queue), cursor_key(job.job_id, queue)]
    return keys


def drop_own_queues(job: JobDir, broker_url: str) -> None:
    """Delete the queues that are a job's own, of which nobody takes any more. Never raises: they expire, too.

    The job need not be there any more, or yet.
    """
    with contextlib.suppress(BatcherError, redis.RedisError):
        client = open_client(broker_url, timeout_s=_DROP_PATIENCE_S)
        with contextlib.closing(client):
            client.delete(*own_keys(job))


class RootSweep:
    """Sweeps all jobs under a jobs root for `models`, and finalizes those whose last worker died before it could.

    What it finds it sends to the queues of `scope`.
    """

    def __init__(self, root: Path, broker_url: str, *, scope: str, models: frozenset[str], lease_ttl_s: float) -> None:
        self._root = root
        self._models = models
        self._lease_ttl_s = lease_ttl_s
        self._client = open_client(broker_url)
        self._sender = Sender(broker_url, scope=scope)
        self._turns = Turns(self._client, scope=scope)
        self._interval_s = Pace(lease_ttl_s).sweep_interval_s
        self._look = Every(self._interval_s)
        # By path and version of the manifest: a job deleted and submitted again under its name is another job.
        self._sweeps: dict[tuple[Path, str], Sweep] = {}

    def tick(self, deaths: Sequence[str]) -> float:
        """One round. Raises BrokerError; the next one makes up for it. A damaged job is logged and left out."""
        is_look_due = self._look.is_due()
        if is_look_due or deaths:
            # The dead may have worked on a job that is newer than the last look.
            try:
                self._sweeps = dict(self._unfinished())
            except (BatcherError, OSError) as exc:
                # A network folder that is away for a while. Those known before are swept as ever.
                logger.warning("the jobs are not listed: %s", exc)
        queues = {model: self._turns.read(model) for model in self._models} if is_look_due and self._sweeps else {}
        next_expiry_s = math.inf
        for sweep in self._sweeps.values():
            try:
                if is_look_due and finalize(sweep.job, listing=sweep.watch.look()) is not None:
                    continue
                for process in deaths:
                    sweep.release_dead(process)
                next_expiry_s = min(next_expiry_s, sweep.reap())
                if is_look_due:
                    sweep.look(max_age_s=LOOK_AGE_S, queues=queues)
            except BrokerError:
                raise
            except BatcherError as exc:
                logger.warning("job %s is not swept: %s", sweep.job.job_id, exc)
        return min(self._interval_s, next_expiry_s + _SHORTEST_WAIT_S)

    def _unfinished(self) -> Iterator[tuple[tuple[Path, str], Sweep]]:
        for job in list_jobs(self._root):
            try:
                if job.is_complete or job.is_halted:
                    continue
                found = job.store.head(job.manifest_path)
            except StorageError as exc:
                logger.warning("job %s is not swept: %s", job.job_id, exc)
                continue
            if found is None:
                continue  # Deleted since the listing.
            key = (job.path, found.version)
            yield key, self._sweeps.get(key) or self._sweep_of(job)

    def _sweep_of(self, job: JobDir) -> Sweep:
        return Sweep(
            *(job, self._client),
            sender=self._sender,
            models=self._models,
            lease_ttl_s=self._lease_ttl_s,
        )


@contextlib.contextmanager
def root_sweeper(config: WorkerConfig) -> Iterator[Sweeper]:
    """What sweeps the jobs under the jobs root of a worker, and meanwhile announces the worker at its broker."""
    pause_s = Pace(config.lease_ttl_s).sweep_interval_s
    sweep = RootSweep(
        *(Path(config.jobs_root), config.broker_url),
        scope=config.scope,
        models=frozenset(name for name, _ in config.models),
        lease_ttl_s=config.lease_ttl_s,
    )
    announcer = Announcer(config.broker_url, _presence(config), pause_s=pause_s)

    def tick(deaths: Sequence[str]) -> float:
        wait_s = sweep.tick(deaths)
        announcer.renew()
        return wait_s

    def look_around() -> None:
        announcer.renew()
        _warn_of_other_folders(announcer)

    with Sweeper(tick, first=look_around, patience_s=None, retry_interval_s=pause_s) as sweeper:
        try:
            yield sweeper
        finally:
            announcer.withdraw()


def _presence(config: WorkerConfig) -> Presence:
    return Presence(
        name=config.name,
        host=socket.gethostname(),
        pid=os.getpid(),
        version=__version__,
        scope=config.scope,
        folder=config.jobs_root,
        models=tuple(name for name, _ in config.models[:MAX_MODELS]),
    )


def _warn_of_other_folders(announcer: Announcer) -> None:
    """Say where others of the same models work, if none works in this worker's jobs folder."""
    me, others = announcer.presence, announcer.others()
    kin = [each for each in others if not set(me.models).isdisjoint(each.models)]
    if kin and all(each.scope != me.scope for each in others):
        logger.warning(
            "no other worker at this broker works in the jobs folder %s; %s on %s works in %s: if this worker is to "
            "help there, start it with the --jobs-dir that leads to that folder",
            *(me.folder, kin[0].name, kin[0].host, kin[0].folder),
        )
