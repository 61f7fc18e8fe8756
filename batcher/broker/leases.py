"""Leases: who works on a shard now. They save work and never guard correctness; the commit does that.

Two keys. The first says who has a shard, the second which shards somebody took and has not given back:

    batcher:lease:<job>:<shard>   string, the holder's token "<worker>/<process>/<random>/<milliseconds that it lives>"
        `_HOLD`      claim, if nobody has it; renew, by its holder; take again, where it vanished
        `_RELEASE`   DEL, by its holder only
    batcher:claimed:<job>         set of shard numbers; lives a day after the last claim or renewal
        `_HOLD`      SADD
        `_RELEASE`   SREM
        `_REAP`      SREM of the shards whose lease is gone

Both are written by one script each time, so they never disagree but in one case: a shard that is in the set and has no
lease. Its lease expired, as its holder died or hung. (One that was given back is not in the set, and a flushed broker
has no set.) `_REAP` finds these without knowing what was there before, and hands each out once, to one caller.

A lease that is gone although its holder lives (the broker was flushed or replaced, the machine slept) is taken again by
the next renewal, unless another has it by then. Where the answer to a claim is lost, the client asks again, and finds
that it holds the lease.
"""

import logging
import math
import queue
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import redis

from batcher.broker.client import claimed_key, lease_key, trouble
from batcher.errors import BrokerError

logger = logging.getLogger(__name__)

#: Seconds that a lease lives by default. The shard of a worker that was killed runs elsewhere about as soon.
LEASE_TTL_S = 30.0

#: Seconds. Longer than any outage in which the set could still be of use.
_CLAIMED_TTL_S = 86_400
#: Of a shard's number.
_MAX_DIGITS = 9

# KEYS[1] the lease, KEYS[2] the claimed; ARGV[1] the holder's token, ARGV[2] milliseconds to live, ARGV[3] the shard,
# ARGV[4] seconds that the set lives. Returns 1 if the caller holds the lease afterwards, 0 if another does.
# A renewal writes nothing that a server with full memory refuses.
_HOLD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
if holder then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  redis.call('SADD', KEYS[2], ARGV[3])
end
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 1
"""

# KEYS[1] the lease, KEYS[2] the claimed; ARGV[1] the holder's token, ARGV[2] the shard.
# Returns 1 if it was the caller's and is gone now. One that expired meanwhile is not left for the reaper either.
_RELEASE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SREM', KEYS[2], ARGV[2])
return redis.call('DEL', KEYS[1])
"""

# KEYS[1] the claimed, KEYS[2...] leases; ARGV their shards, in the same order.
# A lease that would live longer than a lease does (its last number: the server's clock was set back) is cut to that.
# Returns the milliseconds until the first of the living leases expires (-1: none does), then the shards of the expired.
_REAP = """
local soonest = -1
local found = {}
for i, shard in ipairs(ARGV) do
  local ttl = redis.call('PTTL', KEYS[i + 1])
  local whole = ttl > 0 and tonumber(string.match(redis.call('GET', KEYS[i + 1]), '/(%d+)$'))
  if whole and ttl > whole then
    redis.call('PEXPIRE', KEYS[i + 1], whole)
    ttl = whole
  end
  if ttl == -2 then
    if redis.call('SREM', KEYS[1], shard) == 1 then
      found[#found + 1] = shard
    end
  elseif ttl >= 0 and (soonest < 0 or ttl < soonest) then
    soonest = ttl
  end
end
table.insert(found, 1, soonest)
return found
"""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a lease lives, and all that goes by it. Seconds."""

    ttl_s: float = LEASE_TTL_S

    @property
    def renewal_interval_s(self) -> float:
        """Between renewals. Ten may fail in a row."""
        return self.ttl_s / 10

    @property
    def sweep_interval_s(self) -> float:
        """Between two looks for orphaned shards. Longer than between renewals, so that two looks in a row do not take
        the shard of a living holder for orphaned after a flush, and long enough for a runner to notice its turn."""
        return max(1.0, self.ttl_s * 4 / 30)


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim of one shard by one attempt. Holding the object does not mean that the lease is still held.

    `job` is the job's `Manifest.identity`, here and in all functions of this module.
    """

    job: str
    shard: int
    token: str

    @property
    def key(self) -> str:
        """Of the lease in Redis."""
        return lease_key(self.job, self.shard)

    @property
    def worker(self) -> str:
        """The name of the worker that claimed it."""
        return self.token.partition("/")[0]

    @property
    def process(self) -> str:
        """The id of the process that claimed it."""
        return self.token.partition("/")[2].partition("/")[0]


@dataclass(frozen=True, slots=True)
class Reaped:
    """`expired`: shards whose lease expired, each told to one caller only. `next_expiry_s`: when to look again for the
    first of the leases that live, if it is not renewed; infinite without any."""

    expired: tuple[int, ...]
    next_expiry_s: float


