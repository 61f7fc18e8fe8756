"""The parent of a worker's Celery child: starts it, hears from it, restarts it when it dies, and ends it.

The model lives in the child, so that a crash in it (a segfault, the OOM killer) takes nothing else along. Two pipes
join them: the child's stdin brings its configuration (not the command line, which any user can read and which would
show the broker's password) and, by its end, that the parent is gone; the child's stdout brings events, one JSON object
a line. The child leads its own session: a Ctrl-C in the terminal reaches the parent alone, which decides.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from batcher.endings import describe_exit
from batcher.errors import BatcherError, ModelError, StorageError
from batcher.jobdir import attempts
from batcher.jobdir.attempts import Cause
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import STALLED_AFTER_S
from batcher.jobdir.pulse import WorkerState
from workers.process.beacon import Beacon
from workers.process.events import DRAIN_ORDER, AttemptBeat, Event, EventKind, OpenAttempt, WorkerConfig
from workers.process.figures import WorkCounts, WorkerFigures
from workers.process.launch import CHILD_COMMAND, close_child, kill_child, launch_child
from workers.process.lines import decode, encode
from workers.process.load import LoadMeter
from workers.process.loading import LoadDeaths, loading_failure
from workers.process.memory import count_oom_kills
from workers.process.stall import StallMeter, stall_limit_s

logger = logging.getLogger(f"batcher.{__name__}")

#: Deaths of a child in a row, without anything saved in between, after which there is no point in another.
MAX_CRASHES = 10
#: The same without a row completed in between. Rows that crash it are set aside meanwhile, each at the price of a death
#: or two, or more where memory is short: a long row of them is bad luck, and more than that a bad machine.
MAX_CRASHES_WITHOUT_ROW = 100
#: The same before it is ready. While the model is loaded, even the first is excused only where somebody killed it, or
#: where it has loaded before.
MAX_EARLY_CRASHES = 3
#: Seconds before the first restart; doubles with every further one in a row, to the most.
_RESTART_DELAY_S = 0.5
_MAX_RESTART_DELAY_S = 10.0

#: What nobody does to himself.
_SIGNALS_FROM_OUTSIDE = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL})

_WAIT_STEP_S = 0.05


class WorkerCrashedError(BatcherError):
    """A worker's child keeps dying."""


