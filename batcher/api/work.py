"""A job is worked on: by workers of this machine, which are gone afterwards, or by those of a broker."""

import contextlib
import importlib.util
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import batcher
from batcher.api.engines import needed_extras, take_engine_options
from batcher.api.fleet import find_elsewhere_with
from batcher.api.order import reopen
from batcher.api.progress import showing
from batcher.errors import InputError, JobCancelledError, JobError, MissingPackageError
from batcher.installation import check_installed
from batcher.jobdir.folder import JobDir
from batcher.manage.finish import finalize
from batcher.manage.resume import resume
from batcher.manage.status import JobState, Status, StatusReader
from batcher.words import counted

if TYPE_CHECKING:
    import subprocess

    from workers.local import JobBroker
    from workers.process.events import WorkerConfig

logger = logging.getLogger(__name__)

#: Seconds between two looks at a job that others work on.
LOOK_INTERVAL_S = 1.0

_runs = itertools.count(1)


def find_broker(broker: str | None) -> str | None:
    """The URL that was given, or that of the environment, as for the command line. Raises InputError."""
    from batcher.broker.url import read_url_file

    if broker is not None:
        return broker
    url, file = os.environ.get("BATCHER_BROKER"), os.environ.get("BATCHER_BROKER_FILE")
    if url and file:
        raise InputError("BATCHER_BROKER and BATCHER_BROKER_FILE are both given; leave out one")
    return read_url_file(Path(file)) if file else url or None


@dataclass(frozen=True, slots=True)
class Crew:
    """Processes of this machine that will work on a job: launched, and not yet told on what."""

    num_workers: int
    log: int
    spares: "list[subprocess.Popen[bytes]]"

    def complete(self, job: JobDir, config: "WorkerConfig", broker: "JobBroker", *, progress: bool) -> None:
        """Complete the job, blocking. Raises as `workers.local.complete`."""
        from workers.local import complete

        # Several runs of one process at a time are several workers.
        number = next(_runs)
        config = replace(config, name=config.name if number == 1 else f"{config.name}.{number}")
        with showing(progress) as on_status:
            complete(
                *(job, config),
                num_workers=self.num_workers,
                broker=broker,
                spares=self.spares,
                on_status=on_status,
                on_engines=lambda text: logger.info("engine %s", text),
                log=self.log,
            )


@contextlib.contextmanager
def crew(function: str, num_workers: int, *, broker: str | None, is_remote: bool) -> Iterator[Crew]:
    """Launch the workers' processes first of all: they get ready while this one does. None of them is left.

    Raises MissingPackageError where something is not installed that they need; see also `signals_passed_on`.
    """
    if not isinstance(num_workers, int):
        raise InputError(f"workers is {num_workers!r}: give a whole number")
    if num_workers < 1:
        raise InputError(f"workers is {num_workers}: there must be one at least")
    check_installed(function, *needed_extras(broker, is_remote=is_remote))
    _check_package()
    from workers.process.launch import spare_children
    from workers.process.logs import ChildLog

    with signals_passed_on(), ChildLog() as log, spare_children(num_workers, log=log.descriptor) as spares:
        yield Crew(num_workers, log.descriptor, spares)


@contextlib.contextmanager
def signals_passed_on() -> Iterator[None]:
    """A signal by which work or waiting was stopped, in good order, goes on to the handler that the caller has for it.

    So Ctrl-C is a KeyboardInterrupt.
    """
    from workers.local import StoppedError

    number = None
    try:
        yield
    except StoppedError as exc:
        number = exc.number
    if number is not None:
        signal.raise_signal(number)
        raise KeyboardInterrupt


def resume_here(
    job: JobDir, models: Sequence[str], *, num_workers: int, progress: bool, options: Mapping[str, Any]
) -> None:
    """Complete the job with workers of this machine; what is finished is kept."""
    with (
        crew("resume", num_workers, broker=None, is_remote="engine" in options) as workers,
        reopen(job, models, take_engine_options(dict(options)), quiet=is_quiet()) as reopened,
    ):
        if reopened.config is not None:
            workers.complete(job, reopened.config, reopened.broker, progress=progress)


def resume_elsewhere(job: JobDir, broker: str) -> None:
    """Send what is unfinished to the workers of a broker."""
    from batcher.broker.sender import sending

    with sending(broker) as send:
        resume(job, send=send)
    warn_of_unserved(job, StatusReader(job).read(), broker=broker)


def check_here(job: JobDir) -> None:
    """Raise JobError where the job was deleted, moved or made anew since its manifest was read."""
    if not job.is_here():
        raise JobError(f"{job.path}: no job here any more: it was deleted, moved, or made anew")


def wait_for(job: JobDir, broker: str | None, *, progress: bool, timeout_s: float | None) -> None:
    """Block until the job is complete; with its broker, lost shards are sent again meanwhile."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s

    with showing(progress) as show:

        def on_status(status: Status) -> None:
            check_here(job)
            show(status)
            if deadline is not None and time.monotonic() >= deadline and not status.is_complete:
                done = f"{status.num_done:,} of {counted(status.num_rows, 'row')}"
                raise TimeoutError(f"{job.path}: not complete after {timeout_s:g} s ({done})")

        # Its own, as others may ask for the status meanwhile.
        reader = StatusReader(job, reads_reasons=progress)
        warn_of_unserved(job, reader.read(), broker=broker)
        if broker is None:
            _look_on(job, reader, on_status)
        else:
            _sweep_on(job, broker, on_status)


def _look_on(job: JobDir, reader: StatusReader, on_status: Callable[[Status], None]) -> None:
    while finalize(job) is None:
        status = reader.read()
        on_status(status)
        if status.state is JobState.CANCELLED:
            raise JobCancelledError(f"{job.path}: the job was cancelled; resume() takes it up again")
        time.sleep(LOOK_INTERVAL_S)
    on_status(reader.read())


def _sweep_on(job: JobDir, broker: str, on_status: Callable[[Status], None]) -> None:
    from workers.local import wait

    with signals_passed_on():
        wait(job, broker, on_status=on_status)


def warn_of_unserved(job: JobDir, status: Status, *, broker: str | None) -> None:
    """Log which rows wait for a model that no worker has, and who has it in another jobs folder."""
    for model, num_rows in status.unserved_models.items():
        logger.warning(
            "%s: %d rows wait for the model %s, and no worker is alive that has it", *(status.job_id, num_rows, model)
        )
        for worker in find_elsewhere_with(model, job.path.absolute().parent, broker) if broker is not None else ():
            logger.warning("%s on %s has it, and works in %s", worker.name, worker.host, worker.folder)


def is_quiet() -> bool:
    """Whether nobody would see more than the warnings of workers."""
    return not logger.isEnabledFor(logging.INFO)


def _check_package() -> None:
    """Raise MissingPackageError where somebody's own `workers`, beside his script, hides ours."""
    spec = importlib.util.find_spec("workers")
    ours = Path(batcher.__file__).parents[1] / "workers"
    if spec is None or spec.origin is None or Path(spec.origin).resolve().parent != ours.resolve():
        found = None if spec is None else spec.origin
        raise MissingPackageError(
            f"the package `workers` of Batcher is hidden by {found}; rename that, or start Python in another folder"
        )
