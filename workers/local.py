"""Workers of this machine, watched until the work is done (`complete`) or until told to stop (`run_worker`).

Both own what they start: whatever happens, no process of theirs is left when they return or raise. Shutdown goes from
the work to the broker: first the workers save their rows and give their shards back, then the broker may go.
"""

import contextlib
import logging
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from batcher.broker.client import connect
from batcher.broker.embedded import embedded_broker, own_folder
from batcher.broker.leases import LEASE_TTL_S, Pace
from batcher.broker.sender import Sender
from batcher.errors import BatcherError, BrokerError, JobCancelledError, JobPausedError
from batcher.jobdir.folder import JobDir, Watch
from batcher.jobdir.heartbeats import sweep_heartbeats
from batcher.jobdir.retries import most_extra_tokens
from batcher.jobdir.scope import scope_of
from batcher.manage.finish import Summary, finalize
from batcher.manage.status import JobState, Status, StatusReader
from batcher.types import Demand
from workers.process.events import WorkerConfig
from workers.process.supervisor import Supervisor, end_idle, stop_all
from workers.queue.sweeper import JobSweep, Sweeper, drop_own_queues, root_sweeper

logger = logging.getLogger(f"batcher.{__name__}")

#: Seconds between two looks at signals and children.
TICK_S = 0.1
#: Seconds between two readings of a job's status, and how many times as long as the last reading took, if that is more.
STATUS_INTERVAL_S = 0.5
STATUS_PAUSE_FACTOR = 20
#: Seconds without a broker after which a command that waits for a job gives up.
BROKER_PATIENCE_S = 30.0


