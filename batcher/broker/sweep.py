"""Finds the shards that nobody works on and no message will bring to a worker, and sends them again.

The broker may lose a message (a flush, a crash, a worker killed between taking it and claiming), and a worker may die
with a shard in its hands. Everybody who waits for a job sweeps it, in three ways:

- *Expired*: a lease ran out, so its holder died or hangs. The shard is sent at once, also while others wait, and to the
  front of the queue: it was begun already, and how long the queue is must not matter to it. Each expiry is handed out
  once (see `leases`), so there is one message for each death however many sweep, and however long no worker is free.
- *Left by the dead*: the process of a worker died and its supervisor lives to tell. Its leases are released and its
  shards sent, without waiting for any expiry.
- *Orphaned*: the queue of a model is empty, and a shard is neither committed nor leased; seen so twice, a sweep
  interval apart, as a message on its way to a claim takes milliseconds. So nobody has to know which message vanished.
  A shard whose attempts fail (a full disk, say) is sent again in this way, too: its message is dropped, and it comes
  back at growing intervals, from two looks to five minutes, until a chunk more of it is saved.

A message too many costs nothing, as its claim fails. One key a shard keeps sweepers from sending the same at a time:

    batcher:swept:<job>:<shard>   hash, lives for two intervals: somebody sent a message for the orphaned shard
        interval    milliseconds from that to the next one
        progress    how far the shard was: the number of its chunks
        `_MARK`     asks and writes
"""

import time
from collections.abc import Callable, Collection, Iterable

import redis

from batcher.broker.client import queue_key, swept_key, trouble
from batcher.broker.leases import LEASE_TTL_S, Leases
from batcher.errors import BrokerError
from batcher.jobdir.folder import JobDir, Watch
from batcher.jobdir.listing import Listing
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.sending import Send

#: Seconds. The longest that a shard which keeps failing waits for another try.
MAX_RESEND_INTERVAL_S = 300.0

#: Seconds. How old a listing may be by which orphans are found: they are looked at twice.
LOOK_AGE_S = 1.0

# KEYS[1] the mark; ARGV[1] the progress, ARGV[2] and ARGV[3] the shortest and the longest interval in milliseconds.
# Returns 1, and marks the shard as sent, where the last message for it is an interval old. The interval doubles each
# time, and is the shortest again where the shard has made progress, or nobody sent it for two.
_MARK = """
local interval = tonumber(ARGV[2])
local last = redis.call('HMGET', KEYS[1], 'interval', 'progress')
if last[1] then
  local age = 2 * last[1] - redis.call('PTTL', KEYS[1])
  local is_stuck = last[2] == ARGV[1]
  -- Below zero where the server's clock was set back: then nobody knows how old it is.
  if age >= 0 and age < (is_stuck and tonumber(last[1]) or interval) then
    return 0
  end
  if is_stuck then
    interval = math.min(2 * last[1], tonumber(ARGV[3]))
  end
end
redis.call('HSET', KEYS[1], 'interval', interval, 'progress', ARGV[1])
redis.call('PEXPIRE', KEYS[1], 2 * interval)
return 1
"""

# KEYS[1] a queue. The message that was sent last becomes the one that is taken next.
_TO_FRONT = """
local message = redis.call('LPOP', KEYS[1])
if message then
  redis.call('RPUSH', KEYS[1], message)
end
"""


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


