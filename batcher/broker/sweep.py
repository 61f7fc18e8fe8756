"""Finds the shards that nobody works on and no message will bring to a worker, and sends them again.

The broker may lose a message (a flush, a crash, a worker killed between taking it and claiming), and a worker may die
with a shard in its hands. Everybody who waits for a job sweeps it, in three ways:

- *Expired*: a lease ran out, so its holder died or hangs. The shard is sent at once, also while others wait, and to the
  front of the queue: it was begun already, and how long the queue is must not matter to it. Each expiry is handed out
  once (see `leases`), so there is one message for each death however many sweep, and however long no worker is free.
- *Left by the dead*: the process of a worker died and its supervisor lives to tell. Its leases are released and its
  shards sent, without waiting for any expiry.
- *Orphaned*: a shard that was sent before has no message in the queue, and is neither committed nor leased; seen so
  twice, a sweep interval apart, as a message on its way to a claim takes milliseconds. So nobody has to know which
  message vanished, and the queue need not be empty. The job goes on, too, where it had come to (see `sender`): whoever
  was to send its next shards may have died. A broker that was emptied knows not how far that was: then any shard may
  have been sent. A shard whose attempts fail (a full disk, say) is orphaned, too: its message is dropped, and it comes
  back at growing intervals, from two looks to five minutes, until a chunk more of it is saved.

A message too many costs nothing, as its claim fails. One key a shard keeps sweepers from sending the same at a time:

    batcher:swept:<job>:<shard>   hash, lives for two intervals: somebody sent a message for the orphaned shard
        interval    milliseconds from that to the next one
        progress    how far the shard was: the number of its chunks
        `_MARK`     asks and writes
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

import redis

from batcher.broker.client import swept_key, trouble
from batcher.broker.leases import LEASE_TTL_S, Leases
from batcher.broker.sender import Sender, turn_of
from batcher.broker.turns import NOTHING, Found
from batcher.errors import BrokerError
from batcher.jobdir.folder import JobDir, Watch
from batcher.jobdir.listing import Listing

#: Seconds. The longest that a shard which keeps failing waits for another try.
MAX_RESEND_INTERVAL_S = 300.0

#: Seconds. How old a listing may be by which orphans are found: they are looked at twice.
LOOK_AGE_S = 1.0

#: Asked for at a time: a script of Redis keeps all others waiting.
_LEASES_AT_A_TIME = 1000

#: What lies in the queue of each model, by job id.
Queues = Mapping[str, Mapping[str, Found]]

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

    Remembers between looks which shards looked orphaned, and what could not be sent. `sender` sends to the queues that
    are swept. `models`: only orphans of these are sent; None for all. `lease_ttl_s` gives the pace. `watch` is that of
    others who look at the job, too.
    """

    def __init__(
        self,
        job: JobDir,
        client: redis.Redis,
        *,
        sender: Sender,
        models: Collection[str] | None = None,
        lease_ttl_s: float = LEASE_TTL_S,
        watch: Watch | None = None,
    ) -> None:
        self.job = job
        self.watch = watch or Watch(job)
        self._client = client
        self._leases = Leases(client, ttl_s=lease_ttl_s)
        self._sender = sender
        self._models = models
        self._orphans: frozenset[int] = frozenset()
        self._unsent: set[int] = set()
        self._mark = client.register_script(_MARK)

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

    def look(self, *, max_age_s: float = 0.0, queues: Queues | None = None) -> int:
        """Send what was orphaned at the last look and still is, and what is next; call it every
        `Pace.sweep_interval_s`.

        Somebody else's listing, up to `max_age_s` old, will do; `queues` are what somebody has just read. Returns how
        many were sent.
        """
        listing = self.watch.look(max_age_s=max_age_s)
        orphans: set[int] = set()
        num_sent = 0
        if not _is_over(listing):
            for model in self.job.manifest.models:
                if self._models is None or model in self._models:
                    read = queues[model] if queues else self._sender.turns(self.job).read(model)
                    found = read.get(self.job.job_id, NOTHING)
                    if not found.belongs_to(turn := turn_of(self.job)):
                        self._sender.turns(self.job).move(self.job, model, turn)
                    num_sent += self._heal(model, found.shards, listing, orphans)
        self._orphans = frozenset(orphans)
        return num_sent

    def _heal(self, model: str, queued: frozenset[int], listing: Listing, orphans: set[int]) -> int:
        """Send the orphans of a model, and what is next. Those found are added to `orphans`; returns how many were
        sent. `queued` have a message."""
        turns = self._sender.turns(self.job)
        cursor, num_queued = turns.state(self.job, model)
        if num_queued != len(queued):
            queued = turns.count(self.job, model)
        order = self._sender.order(self.job, model)
        sent_before = order if cursor is None else order[:cursor]
        found = self._unheld([shard for shard in sent_before if shard not in listing.parts and shard not in queued])
        if cursor is None:
            # None of them may ever have been sent.
            found = found[: self._sender.window(self.job, model)]
        orphans.update(found)
        room = self._sender.window(self.job, model) - len(queued)
        due: list[int] = []
        end = None
        for shard in found:
            if len(due) >= room:
                break
            if shard in self._orphans:
                end = None if cursor is not None else order.index(shard) + 1
                if self._may_send(shard, listing):
                    due.append(shard)
        num_sent = self._sender.send_again(self.job, model, due, end=end) if due or end else 0
        return num_sent + self._sender.refill(self.job, model)

    def _unheld(self, shards: Sequence[int]) -> list[int]:
        """Those that nobody works on."""
        held: set[int] = set()
        for first in range(0, len(shards), _LEASES_AT_A_TIME):
            held.update(self._leases.held(self.job.manifest.identity, shards[first : first + _LEASES_AT_A_TIME]))
        return [shard for shard in shards if shard not in held]

    def _send_unsent(self) -> None:
        """Send what is known to be in nobody's hands, to the front of the queues."""
        if not self._unsent:
            return
        listing = self.watch.look()
        if not _is_over(listing):
            for info in self.job.without_part(listing.parts):
                if info.shard in self._unsent:
                    assert info.model is not None, f"shard {info.shard} was leased and has no model"
                    self._sender.send_first(self.job, info.model, info.shard)
        self._unsent.clear()

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
