"""The idle sweep: finds shards that nobody will ever work on, and rings the doorbell for them again.

The broker may lose a message (a flush, a crash, a worker killed between taking it and claiming). Rather than knowing
which vanished, the sweep looks at what is: the queue of a model is empty, and a shard is neither committed nor leased.
Seen twice, 5 s apart, the shard is orphaned: a message on its way to a claim takes milliseconds. This also covers a
worker that died: its lease expires. A message too many costs nothing, as its claim fails.

Everybody who waits for a job sweeps. One key a shard keeps them from sending the same message at the same time:

    batcher:swept:<job>:<shard>   string, lives 10 s: someone has just sent a message for the shard
"""

import time
from collections.abc import Callable, Collection, Sequence

import redis

from batcher.broker import KEY_PREFIX, queue_key
from batcher.errors import BrokerError
from batcher.jobdir import JobDir, ShardInfo
from batcher.lease import Leases

#: Seconds between two looks.
TICK_INTERVAL_S = 5.0
#: Milliseconds. Two looks.
_SWEPT_TTL_MS = 10_000

#: Sends one message for each shard of a job and returns how many.
Enqueue = Callable[[JobDir, Sequence[ShardInfo]], int]


class Every:
    """Says when a periodic task is due; the first time at once. `clock` is in seconds and only grows."""

    def __init__(self, interval_s: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._next = clock()

    def is_due(self) -> bool:
        """Whether `interval_s` have passed since this was last true."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + self._interval_s
        return True


class IdleSweep:
    """Sweeps one job. Remembers between ticks which shards looked orphaned; holds nothing else.

    `models`: only shards of these are sent; None for all.
    """

    def __init__(
        self, job: JobDir, client: redis.Redis, *, enqueue: Enqueue, models: Collection[str] | None = None
    ) -> None:
        self.job = job
        self._client = client
        self._leases = Leases(client)
        self._enqueue = enqueue
        self._models = models
        self._suspects: frozenset[int] = frozenset()

    def tick(self) -> int:
        """Look, and send what was orphaned last time too; call it every `TICK_INTERVAL_S`. Returns how many were sent.

        Raises BrokerError where the broker is away; the next tick looks again.
        """
        orphans = self._orphans()
        again = [info for info in orphans if info.shard in self._suspects and self._mark(info.shard)]
        self._suspects = frozenset(info.shard for info in orphans)
        return self._enqueue(self.job, again) if again else 0

    def release_dead(self, worker: str) -> None:
        """Give back the leases of a worker whose process is known to be dead, so that none has to expire.

        Raises BrokerError where the broker is away; then they expire.
        """
        pending = [info.shard for info in self.job.pending_shards()]
        for lease in self._leases.held(self.job.job_id, pending).values():
            if lease.worker == worker:
                self._leases.release(lease)

    def _orphans(self) -> list[ShardInfo]:
        """The shards without part and lease whose queue is empty."""
        if self.job.is_cancelled or self.job.is_complete:
            return []
        pending = [info for info in self.job.pending_shards() if self._is_ours(info.model)]
        idle = {model for model in {info.model for info in pending} if model and self._is_idle(model)}
        waiting = [info for info in pending if info.model in idle]
        held = self._leases.held(self.job.job_id, [info.shard for info in waiting])
        return [info for info in waiting if info.shard not in held]

    def _is_ours(self, model: str | None) -> bool:
        return model is not None and (self._models is None or model in self._models)

    def _is_idle(self, model: str) -> bool:
        try:
            return self._client.llen(queue_key(model)) == 0
        except redis.RedisError as exc:
            raise BrokerError(f"broker: the queue of {model} could not be read: {exc}") from exc

    def _mark(self, shard: int) -> bool:
        """Whether nobody else has sent a message for the shard just now."""
        try:
            key = f"{KEY_PREFIX}swept:{self.job.job_id}:{shard}"
            return bool(self._client.set(key, b"", nx=True, px=_SWEPT_TTL_MS))
        except redis.RedisError as exc:
            raise BrokerError(f"broker: shard {shard} could not be marked: {exc}") from exc
