"""The Celery child of a worker: loads the models, then runs shards until it is told to stop.

Started by `launch` as `python -m workers.child`; stdin and stdout are pipes to its parent, the supervisor. The order
of the shutdown: SIGTERM (or the end of stdin, when the parent died) has Celery take no more messages and sets
`stopping`; the runners cancel their sequences, save their rows, release their leases and reject their messages back
to the queue; then Celery's pool is empty and its loop ends, and last the engines, which nobody uses any more, are
closed.
"""

import contextlib
import importlib
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batcher.errors import BatcherError, EngineError, ModelError
from batcher.heap import GIVE_BACK_INTERVAL_S, give_memory_back
from batcher.startup import start_fast
from workers.process.events import (
    DRAIN_ORDER,
    Beat,
    EngineLoad,
    Event,
    EventKind,
    OpenAttempt,
    SavedRows,
    WorkerConfig,
)
from workers.process.figures import FAILED
from workers.process.lines import decode, encode
from workers.process.logs import set_up_logging
from workers.queue.draining import Draining

if TYPE_CHECKING:
    from batcher.jobdir.folder import JobDir
    from batcher.jobdir.results import Counts
    from workers.engines.base import Engine
    from workers.engines.pool import CountWaiting, EnginePool
    from workers.shard.context import WorkerContext
    from workers.shard.progress import Board

# Not __name__, which is `__main__` here, and so none of those that `set_up_logging` lets speak.
logger = logging.getLogger("batcher.workers.child")

EXIT_REFUSED = 3
#: Of -1000 to 1000; as if it had half of the machine's memory more than it has.
_OOM_SCORE_ADJ = "500"
#: Seconds between two beats.
BEAT_INTERVAL_S = 1.0
#: The engine failed, so the process is of no use; the supervisor starts another.
EXIT_ENGINE_FAILED = 70
#: The largest of those that the work needs; each brings many more.
NEEDED_MODULES = (
    "workers.engines.llama.loader",
    "workers.engines.open",
    "workers.engines.pool",
    "workers.engines.profile",
    "workers.queue.tasks",
    "workers.queue.consumer",
    "batcher.manage.finish",
    "celery.apps.worker",
    "celery.app.log",
    "celery.concurrency.thread",
    "celery.fixups.django",
    "celery.worker.autoscale",
    "celery.worker.strategy",
    "kombu.transport.redis",
)