class Sweep:
    """Sweeps one job. Every method raises BrokerError where the broker is away, and makes up for it the next time.

    Remembers between looks which shards looked orphaned, and what could not be sent. `scope` is that of the queues to
    which `send` sends. `models`: only orphans of these are sent; None for all. `lease_ttl_s` gives the pace. `watch` is
    that of others who look at the job, too.
    """

    def __init__(
        self,
        job: JobDir,
        client: redis.Redis,
        *,
        send: Send,
        scope: str,
        models: Collection[str] | None = None,
        lease_ttl_s: float = LEASE_TTL_S,
        watch: Watch | None = None,
    ) -> None:
        self.job = job
        self.watch = watch or Watch(job)
        self._client = client
        self._leases = Leases(client, ttl_s=lease_ttl_s)
        self._send = send
        self._scope = scope
        self._models = models
        self._orphans: frozenset[int] = frozenset()
        self._unsent: set[int] = set()
        self._mark = client.register_script(_MARK)
        self._to_front = client.register_script(_TO_FRONT)

    def reap(self) -> float:
        """Send the shards whose leases expired. Returns the seconds until another can expire; infinite if none."""
        reaped = self._leases.reap(self.job.manifest.identity)
        self._unsent.update(reaped.expired)
        self._send_unsent()
        return reaped.next_expiry_s

    def release_dead(self, process: str) -> None:
        """Release the leases of a process that is known to be dead, by its id, and send its shards."""
        for lease in self._leases.held(
            self.job.manifest.identity, self._leases.claimed(self.job.manifest.identity)
        ).values():
            # Not by the worker's name: another process of that name may have claimed meanwhile.
            if lease.process == process and self._leases.release(lease):
                self._unsent.add(lease.shard)
        self._send_unsent()

    def look(self, *, max_age_s: float = 0.0) -> int:
        """Send what was orphaned at the last look and still is; call it every `Pace.sweep_interval_s`.

        Somebody else's listing, up to `max_age_s` old, will do. Returns how many were sent.
        """
        listing = self.watch.look(max_age_s=max_age_s)
        orphans = self._find_orphans(listing)
        again = [info for info in orphans if info.shard in self._orphans and self._may_send(info.shard, listing)]
        self._orphans = frozenset(info.shard for info in orphans)
        return self._send(self.job, again) if again else 0

    def _send_unsent(self) -> None:
        """Send what is known to be in nobody's hands, to the front of the queues."""
        if not self._unsent:
            return
        listing = self.watch.look()
        if not _is_over(listing):
            for info in self._pending(listing, self._unsent):
                self._send(self.job, [info])
                assert info.model is not None, f"shard {info.shard} was leased and has no model"
                try:
                    self._to_front(keys=[queue_key(info.model, scope=self._scope)])
                except redis.RedisError as exc:
                    raise BrokerError(
                        f"broker: the queue of {info.model} could not be written: {trouble(exc)}"
                    ) from exc
        self._unsent.clear()

    def _find_orphans(self, listing: Listing) -> list[ShardInfo]:
        """The shards without part and lease whose queue is empty."""
        if _is_over(listing):
            return []
        pending = [info for info in self.job.without_part(listing.parts) if self._is_ours(info.model)]
        idle = {model for model in {info.model for info in pending} if model and self._is_idle(model)}
        waiting = [info for info in pending if info.model in idle]
        held = self._leases.held(self.job.manifest.identity, [info.shard for info in waiting])
        return [info for info in waiting if info.shard not in held]

    def _pending(self, listing: Listing, shards: Iterable[int]) -> list[ShardInfo]:
        wanted = frozenset(shards)
        return [info for info in self.job.without_part(listing.parts) if info.shard in wanted]

    def _is_ours(self, model: str | None) -> bool:
        return model is not None and (self._models is None or model in self._models)

    def _is_idle(self, model: str) -> bool:
        try:
            return self._client.llen(queue_key(model, scope=self._scope)) == 0
        except redis.RedisError as exc:
            raise BrokerError(f"broker: the queue of {model} could not be read: {trouble(exc)}") from exc

    def _may_send(self, shard: int, listing: Listing) -> bool:
        """Whether it is time for another message; marks the shard as sent, if so."""
        shortest_s = 2 * self._leases.pace.sweep_interval_s
        arguments = [len(listing.chunks(shard)), *(round(s * 1000) for s in (shortest_s, MAX_RESEND_INTERVAL_S))]
        try:
            return bool(self._mark(keys=[swept_key(self.job.manifest.identity, shard)], args=arguments))
        except redis.RedisError as exc:
            raise BrokerError(f"broker: shard {shard} could not be marked: {trouble(exc)}") from exc


def _is_over(listing: Listing) -> bool:
    return listing.is_halted or listing.is_complete
