"""The cluster that chaos is done to: a broker, workers and a submitter, each a real process.

Everything that dies is started again, as a service manager would; what freezes is thawed. Linux only: it reads /proc.
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batcher.broker.client import KEY_PREFIX
from batcher.broker.embedded import find_server
from batcher.errors import JobBusyError
from batcher.jobdir.drains import ask_to_drain
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import read_heartbeats
from batcher.jobdir.standing import Standing
from batcher.manage.pause import PauseResult, pause
from batcher.manage.prioritize import prioritize
from batcher.types import PRIORITIES
from tests.chaos.audit import Witness
from tests.chaos.faults import (
    BROKER_FREEZE_S,
    FREEZE_S,
    ON_CHUNKS,
    ON_WORKERS,
    OUTAGE_S,
    PAUSE_S,
    Fault,
    FaultKind,
)
from tests.support.family import Command, Family
from tests.support.redis_server import free_port

MODEL = "tiny"
#: Tokens of a prompt and its completion together; the most that a row asks for leaves room for the prompt.
CONTEXT_LENGTH = 1024
SHARD_ROWS = 50
SLOTS = 16

#: Seconds after which a process that ended is started again.
_RESTART_PAUSE_S = 0.5
#: Seconds. Grace is 8 by default, and a broker that hangs costs one more timeout.
STOP_LIMIT_S = 30.0
_MAX_BROKER_STARTS = 20
#: Seconds between two tries to have a paused job go on.
RESUME_INTERVAL_S = 3.0


class Broker:
    """A server of the Redis protocol on one port of the loopback, with an append-only file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self.process: subprocess.Popen[bytes] | None = None
        self._starts_at = 0.0
        self._num_failed = 0

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        # fmt: off
        options = {
            "--port": self._port, "--bind": "127.0.0.1", "--dir": self._folder, "--logfile": self._folder / "log",
            "--save": "", "--appendonly": "yes", "--appendfsync": "everysec", "--maxmemory-policy": "noeviction",
            "--set-proc-title": "no",  # it would write over the environment, by which a stray one is found
        }
        # fmt: on
        arguments = [str(text) for pair in options.items() for text in pair]
        self.process = subprocess.Popen(
            [find_server(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait_until_ready(self, timeout_s: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self.client().ping()
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return

    def client(self) -> redis.Redis:
        """One that does not wait long."""
        return redis.Redis(port=self._port, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))

    def kill(self, *, outage_s: float, is_file_lost: bool) -> bool:
        """Kill it and be without it for `outage_s`. False: it is away already."""
        if self.process is None:
            return False
        self.close()
        if is_file_lost:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._starts_at = time.monotonic() + outage_s
        return True

    def poll(self) -> None:
        """Start it again when its time has come."""
        if self.process is not None and self.process.poll() is not None:
            # It could not take its port: somebody's old connection to it may not be quite gone.
            self._num_failed += 1
            if self._num_failed > _MAX_BROKER_STARTS:
                raise RuntimeError(f"the broker does not start: {(self._folder / 'log').read_text()[-1000:]}")
            self.process = None
            self._starts_at = time.monotonic() + _RESTART_PAUSE_S
        if self.process is None and time.monotonic() >= self._starts_at:
            self.start()

    def close(self) -> None:
        """End it for good."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@dataclass(slots=True)
class Worker:
    """A place for a worker, which has the same name in every life."""

    name: str
    command: Command | None = None
    starts_at: float = 0.0
    #: When it must have ended, after it was asked to. Freezing it puts this off.
    must_end_by: float | None = None
    is_end_expected: bool = False
    #: It was asked to drain, and nobody has killed it since.
    is_draining: bool = False


@dataclass(slots=True)
class _Frozen:
    """A stopped process. `born` is its start time as the kernel gives it, so that no other is taken for it."""

    pid: int
    born: str
    thaws_at: float


class Submitter:
    """Submits a job, and then waits for it, as often as it takes; a new kind of waiter after each one's end."""

    def __init__(self, family: Family, job: JobDir, source: Path, *, options: tuple[object, ...], seed: str) -> None:
        self._family = family
        self._job = job
        self._rng = random.Random(seed)
        jobs_dir = ("--jobs-dir", job.path.parent)
        what = ("--job-id", job.job_id, "--model", MODEL, "--shard-rows", SHARD_ROWS)
        self._submit: tuple[object, ...] = ("submit", source, *what, *jobs_dir, *options)
        self._resume: tuple[object, ...] = ("resume", job.job_id, *jobs_dir, *options)
        waiters: list[tuple[object, ...]] = [
            (*self._submit, "--wait"),
            self._resume,
            ("status", job.job_id, "--watch", *jobs_dir),
        ]
        self._rng.shuffle(waiters)
        self._waiters = itertools.cycle(waiters)
        self._arguments = self._submit
        self._command: Command | None = None
        self._starts_at = 0.0
        self._dies_at = 0.0
        #: When a pause is to end, by `resume`.
        self._resumes_at: float | None = None
        self.num_killed_midway = 0
        self.has_submitted = False
        self.problems: list[str] = []

    def poll(self) -> None:
        """Start what is to run next. The first submits are killed on their way, at times that the seed gives."""
        now = time.monotonic()
        if self._resumes_at is not None and now >= self._resumes_at:
            if not self._job.is_paused:
                # Another command of ours took it up, or it was completed.
                self._resumes_at = None
            elif self.has_submitted and self._arguments is not self._resume:
                # It may be one that waits the pause out. A submit does not, and has to end before any `resume`.
                self.kill()
        if self._command is None:
            if now >= self._starts_at:
                self._arguments = self._next()
                self._command = self._family.start(*self._arguments)
                # It takes about a second, so some of these come too late.
                self._dies_at = now + self._rng.uniform(0.2, 1.5)
        elif self._command.process.poll() is not None:
            self._bury(self._command)
        elif not self.has_submitted and self.num_killed_midway < 2 and now >= self._dies_at:
            self.kill()
            self.num_killed_midway += 1

    def _next(self) -> tuple[object, ...]:
        if not self.has_submitted:
            return self._submit
        if self._resumes_at is None or time.monotonic() < self._resumes_at:
            return next(self._waiters)
        # Until it has worked: the broker may be away.
        self._resumes_at = time.monotonic() + RESUME_INTERVAL_S
        return self._resume

    def pause(self, duration_s: float) -> str | None:
        """Pause the job and have it go on after `duration_s`, or earlier by a command that takes it up. Returns what
        was done."""
        if not self._job.exists() or pause(self._job) is not PauseResult.PAUSED:
            return None
        self._resumes_at = time.monotonic() + duration_s
        return f"{self._job.job_id} for {duration_s:.1f} s"

    def end_pause(self) -> None:
        """Have the job go on now, if it is paused."""
        if self._resumes_at is not None:
            self._resumes_at = 0.0

    def kill(self) -> str | None:
        """Kill what runs now. Returns what it was."""
        if self._command is None or self._command.process.poll() is not None:
            return None
        self._command.process.kill()
        self._command.wait()
        self._command, self._starts_at = None, time.monotonic() + _RESTART_PAUSE_S
        return f"batcher {self._arguments[0]}{' --wait' if '--wait' in self._arguments else ''}"

    def _bury(self, command: Command) -> None:
        code = command.process.returncode
        # 3 is what a command says that can't reach the broker.
        if code not in (0, 1, 3):
            self.problems.append(
                f"{self._job.job_id}: batcher {self._arguments[0]} ended with {code}: {_last(command)}"
            )
        if code in (0, 1):
            if "--wait" in self._arguments and not self._job.is_complete:
                self.problems.append(f"{self._job.job_id}: submit --wait came back before the job was complete")
            self.has_submitted = True
        self._command, self._starts_at = None, time.monotonic() + 2 * _RESTART_PAUSE_S


class Cluster:
    """All processes but the bench's own. `inject` does a fault to them; `poll`, a few times a second, mends."""

    def __init__(self, family: Family, broker: Broker, *, jobs_dir: Path, model: Path, num_workers: int) -> None:
        self.broker = broker
        self.workers = [Worker(f"w{number + 1}") for number in range(num_workers)]
        self.problems: list[str] = []
        #: Why workers ended that nobody had killed or asked to.
        self.gave_up: list[str] = []
        self._family = family
        self._jobs_dir = jobs_dir
        self._frozen: list[_Frozen] = []
        where = ("--broker", broker.url, "--jobs-dir", jobs_dir)
        engine = ("--model", f"{MODEL}={model}", "--threads", 1, "--slots", SLOTS, "--ctx", CONTEXT_LENGTH)
        self._options: tuple[object, ...] = (*where, *engine)

    def poll(self) -> None:
        """Thaw, notice the dead, start again."""
        now = time.monotonic()
        for frozen in [frozen for frozen in self._frozen if now >= frozen.thaws_at]:
            self._frozen.remove(frozen)
            _signal(frozen.pid, frozen.born, signal.SIGCONT)
        self.broker.poll()
        for worker in self.workers:
            if worker.command is not None:
                self._watch(worker, worker.command)
            elif now >= worker.starts_at:
                worker.command = self._family.start("worker", "--name", worker.name, *self._options)
                worker.is_end_expected, worker.must_end_by, worker.is_draining = False, None, False

    def inject(self, fault: Fault, *, witness: Witness, submitter: Submitter) -> str | None:
        """Do it. Returns what was done to whom, or None where there was nobody to do it to."""
        kind = fault.kind
        if kind in ON_WORKERS:
            return self._hit_worker(fault, self.workers[int(fault.target * len(self.workers))])
        if kind in ON_CHUNKS:
            return _damage(fault, witness)
        if kind is FaultKind.KILL_SUBMITTER:
            return submitter.kill()
        if kind is FaultKind.PAUSE_JOB:
            return submitter.pause(fault.duration_s(PAUSE_S))
        if kind is FaultKind.CHANGE_PRIORITY:
            return _prioritize(fault, witness.job)
        if kind in (FaultKind.KILL_BROKER, FaultKind.LOSE_BROKER):
            outage_s = fault.duration_s(OUTAGE_S)
            is_lost = kind is FaultKind.LOSE_BROKER
            return f"{outage_s:.1f} s" if self.broker.kill(outage_s=outage_s, is_file_lost=is_lost) else None
        if kind is FaultKind.FREEZE_BROKER:
            process = self.broker.process
            return None if process is None else self._freeze([process.pid], fault.duration_s(BROKER_FREEZE_S))
        try:
            return _command_broker(fault, self.broker.client())
        except redis.RedisError:
            return None  # It is away or frozen.

    def thaw_all(self) -> None:
        """End all freezing and outages now."""
        for frozen in self._frozen:
            frozen.thaws_at = 0.0
        self.poll()

    def stop_workers(self) -> None:
        """Ask all to stop, and wait until they have. Notes those that had to be killed."""
        commands = [worker.command for worker in self.workers if worker.command is not None]
        for command in commands:
            command.process.terminate()
        deadline = time.monotonic() + STOP_LIMIT_S
        while any(command.process.poll() is None for command in commands) and time.monotonic() < deadline:
            time.sleep(0.05)
        for worker in self.workers:
            if worker.command is not None and worker.command.process.poll() is None:
                self._note_hang(worker, worker.command)
            worker.command = None

    def _watch(self, worker: Worker, command: Command) -> None:
        now = time.monotonic()
        code = command.process.poll()
        if code is not None:
            if worker.is_draining and code != 0:
                self.problems.append(f"{worker.name} was drained and ended with {code}: {_last(command)}")
            if not worker.is_end_expected:
                self.gave_up.append(f"{worker.name} ended with {code}: {_last(command)}")
            worker.command, worker.starts_at = None, now + _RESTART_PAUSE_S
        elif worker.must_end_by is not None and now > worker.must_end_by:
            self._note_hang(worker, command)

    def _note_hang(self, worker: Worker, command: Command) -> None:
        self.problems.append(f"{worker.name} did not stop within {STOP_LIMIT_S:.0f} s of SIGTERM: {_last(command)}")
        worker.must_end_by = None
        command.process.kill()

    def _hit_worker(self, fault: Fault, worker: Worker) -> str | None:
        command = worker.command
        if command is None or command.process.poll() is not None:
            return None
        child = self._family.child_of(command)
        if child is None and fault.kind in (FaultKind.KILL_CHILD, FaultKind.FREEZE_CHILD):
            return None
        both = [command.pid] if child is None else [command.pid, child]
        match fault.kind:
            case FaultKind.FREEZE_CHILD | FaultKind.FREEZE_WORKER:
                duration_s = fault.duration_s(FREEZE_S)
                if worker.must_end_by is not None:
                    worker.must_end_by += duration_s
                frozen = both[1:] if fault.kind is FaultKind.FREEZE_CHILD else both
                return f"{worker.name}, {self._freeze(frozen, duration_s)}"
            case FaultKind.STOP_WORKER:
                worker.is_end_expected = True
                thawed_at = max([frozen.thaws_at for frozen in self._frozen if frozen.pid in both], default=0.0)
                worker.must_end_by = max(time.monotonic(), thawed_at) + STOP_LIMIT_S
                command.process.terminate()
                return worker.name
            case FaultKind.DRAIN_WORKER:
                return self._drain(worker, command)
            case FaultKind.KILL_CHILD:
                victims = both[1:]
            case FaultKind.KILL_SUPERVISOR:
                victims = both[:1]
            case _:
                victims = both
        if command.pid in victims:
            worker.is_end_expected, worker.is_draining = True, False
        for pid in victims:
            _signal(pid, _born(pid), signal.SIGKILL)
        return f"{worker.name}, {' and '.join(map(str, victims))}"

    def _drain(self, worker: Worker, command: Command) -> str | None:
        """Ask the life that a worker has now to drain; those before may look alive."""
        for report in read_heartbeats(self._jobs_dir):
            beat = report.beat
            if (beat.name, beat.pid) == (worker.name, command.pid):
                worker.is_end_expected = worker.is_draining = True
                return worker.name if ask_to_drain(self._jobs_dir, beat.name, beat.instance) else None
        return None

    def _freeze(self, pids: list[int], duration_s: float) -> str:
        """Stop processes; one that is stopped already is from now on stopped for as long as the longer of the two."""
        thaws_at = time.monotonic() + duration_s
        for pid in pids:
            born = _born(pid)
            for frozen in self._frozen:
                if (frozen.pid, frozen.born) == (pid, born):
                    frozen.thaws_at = max(frozen.thaws_at, thaws_at)
                    break
            else:
                if _signal(pid, born, signal.SIGSTOP):
                    self._frozen.append(_Frozen(pid, born, thaws_at))
        return f"{' and '.join(map(str, pids))} for {duration_s:.1f} s"


def _prioritize(fault: Fault, job: JobDir) -> str | None:
    """Give the job one of all priorities, unless another command changes it at this moment."""
    wish = Standing(priority=PRIORITIES[int(fault.target * len(PRIORITIES))])
    try:
        changed = prioritize(job, wish) if job.exists() else None
    except JobBusyError:
        return None
    return None if changed is None else f"{job.job_id} to {wish.level}"


def _damage(fault: Fault, witness: Witness) -> str | None:
    """Flip a bit of one of the chunks of unfinished shards, or cut its end off, in place."""
    witness.look()
    job = witness.job
    committed = job.committed_shards()
    paths = [path for path, chunk in witness.chunks.items() if chunk.shard not in committed and not chunk.is_damaged]
    paths = sorted(path for path in paths if path.exists())
    if not paths:
        return None
    path = paths[int(fault.target * len(paths))]
    try:
        with path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if fault.kind is FaultKind.TRUNCATE_CHUNK:
                file.truncate(int(fault.place * size))
            else:
                offset, bit = divmod(int(fault.place * size * 8), 8)
                file.seek(offset)
                (byte,) = file.read(1)
                file.seek(offset)
                file.write(bytes([byte ^ 1 << bit]))
    except FileNotFoundError:
        return None  # Its shard was committed just now.
    witness.chunks[path].is_damaged = True
    return f"{path.parent.name}/{path.name} at {fault.place:.0%}"


def _command_broker(fault: Fault, client: redis.Redis) -> str | None:
    """Do what takes a command. Raises RedisError."""
    with client:
        if fault.kind is FaultKind.FLUSH_BROKER:
            client.flushall()
            return "done"
        if fault.kind is FaultKind.CUT_CONNECTIONS:
            return f"{client.client_kill_filter(_type='normal', skipme=True)} connections"
        leases = sorted(client.scan_iter(match=f"{KEY_PREFIX}lease:*"))
        if not leases:
            return None
        lease = leases[int(fault.target * len(leases))]
        client.delete(lease)
        return str(lease.decode())


def _born(pid: int) -> str:
    """When a process was started, in ticks since the machine was; empty where it is gone."""
    try:
        # After the name, which is in brackets and can hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def _signal(pid: int, born: str, number: int) -> bool:
    """Send a signal to the process that was meant, if it still lives. Returns whether it did."""
    if not born or _born(pid) != born:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _last(command: Command) -> str:
    """The last line that a command said."""
    lines = command.stderr.strip().splitlines()
    return lines[-1] if lines else "(it said nothing)"