class Reporter:
    """Sends events to the parent. For all threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, event: Event) -> None:
        """Write one line. A parent that is gone is noticed by the end of stdin, not here."""
        try:
            with self._lock:
                os.write(self._descriptor, encode(event))
        except BrokenPipeError:
            pass

    def on_abort(self, message: str) -> None:
        """Tell why an engine is just about to end the process."""
        self.send(Event(EventKind.ABORTED, message))


def main() -> int:
    """Run the child. Returns its exit code."""
    start_fast()
    reporter = Reporter(_take_over_stdout())
    _go_first()
    # What can't be imported and is needed fails again below, where the parent listens.
    with contextlib.suppress(BatcherError, ImportError):
        _import_until_config_comes()
    config = decode(WorkerConfig, _read_line(0))
    draining = Draining(lambda: reporter.send(Event(EventKind.DRAINED)))
    threading.Thread(target=_obey_parent, args=(config.grace_s, draining), name="parent-watch", daemon=True).start()
    set_up_logging(config.name, config.log, broker_url=config.broker_url)
    try:
        return _work(config, reporter, draining)
    except BatcherError as exc:
        reporter.send(Event(EventKind.REFUSED, str(exc), exc.exit_code))
        return EXIT_REFUSED


def _work(config: WorkerConfig, reporter: Reporter, draining: Draining) -> int:
    open_pool = _open_rotating if config.is_loading_on_demand else _open_all
    from workers.shard.progress import Board

    engines, setup = open_pool(config, reporter)
    reporter.send(Event(EventKind.LOADED, setup))
    board = Board()
    threading.Thread(target=_beat, args=(engines, board, reporter), name="beat", daemon=True).start()
    failures = EngineFailures()
    if config.live_descriptor is not None:
        _answer_live(config.live_descriptor, engines, reporter, failures)
    try:
        if config.takes_shards:
            exit_code = _take_shards(config, engines, board, reporter, failures, draining)
        else:
            exit_code = _wait_for_stop(reporter)
        return EXIT_ENGINE_FAILED if failures.has_any else exit_code
    finally:
        engines.close()


def _open_all(config: WorkerConfig, reporter: Reporter) -> "tuple[EnginePool, str]":
    """All models in memory, ready to compute, and how they were set up."""
    from workers.engines.open import load_engines
    from workers.engines.pool import EnginePool

    for name, _ in config.models:
        _verify(name, config)
    loaded = load_engines(
        *(config.models, config.engine, config.demand),
        adapters=config.adapters,
        on_abort=reporter.on_abort,
        on_load=lambda name: reporter.send(Event(EventKind.LOADING, name)),
    )
    for each in loaded:
        each.engine.start()
    reporter.send(Event(EventKind.LOADING))
    return EnginePool({each.engine.name: each.engine for each in loaded}), "\n".join(each.setup for each in loaded)


def _open_rotating(config: WorkerConfig, reporter: Reporter) -> "tuple[EnginePool, str]":
    """Models that are loaded when somebody waits for them; none is yet."""
    from workers.engines.open import EngineLoader
    from workers.engines.pool import RotatingPool

    loader = EngineLoader(
        config.models, config.engine, config.demand, adapters=config.adapters, on_abort=reporter.on_abort
    )

    def load(name: str) -> "Engine":
        # What ends the process meanwhile is the model's fault.
        reporter.send(Event(EventKind.LOADING, name))
        try:
            _verify(name, config)
            engine = loader.load(name).engine
            try:
                engine.start()
            except ModelError:
                engine.close()
                raise
            return engine
        finally:
            reporter.send(Event(EventKind.LOADING))

    def has_room(name: str, beside: "Mapping[str, Engine]") -> bool:
        fits = loader.has_room(name, beside=beside)
        return fits if config.max_loaded is None else len(beside) < config.max_loaded

    names = tuple(name for name, _ in config.models)
    pool = RotatingPool(
        names,
        load=load,
        has_room=has_room,
        usual_slots=loader.usual_slots,
        fatal=config.fatal_models,
        count_waiting=_waiting_counter(names, config) if config.takes_shards else dict,
        on_failure=lambda exc: reporter.send(Event(EventKind.FAILED, str(exc), exc.exit_code)),
    )
    pool.start()
    room = "as many as memory has room for" if config.max_loaded is None else f"{config.max_loaded} at a time"
    return pool, f"{len(names)} models, each loaded when it is wanted, {room}: {', '.join(names)}"


def _waiting_counter(names: Sequence[str], config: WorkerConfig) -> "CountWaiting":
    from batcher.broker.client import count_waiting, open_client

    client = open_client(config.broker_url)
    return lambda: count_waiting(client, names, scope=config.scope)


def _verify(name: str, config: WorkerConfig) -> None:
    from batcher.model_files import verify_sha256

    if digest := dict(config.model_sha256).get(name):
        verify_sha256(Path(dict(config.models)[name]), digest)


class EngineFailures:
    """Ends the process, in good order, when an engine has died: it is of no use then. For all threads."""

    def __init__(self) -> None:
        self.has_any = False

    def note(self, exc: EngineError) -> None:
        if not self.has_any:
            logger.error("%s; the process ends, its finished rows are saved", exc)
        self.has_any = True
        _stop()


def _answer_live(descriptor: int, engines: "EnginePool", reporter: Reporter, failures: EngineFailures) -> None:
    from workers.live.engine_end import LiveRequests

    LiveRequests(
        socket.socket(fileno=descriptor),
        engines,
        # So that a server whose process dies now and then, but answers in between, is not given up.
        on_answered=lambda: reporter.send(Event(EventKind.PROGRESS)),
        on_engine_failure=failures.note,
        on_end=_stop,
    ).start()


def _wait_for_stop(reporter: Reporter) -> int:
    """Let live requests be answered until SIGTERM comes."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    reporter.send(Event(EventKind.READY))
    stopping.wait()
    return 0


def _beat(engines: "EnginePool", board: "Board", reporter: Reporter) -> None:
    """Tell the parent every second how far the engines and attempts are, as long as the process lives."""
    given_back_at = time.monotonic()
    while True:
        loaded = engines.loaded()
        # Of each model, so that the parent can compare: one that is not loaded has nothing to do.
        each = [loaded.get(name) for name in engines.names]
        steps = tuple(engine.num_steps if engine else 0 for engine in each)
        is_busy = tuple(engine is not None and engine.is_busy for engine in each)
        longest_step_s = max((engine.longest_step_s for engine in loaded.values()), default=0.0)
        loads = tuple(_load_of(engine) if engine else None for engine in each)
        reporter.send(Event(EventKind.BEAT, beat=Beat(steps, is_busy, longest_step_s, loads, board.look())))
        if time.monotonic() >= given_back_at + GIVE_BACK_INTERVAL_S:
            give_memory_back()
            given_back_at = time.monotonic()
        time.sleep(BEAT_INTERVAL_S)


def _load_of(engine: "Engine") -> EngineLoad:
    stats = engine.stats()
    return EngineLoad(*(getattr(stats, field.name) for field in fields(EngineLoad)))


def _keep_logging(**_: Any) -> None:
    """A receiver of Celery's signal, which else sets up a logging of its own."""