class StoppedError(BatcherError):
    """The user stopped the command before the job was complete, by the signal `number`: SIGINT or SIGTERM."""

    exit_code = 130

    def __init__(self, message: str, *, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


class StopSignals:
    """Counts SIGINT and SIGTERM instead of dying of them, inside a `with` block.

    In another thread than the main one it hears none: Python delivers signals to the main thread alone.
    """

    def __init__(self) -> None:
        self.num_received = 0
        #: The last one.
        self.number: int = signal.SIGINT

    def __enter__(self) -> Self:
        # A plain counter, read between naps: nothing that a handler could find locked.
        self._previous = {number: _handle(number, self._count) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            _handle(number, handler)

    def is_urgent(self) -> bool:
        """Whether the user has asked twice."""
        return self.num_received > 1

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.num_received += 1
        self.number = number


def _handle(number: int, handler: Any) -> Any:
    """Set the handler of a signal; returns the one before. Does nothing where that can't be done, or was not."""
    if handler is None or threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(number, handler)


def default_worker_name() -> str:
    """Host and process: unique among the workers that live now, and usable as the name of a file."""
    host = re.sub(r"[^A-Za-z0-9_.-]+", "-", socket.gethostname()).lstrip("_.-")[:100]
    return f"{host or 'worker'}-{os.getpid()}"


@dataclass(frozen=True, slots=True)
class JobBroker:
    """Where the shards of a job queue. `is_ours`: nobody else uses it, and it goes when the job is done."""

    url: str
    is_ours: bool


@contextlib.contextmanager
def job_broker(job: JobDir, broker_url: str | None) -> Iterator[JobBroker]:
    """Keep other commands of this machine off `job`, and yield a broker: `broker_url`, else an embedded one.

    In the main thread SIGTERM is like Ctrl-C inside: a KeyboardInterrupt, so that the broker and its folder are gone in
    any case. Raises BrokerError.
    """
    previous = _handle(signal.SIGTERM, signal.default_int_handler)
    try:
        if broker_url is None:
            with embedded_broker(job.path) as url:
                yield JobBroker(url, is_ours=True)
        else:
            with own_folder(job.path):
                try:
                    yield JobBroker(broker_url, is_ours=False)
                finally:
                    drop_own_queues(job, broker_url)
    finally:
        _handle(signal.SIGTERM, previous)


def complete(
    job: JobDir,
    config: WorkerConfig,
    *,
    num_workers: int,
    broker: JobBroker,
    spares: list[subprocess.Popen[bytes]],
    on_status: Callable[[Status], None],
    on_engines: Callable[[str], None] = lambda text: None,
    log: int | None = None,
) -> Summary:
    """Send the pending shards of `job` and complete them with workers of this machine, blocking; returns its summary.

    `config` is that of each worker but for name, broker and a fair share of machine and job. `spares` are processes for
    them that have been launched already. `on_status` is called about twice a second, `on_engines` with how the workers
    have set up their engines, once if they agree. `log` is the descriptor of the workers' stderr; None: that of this
    process.

    Raises StoppedError on SIGINT or SIGTERM (in the main thread), JobCancelledError or JobPausedError if somebody has
    the job stopped, and another BatcherError if the workers can't go on. Finished rows are kept in any case.
    """
    summary = finalize(job)
    if summary is not None:
        return summary
    sweep_heartbeats(Path(config.home))
    watch, scope = Watch(job), job.manifest.identity
    config = replace(config, broker_url=broker.url, scope=scope, demand=_demand(job, num_workers))
    sweeper = _job_sweeper(watch, broker.url, scope=scope, sends_first=True, lease_ttl_s=config.lease_ttl_s)
    with StopSignals() as stop, sweeper:
        failures: list[str] = []
        on_loaded = _only_news(on_engines)
        supervisors = [
            Supervisor(
                each,
                on_shard_failure=failures.append,
                on_death=sweeper.on_death,
                on_loaded=on_loaded,
                spares=spares,
                log=log,
            )
            for each in _named(config, num_workers)
        ]
        try:
            for supervisor in supervisors:
                supervisor.start()
            summary = _watch(watch, supervisors, stop, sweeper=sweeper, failures=failures, on_status=on_status)
            if broker.is_ours:
                # Their messages are for a broker that ends now, too.
                supervisors = end_idle(supervisors)
            return summary
        except (JobCancelledError, JobPausedError):
            stop_all(supervisors, grace_s=config.grace_s, is_urgent=stop.is_urgent)
            supervisors = []
            # What was on its way to its commit can have been the rest.
            if summary := finalize(job):
                return summary
            raise
        finally:
            stop_all(supervisors, grace_s=config.grace_s, is_urgent=stop.is_urgent)


def wait(
    job: JobDir, broker_url: str, *, on_status: Callable[[Status], None], lease_ttl_s: float = LEASE_TTL_S
) -> Summary:
    """Wait until workers elsewhere have completed `job`, sweeping it meanwhile. Raises like `complete`; a pause is
    waited out."""
    watch = Watch(job)
    scope = scope_of(job.path.parent, store=job.store)
    sweeping = _job_sweeper(watch, broker_url, scope=scope, sends_first=False, lease_ttl_s=lease_ttl_s)
    with StopSignals() as stop, sweeping as sweeper:
        try:
            return _watch(watch, [], stop, sweeper=sweeper, failures=[], on_status=on_status)
        except BrokerError as exc:
            path = shlex.quote(str(job.path))
            raise BrokerError(
                f"{exc}. Workers go on with the shards that they hold; when the broker is back, "
                f"`batcher resume {path} --broker URL` queues the others, and `batcher status {path}` shows how they go"
            ) from exc


def run_worker(
    config: WorkerConfig, *, on_ready: Callable[[], None], metrics_at: tuple[str, int] | None = None
) -> bool:
    """Run one worker until SIGINT or SIGTERM, or until it was drained, and sweep the jobs under its jobs root.

    Returns whether it was drained.

    Call it from the main thread.

    `on_ready` is called once, when the model is loaded and the worker waits for shards. `metrics_at` are host and port
    for Prometheus, if it is to be answered. Raises BatcherError where the broker can't be reached at the start, the
    model can't be loaded, or the child keeps crashing.
    """
    connect(config.broker_url).close()
    sweep_heartbeats(Path(config.home))
    config = replace(config, scope=scope_of(Path(config.jobs_root)))
    with StopSignals() as stop, root_sweeper(config) as sweeper:
        # The child has logged why a shard could not be run; the worker has other shards to do.
        supervisor = Supervisor(config, on_shard_failure=lambda message: None, on_death=sweeper.on_death)
        with _metrics(supervisor, metrics_at):
            return _work_until_stopped(supervisor, config, sweeper, stop, on_ready=on_ready)


@contextlib.contextmanager
def _metrics(supervisor: Supervisor, at: tuple[str, int] | None) -> Iterator[None]:
    """Answer Prometheus at host and port within the block, if there is any."""
    if at is None:
        yield
        return
    from workers.process.metrics import serving_metrics

    with serving_metrics(supervisor.figures, host=at[0], port=at[1]) as url:
        logger.info("worker %s: metrics at %s", supervisor.name, url)
        yield


def _work_until_stopped(
    supervisor: Supervisor, config: WorkerConfig, sweeper: Sweeper, stop: StopSignals, *, on_ready: Callable[[], None]
) -> bool:
    """Returns whether the worker was drained."""
    try:
        supervisor.start()
        has_announced = False
        while not (stop.num_received or supervisor.is_drained):
            supervisor.poll()
            sweeper.check()
            if supervisor.is_ready and not has_announced:
                has_announced = True
                on_ready()
            time.sleep(TICK_S)
        return supervisor.is_drained
    finally:
        stop_all([supervisor], grace_s=config.grace_s, is_urgent=stop.is_urgent)


def _job_sweeper(watch: Watch, broker_url: str, *, scope: str, sends_first: bool, lease_ttl_s: float) -> Sweeper:
    connect(broker_url).close()
    job = watch.job
    send = Sender(broker_url, scope=scope)
    sweep = JobSweep(watch, broker_url, scope=scope, lease_ttl_s=lease_ttl_s)
    return Sweeper(
        sweep.tick,
        # In its thread, so that workers start meanwhile, and a broker may be away for a while.
        first=(lambda: send(job, job.pending_shards())) if sends_first else None,
        patience_s=BROKER_PATIENCE_S,
        retry_interval_s=Pace(lease_ttl_s).sweep_interval_s,
    )


def _demand(job: JobDir, num_workers: int) -> Demand:
    pending = job.pending_shards()
    num_prompts = sum(info.num_choices for info in pending if info.model is not None)
    longest = job.manifest.longest_request
    if longest is not None:
        longest += most_extra_tokens(job)
    return Demand(num_workers, num_prompts, longest)


def _named(config: WorkerConfig, num_workers: int) -> list[WorkerConfig]:
    """One configuration a worker, of its own name."""
    if num_workers == 1:
        return [config]
    return [replace(config, name=f"{config.name}-{i + 1}") for i in range(num_workers)]


def _only_news(tell: Callable[[str], None]) -> Callable[[str], None]:
    """`tell`, which is not told the same again: several workers, and those that are restarted, say what others said."""
    told: set[str] = set()

    def tell_once(text: str) -> None:
        if text not in told:
            told.add(text)
            tell(text)

    return tell_once


def _watch(
    watch: Watch,
    supervisors: list[Supervisor],
    stop: StopSignals,
    *,
    sweeper: Sweeper,
    failures: list[str],
    on_status: Callable[[Status], None],
) -> Summary:
    job = watch.job
    reader = StatusReader(job, watch=watch, reads_reasons=True)
    next_status, is_busy = 0.0, False
    while True:
        if stop.num_received:
            raise StoppedError("stopped", number=stop.number)
        for supervisor in supervisors:
            supervisor.poll()
        sweeper.check()
        if failures:
            raise BatcherError(failures[0])
        now = time.monotonic()
        was_busy, is_busy = is_busy, any(supervisor.holds_shards for supervisor in supervisors)
        # When nobody holds a shard any more, that was probably all.
        if now >= next_status or (was_busy and not is_busy):
            status = reader.read()
            if not watch.look(max_age_s=math.inf).exists:
                raise JobCancelledError(f"{job.path}: the job was deleted while it was worked on")
            on_status(status)
            next_status = max(now + STATUS_INTERVAL_S, now + STATUS_PAUSE_FACTOR * (time.monotonic() - now))
            summary = finalize(job) if status.num_committed == status.num_shards else None
            if summary is not None:
                on_status(reader.read())
                return summary
            if status.state is JobState.CANCELLED:
                raise JobCancelledError(f"{job.path}: the job was cancelled")
            if status.state is JobState.PAUSED and supervisors:
                # Who only waits for others waits until they go on.
                raise JobPausedError(f"{job.path}: the job was paused; Job.resume() or `batcher resume` has it go on")
        if supervisors and all(supervisor.is_drained for supervisor in supervisors):
            # The last commit may be younger than the last look.
            summary = finalize(job)
            if summary is not None:
                on_status(reader.read())
                return summary
            raise BatcherError(
                f"{job.path}: its workers were drained before it was complete; "
                f"`batcher resume {shlex.quote(str(job.path))}` goes on"
            )
        time.sleep(TICK_S)
