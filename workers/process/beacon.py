"""A worker's sign of life: shown every few seconds and at each change, taken away at an orderly end."""

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from batcher import __version__
from batcher.errors import BatcherError
from batcher.jobdir.drains import is_to_drain
from batcher.jobdir.heartbeats import (
    Health,
    HeldShard,
    WorkerHeartbeat,
    read_heartbeats,
    remove_heartbeat,
    utc_now,
    write_heartbeat,
)
from batcher.jobdir.pulse import WorkerState
from workers.process.events import AttemptBeat, OpenAttempt, WorkerConfig
from workers.process.load import LoadMeter

logger = logging.getLogger(f"batcher.{__name__}")

#: Seconds between two signs where rows move, in the folder of a job that is worked on here and now (`batcher run`):
#: somebody looks at it.
WATCHED_INTERVAL_S = 1.0
#: Six signs in the life of a lease, five seconds at the default.
BEATS_PER_LEASE = 6


class Beacon:
    """Keeps the file of one worker. A disk that refuses it is logged once; the work goes on. `clock` is in seconds."""

    def __init__(self, config: WorkerConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._clock = clock
        self._interval_s = config.lease_ttl_s / BEATS_PER_LEASE
        self._instance = uuid.uuid4().hex[:12]
        self._started_at = utc_now()
        self.num_crashes = 0
        self._last_crash = ""
        self._shown: tuple[object, ...] = ()
        self._made: tuple[AttemptBeat, ...] = ()
        self._next_at = self._next_move_at = clock()
        self._is_refused = False

    def is_to_drain(self) -> bool:
        """Whether somebody has asked this worker to drain. False where the disk does not say."""
        try:
            return is_to_drain(Path(self._config.home), self._config.name, self._instance)
        except BatcherError as exc:
            logger.debug("%s", exc)
            return False

    def note_crash(self, ending: str) -> None:
        """Count a death of the child; `ending` says how."""
        self.num_crashes += 1
        self._last_crash = ending

    def show(
        self,
        state: WorkerState,
        *,
        attempts: Sequence[OpenAttempt],
        made: Sequence[AttemptBeat],
        stalled_s: float,
        load: LoadMeter,
    ) -> bool:
        """Replace the file, if it is due or something has changed, and return whether.

        One that takes no shards shows none. `made` says how far the attempts are.
        """
        if not self._config.takes_shards:
            return False
        now = self._clock()
        current = (state, tuple(attempts), self.num_crashes)
        moved = tuple(made)
        is_moving = self._config.home != self._config.jobs_root and moved != self._made and now >= self._next_move_at
        if current == self._shown and now < self._next_at and not is_moving:
            return False
        if not self._shown:
            self._look_for_namesakes()
        self._shown, self._next_at = current, now + self._interval_s
        self._made, self._next_move_at = moved, now + WATCHED_INTERVAL_S
        beat = WorkerHeartbeat(
            name=self._config.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            models=tuple(name for name, _ in self._config.models),
            started_at=self._started_at,
            beat_at=utc_now(),
            state=state,
            interval_s=self._interval_s,
            stalled_s=stalled_s if state is WorkerState.STALLED else 0.0,
            shards=_held(attempts, made),
            num_crashes=self.num_crashes,
            last_crash=self._last_crash,
            instance=self._instance,
            num_slots=load.num_slots,
            num_running=load.num_running,
            tokens_per_s=round(load.tokens_per_s, 1),
        )
        try:
            write_heartbeat(Path(self._config.home), beat)
            self._is_refused = False
        except BatcherError as exc:
            if not self._is_refused:
                logger.warning("%s; `batcher status` will show this worker as gone", exc)
            self._is_refused = True
        return True

    def remove(self) -> None:
        """Take the file away: the worker ends in good order."""
        if not self._config.takes_shards:
            return
        try:
            remove_heartbeat(Path(self._config.home), self._config.name, self._instance)
        except BatcherError as exc:
            logger.warning("%s", exc)

    def _look_for_namesakes(self) -> None:
        """Take away the sign of an earlier life of this worker, and warn where another worker has its name."""
        home, name, host = Path(self._config.home), self._config.name, socket.gethostname()
        for report in read_heartbeats(home):
            beat = report.beat
            if beat.name != name:
                continue
            if beat.host == host and not _is_other_process(beat.pid):
                with contextlib.suppress(BatcherError):
                    remove_heartbeat(home, name, beat.instance)
            elif report.health is not Health.GONE:
                logger.warning(
                    "worker %s: another of this name is alive (on %s, pid %d); both work, and nothing tells their rows "
                    "and log lines apart: give each a --name of its own, or none",
                    *(name, beat.host, beat.pid),
                )


def _held(attempts: Sequence[OpenAttempt], made: Sequence[AttemptBeat]) -> tuple[HeldShard, ...]:
    found = {each.attempt: each for each in made}
    beats = (found.get(attempt, AttemptBeat(attempt)) for attempt in attempts)
    return tuple(
        HeldShard(
            *(Path(beat.attempt.job).name, beat.attempt.shard, beat.attempt.attempt),
            num_tokens=beat.num_tokens,
            num_copied=beat.num_copied,
            max_tokens=beat.max_tokens,
        )
        for beat in beats
    )


def _is_other_process(pid: int) -> bool:
    """Whether a process of this machine has that number, and is not this one."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True