def _take_shards(
    config: WorkerConfig,
    engines: "EnginePool",
    board: "Board",
    reporter: Reporter,
    failures: EngineFailures,
    draining: Draining,
) -> int:
    from celery import signals
    from celery.exceptions import SecurityWarning

    from batcher.broker.client import queue_name
    from batcher.broker.sender import Sender
    from workers.queue.app import WORKER_OPTIONS, concurrency, make_celery
    from workers.queue.tasks import OpenJobs, ShardWork, register
    from workers.queue.transport import IS_OPEN

    # Set in a signal handler, which runs in the main thread: safe, as that thread never waits on it.
    stopping = threading.Event()

    def on_stop(**_: Any) -> None:
        stopping.set()

    def on_ready(**_: Any) -> None:
        reporter.send(Event(EventKind.READY))

    models = {queue_name(name, scope=config.scope): name for name in engines.names}

    def is_open(queue: str) -> bool:
        return not draining.has_begun and engines.takes_shards(models[queue])

    app = make_celery(config.broker_url, **{IS_OPEN: is_open})
    work = ShardWork(
        jobs=OpenJobs(Path(config.jobs_root)),
        engines=engines,
        context=_worker_context(config, board, reporter, stopping),
        draining=draining,
        sender=Sender(config.broker_url, scope=config.scope),
        on_failure=partial(_report_failure, reporter),
        on_engine_failure=failures.note,
        on_outcome=lambda outcome: reporter.send(Event(EventKind.RAN, outcome.value)),
    )
    register(app, work)
    # Celery keeps weak references to receivers; these two live as long as this call, which is as long as the worker.
    signals.setup_logging.connect(_keep_logging)
    # "You're running the worker with superuser privileges" is about pickled messages; we accept only JSON.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signals.worker_shutting_down.connect(on_stop)
    signals.worker_ready.connect(on_ready)
    num_shards = concurrency(engines.most_slots)
    worker = app.Worker(
        hostname=f"batcher@{config.name}", queues=list(models), concurrency=num_shards, **WORKER_OPTIONS
    )
    worker.start()
    return int(worker.exitcode or 0)


def _report_failure(reporter: Reporter, job_id: str, shard: int, exc: BatcherError) -> None:
    message = f"shard {shard} of {job_id}: {exc}"
    logger.error("%s", message)
    reporter.send(Event(EventKind.RAN, FAILED))
    reporter.send(Event(EventKind.FAILED, message, exc.exit_code))


def _worker_context(
    config: WorkerConfig, board: "Board", reporter: Reporter, stopping: threading.Event
) -> "WorkerContext":
    from batcher.broker.client import open_client
    from batcher.broker.leases import BackgroundLeases
    from batcher.manage.finish import finalize
    from workers.shard.context import WorkerContext
    from workers.shard.validators import ValidatorRef

    def on_rows(rows: "Counts") -> None:
        reporter.send(Event(EventKind.SAVED, saved=SavedRows(rows.num_ok, tuple(rows.error_codes.items()))))

    def on_attempt(kind: EventKind, job: "JobDir", shard: int, attempt: int) -> None:
        reporter.send(Event(kind, attempt=OpenAttempt(str(job.path), shard, attempt)))

    return WorkerContext(
        worker=config.name,
        process=config.process,
        leases=BackgroundLeases(open_client(config.broker_url), ttl_s=config.lease_ttl_s),
        stopping=stopping,
        on_claim=partial(on_attempt, EventKind.CLAIMED),
        on_end=partial(on_attempt, EventKind.ENDED),
        on_progress=lambda: reporter.send(Event(EventKind.PROGRESS)),
        on_set_aside=lambda: reporter.send(Event(EventKind.SET_ASIDE)),
        on_commit=finalize,
        on_rows=on_rows,
        stall_timeout_s=config.stall_timeout_s,
        row_timeout_s=config.row_timeout_s,
        validators=tuple(ValidatorRef(name, folder) for name, folder in config.validators),
        board=board,
    )


def _take_over_stdout() -> int:
    """Keep the pipe to the parent for events, and give whatever else prints a place where it harms nobody."""
    descriptor = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    return descriptor


def _go_first() -> None:
    """Have the kernel take this process when memory is short, rather than its parent, the broker or the user's own."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ)


def _import_until_config_comes() -> None:
    """Import what the functions below would import one by one, as long as the parent has other work to do."""
    for name in NEEDED_MODULES:
        if select.select([0], [], [], 0)[0]:
            break
        importlib.import_module(name)


def _read_line(descriptor: int) -> bytes:
    """Read up to a newline, not a byte further and past Python's buffer: another thread goes on reading."""
    line = b""
    while not line.endswith(b"\n"):
        data = os.read(descriptor, 1)
        if not data:
            sys.exit(EXIT_REFUSED)
        line += data
    return line


def _obey_parent(grace_s: float, draining: Draining) -> None:
    """Drain when the parent says so. Its end is that of stdin: then stop this process within `grace_s` seconds."""
    while os.read(0, len(DRAIN_ORDER)):
        # There is no other order.
        draining.begin()
    _stop()
    time.sleep(grace_s)
    os._exit(1)


def _stop() -> None:
    """Begin the shutdown; to do so again changes nothing."""
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # All that was to be given back or closed is. The interpreter's own end, of no use to anybody, takes half a second.
    os._exit(code)