class Supervisor:
    """One child and its successors. Not for several threads; nothing here blocks but `stop_all`.

    `on_shard_failure` hears why a shard could not be run, or the model of some not be loaded on demand; `on_death` that
    a child died without being asked to, by the id that it had (`WorkerConfig.process`); `on_loaded` how a child has set
    up its engines, a line for each. Where there are live requests, `open_channel` is called for each child and gives
    the end of a socket that is the child's. The first child is one of `spares` where there is any (without
    `open_channel`). `log` is as for `launch_child`. `clock` is in seconds and only grows.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        on_shard_failure: Callable[[str], None],
        on_death: Callable[[str], None],
        on_loaded: Callable[[str], None] = lambda text: None,
        open_channel: Callable[[], socket.socket] | None = None,
        command: Sequence[str] = CHILD_COMMAND,
        spares: list[subprocess.Popen[bytes]] | None = None,
        log: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = config.name
        self.is_ready = False
        #: Whether it was asked to drain, and no shard is left.
        self.is_drained = False
        self._config = config
        self._on_shard_failure = on_shard_failure
        self._on_death = on_death
        self._on_loaded = on_loaded
        self._open_channel = open_channel
        self._command = command
        self._spares = spares if spares is not None else []
        self._log = log
        self._clock = clock
        self._beacon = Beacon(config, clock=clock)
        self._child: subprocess.Popen[bytes] | None = None
        self._process = ""
        self._unread = b""
        self._is_loaded = self._was_loaded = False
        self._is_stopping = self._is_draining = False
        self._open: list[OpenAttempt] = []
        self._made: tuple[AttemptBeat, ...] = ()
        self._stall = StallMeter(now=clock())
        self._stall_limit_s = stall_limit_s(0.0, config.stall_timeout_s)
        self._load = LoadMeter([name for name, _ in config.models])
        self._work = WorkCounts()
        self._killed_for = self._aborted_for = self._loading = ""
        self._load_deaths = LoadDeaths()
        self._oom_kills_at_poll = self._oom_kills_at_beat = 0
        self._num_crashes_in_a_row = 0
        self._num_crashes_without_row = 0
        self._restart_at: float | None = None

    @property
    def is_running(self) -> bool:
        """Whether a child lives."""
        return self._child is not None and self._child.poll() is None

    @property
    def holds_shards(self) -> bool:
        """Whether its child has claimed shards that it has not given back or committed, as of the last `poll`."""
        return bool(self._open)

    @property
    def state(self) -> WorkerState:
        """What the worker does now."""
        if self._is_stopping:
            return WorkerState.STOPPING
        if self._child is None:
            return WorkerState.RESTARTING
        if not self.is_ready:
            return WorkerState.LOADING
        if self._stall.stalled_s >= STALLED_AFTER_S:
            return WorkerState.STALLED
        if self._is_draining:
            return WorkerState.DRAINING
        return WorkerState.WORKING if self.holds_shards else WorkerState.IDLE

    def figures(self) -> WorkerFigures:
        """The worker in numbers. For any thread."""
        return WorkerFigures(
            name=self.name,
            state=self.state,
            stalled_s=self._stall.stalled_s if self.state is WorkerState.STALLED else 0.0,
            num_shards=len(self._open),
            num_crashes=self._beacon.num_crashes,
            loads=self._load.loads,
            tokens=self._load.tokens,
            work=self._work,
        )

    def start(self) -> None:
        """Start a child. Returns at once; `poll` sees it become ready."""
        self._restart_at = None
        self._unread = b""
        self._is_loaded = self.is_ready = False
        self._open = []
        self._killed_for = self._aborted_for = self._loading = ""
        self._oom_kills_at_poll = self._oom_kills_at_beat = count_oom_kills()
        with contextlib.ExitStack() as stack:
            self._process = uuid.uuid4().hex[:12]
            config, descriptors = replace(self._config, process=self._process), tuple[int, ...]()
            if self._open_channel is not None:
                descriptors = (stack.enter_context(self._open_channel()).fileno(),)
                config = replace(config, live_descriptor=descriptors[0])
            if self._spares:
                self._child = self._spares.pop()
            else:
                self._child = launch_child(self._command, descriptors=descriptors, log=self._log)
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        os.set_blocking(self._child.stdout.fileno(), False)
        # A child that died already is noticed by `poll`. Smaller than the pipe, so this does not wait.
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(encode(config))
            self._child.stdin.flush()

    def poll(self) -> None:
        """Hear what the child has to say and restart it where it died. Call it a few times a second.

        Raises BatcherError when this worker can't go on: its model can't be loaded, or it keeps crashing.
        """
        if self._child is not None:
            num_oom_kills = count_oom_kills()
            has_ended = self._child.poll() is not None
            for event in self._read_events():
                self._handle(event)
            if has_ended:
                self._note_death(self._child)
            elif self._is_loaded:
                self._watch_progress(self._child)
            self._oom_kills_at_poll = num_oom_kills
        elif self._restart_at is not None and self._clock() >= self._restart_at:
            self.start()
        has_shown = self.show()
        if has_shown and not self._is_draining and self._beacon.is_to_drain():
            self.drain()

    def drain(self) -> None:
        """Have the child finish its shards and take no more; `is_drained` tells when that is done.

        The child then lives on, for live requests, until it is told to end; one that dies has no successor.
        """
        self._is_draining = True
        logger.info("worker %s drains: it finishes its shards and takes no more", self.name)
        if self._child is None or not self.is_ready:
            self._end_drain()
            return
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(DRAIN_ORDER)
            self._child.stdin.flush()

    def _end_drain(self) -> None:
        self._restart_at = None
        self.is_drained = True

    def _watch_progress(self, child: subprocess.Popen[bytes]) -> None:
        """End a child whose engine does not move; `poll` notes its death."""
        stalled_s = self._stall.look(now=self._clock())
        if stalled_s > self._stall_limit_s and not (self._killed_for or self._is_stopping):
            self._killed_for = f"no progress for {stalled_s:.0f} s"
            logger.error("worker %s: %s; its process is ended", self.name, self._killed_for)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the child to save its rows and end."""
        self._restart_at = None
        self._is_stopping = True
        self.show()
        if self._child is not None and self.is_running:
            self._child.terminate()

    def show(self) -> bool:
        """Keep up the worker's sign of life; `poll` does. Returns whether it was given now."""
        return self._beacon.show(
            self.state, attempts=self._open, made=self._made, stalled_s=self._stall.stalled_s, load=self._load
        )

    def kill(self) -> None:
        """End the child at once, with whatever it may have started. Waits for it."""
        self._restart_at = None
        self._beacon.remove()
        if self._child is None:
            return
        kill_child(self._child)
        self._forget_child()

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
                yield decode(Event, line)

    def _handle(self, event: Event) -> None:
        self._work.hear(event)
        match event.kind:
            case EventKind.LOADED | EventKind.LOADING | EventKind.READY | EventKind.DRAINED:
                self._note_stage(event)
            case EventKind.BEAT:
                assert event.beat is not None
                self._stall.hear(steps=event.beat.steps, is_busy=event.beat.is_busy)
                self._stall_limit_s = stall_limit_s(event.beat.longest_step_s, self._config.stall_timeout_s)
                self._load.hear(event.beat.loads, now=self._clock())
                self._made = event.beat.attempts
                # Sent after the last poll had read all there was: the child lived through the kills until then.
                self._oom_kills_at_beat = self._oom_kills_at_poll
            case EventKind.CLAIMED:
                assert event.attempt is not None
                self._open.append(event.attempt)
            case EventKind.ENDED:
                self._open = [attempt for attempt in self._open if attempt != event.attempt]
            case EventKind.PROGRESS:
                self._num_crashes_in_a_row = self._num_crashes_without_row = 0
            case EventKind.SET_ASIDE:
                self._num_crashes_in_a_row = 0
            case EventKind.FAILED:
                self._on_shard_failure(event.message)
            case EventKind.ABORTED:
                self._aborted_for = event.message
            case EventKind.REFUSED:
                error = ModelError(event.message) if event.exit_code == ModelError.exit_code else None
                raise error or BatcherError(event.message)

    def _note_stage(self, event: Event) -> None:
        """The child came further in its life."""
        match event.kind:
            case EventKind.LOADED:
                self._is_loaded = self._was_loaded = True
                self._stall = StallMeter(now=self._clock())
                self._on_loaded(event.message)
            case EventKind.LOADING:
                self._loading = event.message
            case EventKind.READY:
                self.is_ready = True
            case EventKind.DRAINED:
                self._end_drain()

    def _note_death(self, child: subprocess.Popen[bytes]) -> None:
        """Record how a child ended by itself, and plan for the next one."""
        max_crashes = MAX_CRASHES if self.is_ready else MAX_EARLY_CRASHES
        is_computing = bool(self._open) or self._load.num_running > 0
        close_child(child)
        self._forget_child()
        cause, ending = self._explain(child.returncode)
        if self._loading and self._is_loaded:
            cause = self._judge_loading(cause, ending, is_computing=is_computing)
        # Before the leases are given back: whoever takes the shards next must know how this went.
        self._record_crash(cause, ending)
        self._beacon.note_crash(ending)
        self._on_death(self._process)
        if self._is_draining:
            logger.warning(
                "worker %s: its process died while it drained (%s); its shards go to others", self.name, ending
            )
            self._end_drain()
            return
        self._num_crashes_in_a_row += 1
        self._num_crashes_without_row += 1
        if not self._is_loaded:
            self._check_load_failure(cause, ending)
        elif self._num_crashes_in_a_row >= max_crashes or self._num_crashes_without_row >= MAX_CRASHES_WITHOUT_ROW:
            raise WorkerCrashedError(
                f"worker {self.name}: its process died {self._num_crashes_without_row} times without finishing a row "
                f"in between (the last time: {ending}); its log above may say why"
            )
        delay = min(_MAX_RESTART_DELAY_S, _RESTART_DELAY_S * 2 ** (self._num_crashes_in_a_row - 1))
        logger.warning("worker %s: its process died (%s); the next one starts in %.1f s", self.name, ending, delay)
        self._restart_at = self._clock() + delay

    def _explain(self, returncode: int) -> tuple[Cause, str]:
        """Why the child died: for the judgement over its rows, and in words."""
        if self._killed_for:
            return Cause.STALLED, self._killed_for
        ending = describe_exit(returncode)
        if self._aborted_for:
            ending = f"{ending}: {self._aborted_for}"
        if returncode == -signal.SIGKILL and count_oom_kills() > self._oom_kills_at_beat:
            return Cause.MEMORY, "killed by the kernel because memory was short"
        # An exit code is no fault of a row's either: Celery or the machine had its reason.
        is_fault = returncode < 0 and -returncode not in _SIGNALS_FROM_OUTSIDE
        return (Cause.FAULT if is_fault else Cause.KILLED), ending

    def _judge_loading(self, cause: Cause, ending: str, *, is_computing: bool) -> Cause:
        """Have no further child load the model that ended this one, if it did. Returns the cause for rows in flight."""
        death = self._load_deaths.judge(self._loading, cause, ending, is_computing=is_computing)
        message = f"worker {self.name}: {death.message}"
        if death.is_left_out:
            self._config = replace(self._config, fatal_models=(*self._config.fatal_models, self._loading))
            self._on_shard_failure(message)
        logger.log(logging.ERROR if death.is_left_out else logging.WARNING, "%s", message)
        return death.cause

    def _record_crash(self, cause: Cause, ending: str) -> None:
        for attempt in self._open:
            try:
                attempts.record_end(
                    *(JobDir(Path(attempt.job)), attempt.shard, attempt.attempt),
                    worker=self.name,
                    outcome=attempts.Outcome.CRASHED,
                    cause=cause,
                    detail=ending,
                )
            except StorageError as exc:
                # Then the attempt counts as one that vanished.
                logger.warning("%s", exc)
        self._open = []

    def _check_load_failure(self, cause: Cause, ending: str) -> None:
        """Raise ModelError unless loading the model once more could go better."""
        is_excused = cause is Cause.KILLED or self._was_loaded
        if is_excused and self._num_crashes_in_a_row < MAX_EARLY_CRASHES:
            return
        paths = dict(self._config.models)
        models = paths.get(self._loading) or ", ".join(paths.values())
        if self._aborted_for:
            raise ModelError(
                f"{models}: llama.cpp gave up while loading it: {self._aborted_for}; the file may be damaged: "
                "download or convert it again; a new kind of model needs a newer llama-cpp-python"
            )
        raise ModelError(loading_failure(models, cause, ending))

    def _forget_child(self) -> None:
        self._child = None
        self.is_ready = False
        self._stall.stalled_s = 0.0
        self._load.forget()


def end_idle(supervisors: Sequence[Supervisor]) -> list[Supervisor]:
    """End children that hold no shard, at once, as they have nothing to save. Returns those that are left."""
    busy = [supervisor for supervisor in supervisors if supervisor.holds_shards]
    for supervisor in supervisors:
        if supervisor not in busy:
            supervisor.kill()
    return busy


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
        for supervisor in supervisors:
            supervisor.show()
        time.sleep(_WAIT_STEP_S)
    for supervisor in supervisors:
        supervisor.kill()
