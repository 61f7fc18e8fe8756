"""The parent of a worker's Celery child: starts it, hears from it, restarts it when it dies, and ends it.

The model lives in the child, so that a crash in it (a segfault, the OOM killer) takes nothing else along. Two pipes
join them: the child's stdin brings its configuration (not the command line, which any user can read and which would
show the broker's password) and, by its end, that the parent is gone; the child's stdout brings events, one JSON object
a line. The child leads its own session: a Ctrl-C in the terminal reaches the parent alone, which decides.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from batcher.errors import BatcherError, ModelError

logger = logging.getLogger(__name__)

#: Deaths of a child in a row, without a row saved in between, after which there is no point in another one.
MAX_CRASHES = 3
#: Seconds before the first restart; doubles with every further one in a row.
_RESTART_DELAY_S = 0.5

_WAIT_STEP_S = 0.05

#: -P: without it, a `workers` in the user's working directory would be taken for ours.
CHILD_COMMAND = (sys.executable, "-P", "-m", "workers.child")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a child needs to know. Travels as JSON. `models` are pairs of name and path; None: the engine chooses.

    `grace_s` are the seconds it gets to save its rows and give back its shards. `name` stands in the `worker` column of
    the results. `quiet` leaves only warnings in the log.
    """

    name: str
    models: tuple[tuple[str, str], ...]
    broker_url: str
    jobs_root: str
    grace_s: float
    num_slots: int | None = None
    num_threads: int | None = None
    num_gpu_layers: int | None = None
    context_length: int | None = None
    quiet: bool = False

    def to_json(self) -> bytes:
        """One line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> "WorkerConfig":
        values = json.loads(data)
        values["models"] = tuple((name, path) for name, path in values["models"])
        return cls(**values)


class EventKind(StrEnum):
    """What a child tells its parent, in order of its life: `LOADED` comes once, or `REFUSED` instead of it."""

    LOADED = "loaded"  # the models are in memory
    READY = "ready"  # connected to the broker and waiting for shards
    PROGRESS = "progress"  # rows were saved
    FAILED = "failed"  # a shard can't be run; the message says why
    REFUSED = "refused"  # the child can't work at all; the message says why


@dataclass(frozen=True, slots=True)
class Event:
    """One line from a child. `exit_code` is the CLI's for the message."""

    kind: EventKind
    message: str = ""
    exit_code: int = BatcherError.exit_code

    def to_json(self) -> bytes:
        """One line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes) -> "Event":
        values = json.loads(data)
        return cls(EventKind(values["kind"]), values["message"], values["exit_code"])


class WorkerCrashedError(BatcherError):
    """A worker's child keeps dying."""


class Supervisor:
    """One child and its successors. Not for several threads; nothing here blocks but `stop_all`.

    `on_shard_failure` hears why a shard could not be run, `on_death` that a child died without being asked to (its name
    is gone with it until the next one starts). `clock` is in seconds and only grows.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        on_shard_failure: Callable[[str], None],
        on_death: Callable[[str], None],
        command: Sequence[str] = CHILD_COMMAND,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = config.name
        self.is_ready = False
        self._config = config
        self._on_shard_failure = on_shard_failure
        self._on_death = on_death
        self._command = command
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._is_loaded = False
        self._num_crashes = 0
        self._restart_at: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether a child lives."""
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Start a child. Returns at once; `poll` sees it become ready."""
        self._restart_at = None
        self._unread = b""
        self._is_loaded = self.is_ready = False
        self._child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        # A child that died already is noticed by `poll`. Smaller than the pipe, so this does not wait.
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(self._config.to_json())
            self._child.stdin.flush()

    def poll(self) -> None:
        """Hear what the child has to say and restart it where it died. Call it a few times a second.

        Raises BatcherError when this worker can't go on: its model can't be loaded, or it keeps crashing.
        """
        if self._child is not None:
            has_ended = self._child.poll() is not None
            for event in self._read_events():
                self._handle(event)
            if has_ended:
                self._bury(self._child)
        elif self._restart_at is not None and self._clock() >= self._restart_at:
            self.start()

    def terminate(self) -> None:
        """Ask the child to save its rows and end."""
        self._restart_at = None
        if self._child is not None and self.is_running:
            self._child.terminate()

    def kill(self) -> None:
        """End the child at once, with whatever it may have started. Waits for it."""
        self._restart_at = None
        if self._child is None:
            return
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        self._close(self._child)

    def _read_events(self) -> Iterator[Event]:
        assert self._child is not None
        assert self._child.stdout is not None
        while True:
            try:
                data = os.read(self._child.stdout.fileno(), 65536)
            except BlockingIOError:
                return
            if not data:
                return
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                yield Event.from_json(line)

    def _handle(self, event: Event) -> None:
        match event.kind:
            case EventKind.LOADED:
                self._is_loaded = True
            case EventKind.READY:
                self.is_ready = True
            case EventKind.PROGRESS:
                self._num_crashes = 0
            case EventKind.FAILED:
                self._on_shard_failure(event.message)
            case EventKind.REFUSED:
                error = ModelError(event.message) if event.exit_code == ModelError.exit_code else None
                raise error or BatcherError(event.message)

    def _bury(self, child: subprocess.Popen[bytes]) -> None:
        """Take leave of a child that ended by itself, and plan for the next one."""
        self._close(child)
        self._on_death(self.name)
        ending = describe_exit(child.returncode)
        if not self._is_loaded:
            models = ", ".join(path for _, path in self._config.models)
            raise ModelError(
                f"{models}: the worker died while loading it ({ending}); the file may be damaged, or the memory short: "
                "try fewer --slots or a smaller --ctx"
            )
        self._num_crashes += 1
        if self._num_crashes >= MAX_CRASHES:
            raise WorkerCrashedError(
                f"worker {self.name}: its process died {self._num_crashes} times without finishing a row in between "
                f"(the last time: {ending}); its log above may say why"
            )
        delay = _RESTART_DELAY_S * 2 ** (self._num_crashes - 1)
        logger.warning("worker %s: its process died (%s); the next one starts in %.1f s", self.name, ending, delay)
        self._restart_at = self._clock() + delay

    def _close(self, child: subprocess.Popen[bytes]) -> None:
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._child = None
        self.is_ready = False


def stop_all(
    supervisors: Sequence[Supervisor], *, grace_s: float, is_urgent: Callable[[], bool] = lambda: False
) -> None:
    """End all children, blocking for `grace_s` at most: first they are asked, then killed. None is left.

    `is_urgent` is asked several times a second; once it is true, there is no more waiting.
    """
    deadline = time.monotonic() + grace_s
    for supervisor in supervisors:
        supervisor.terminate()
    while any(s.is_running for s in supervisors) and time.monotonic() < deadline and not is_urgent():
        time.sleep(_WAIT_STEP_S)
    for supervisor in supervisors:
        supervisor.kill()


def describe_exit(returncode: int) -> str:
    """How a process ended, in words: `exit code 1`, `signal SIGSEGV`."""
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return f"signal {signal.Signals(-returncode).name}"
    except ValueError:
        return f"signal {-returncode}"