class Leases:
    """Claims, renews, releases and reaps. Every method raises BrokerError where the broker is away, or is full."""

    def __init__(self, client: redis.Redis, *, ttl_s: float = LEASE_TTL_S) -> None:
        self.pace = Pace(ttl_s)
        self._client = client
        self._hold = client.register_script(_HOLD)
        self._release = client.register_script(_RELEASE)
        self._reap = client.register_script(_REAP)

    def claim(self, lease: Lease) -> bool:
        """Take the lease if nobody has it."""
        return self._take(lease)

    def renew(self, lease: Lease) -> bool:
        """Keep the lease, or take it again if nobody has it. False: another holds it."""
        return self._take(lease)

    def _take(self, lease: Lease) -> bool:
        keys = [lease.key, claimed_key(lease.job)]
        ttl_ms = round(self.pace.ttl_s * 1000)
        try:
            return bool(self._hold(keys=keys, args=[lease.token, ttl_ms, lease.shard, _CLAIMED_TTL_S]))
        except redis.RedisError as exc:
            raise _failed(exc) from exc

    def release(self, lease: Lease) -> bool:
        """Give the lease back. False: it was not ours any more."""
        try:
            return bool(self._release(keys=[lease.key, claimed_key(lease.job)], args=[lease.token, lease.shard]))
        except redis.RedisError as exc:
            raise _failed(exc) from exc

    def held(self, job: str, shards: Sequence[int]) -> dict[int, Lease]:
        """The leases on those of `shards` that somebody works on now. One round trip."""
        if not shards:
            return {}
        try:
            tokens = self._client.mget([lease_key(job, shard) for shard in shards])
        except redis.RedisError as exc:
            raise _failed(exc) from exc
        found = zip(shards, tokens, strict=True)
        return {
            shard: Lease(job, shard, token.decode(errors="replace"))
            for shard, token in found
            if isinstance(token, bytes)
        }

    def claimed(self, job: str) -> list[int]:
        """The shards that somebody took and has not given back, in order: those in work, and those of the dead."""
        try:
            found = self._client.smembers(claimed_key(job))
        except redis.RedisError as exc:
            raise _failed(exc) from exc
        # Whoever can write there may have put anything.
        return sorted(int(shard) for shard in found if shard.isdigit() and len(shard) <= _MAX_DIGITS)

    def reap(self, job: str) -> Reaped:
        """Find the shards of `job` whose lease expired. Two round trips; one where nothing is in work."""
        shards = self.claimed(job)
        if not shards:
            return Reaped((), math.inf)
        keys = [claimed_key(job), *(lease_key(job, shard) for shard in shards)]
        try:
            soonest_ms, *expired = self._reap(keys=keys, args=shards)
        except redis.RedisError as exc:
            raise _failed(exc) from exc
        return Reaped(tuple(map(int, expired)), soonest_ms / 1000 if soonest_ms >= 0 else math.inf)


class BackgroundLeases(Leases):
    """Renews in a thread of its own: a broker that hangs holds up nobody who has rows to save, or a stop to notice.

    `renew` returns at once and says what is known so far, so that a lost lease is noticed one renewal later. A broker
    that is away is no error of `renew`; it is logged when it goes and when it is back. `claim` and `release` wait, as
    their callers have nothing else to do. For all threads.
    """

    def __init__(self, client: redis.Redis, *, ttl_s: float = LEASE_TTL_S) -> None:
        super().__init__(client, ttl_s=ttl_s)
        self._asked: queue.SimpleQueue[Lease] = queue.SimpleQueue()
        # Tokens whose renewal is asked for and not done, and of leases that another has. Guarded by `_lock`.
        self._pending: set[str] = set()
        self._lost: set[str] = set()
        self._lock = threading.Lock()
        # Held during a renewal: one that came after the release would take the lease for nobody.
        self._renewing = threading.Lock()
        self._is_away = False
        threading.Thread(target=self._run, name="leases", daemon=True).start()

    def renew(self, lease: Lease) -> bool:
        """Have the lease renewed, or taken again if nobody has it. False: another was found to hold it."""
        with self._lock:
            if lease.token in self._lost:
                return False
            if lease.token not in self._pending:
                self._pending.add(lease.token)
                self._asked.put(lease)
            return True

    def release(self, lease: Lease) -> bool:
        """Give the lease back. False: it was not ours any more."""
        with self._lock:
            self._pending.discard(lease.token)
        with self._renewing:
            self._lost.discard(lease.token)
            return super().release(lease)

    def _run(self) -> None:
        while True:
            lease = self._asked.get()
            with self._renewing:
                self._renew_now(lease)

    def _renew_now(self, lease: Lease) -> None:
        with self._lock:
            if lease.token not in self._pending:
                return  # Released meanwhile.
        try:
            is_ours = self._take(lease)
        except BrokerError as exc:
            is_ours = True
            if not self._is_away:
                logger.warning("%s; the shards here are worked on without", exc)
            self._is_away = True
        else:
            if self._is_away:
                logger.warning("the broker is back; leases are renewed again")
            self._is_away = False
        with self._lock:
            self._pending.discard(lease.token)
            if not is_ours:
                self._lost.add(lease.token)


def new_lease(job: str, shard: int, *, worker: str, process: str, pace: Pace = Pace()) -> Lease:
    """A lease to claim, with a token that no other attempt has. `process` is an id that no other process has."""
    return Lease(job, shard, f"{worker}/{process}/{uuid.uuid4().hex}/{round(pace.ttl_s * 1000)}")


def _failed(exc: redis.RedisError) -> BrokerError:
    return BrokerError(f"broker: a lease could not be read or written: {trouble(exc)}")
