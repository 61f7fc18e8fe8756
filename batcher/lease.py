"""Leases: who works on a shard now. They save work and never guard correctness; the commit does that.

One key a shard, at most one holder at a time:

    batcher:lease:<job>:<shard>   string, the holder's token "<worker>/<random>"
        SET NX PX 30000     claim
        PEXPIRE 30000       renew, by its holder only (`_RENEW`), every 10 s
        DEL                 release, by its holder only (`_RELEASE`)

A lease that is gone although its holder lives (the broker was flushed or replaced, the machine slept) is taken again by
the next renewal, unless another has it by then.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import redis

from batcher.broker import KEY_PREFIX
from batcher.errors import BrokerError

#: Milliseconds. Three missed renewals.
LEASE_TTL_MS = 30_000
#: Seconds between renewals.
RENEW_INTERVAL_S = 10.0

# KEYS[1] the lease, ARGV[1] the holder's token, ARGV[2] milliseconds to live.
# Returns 1 if the caller holds the lease afterwards, 0 if another does.
_RENEW = """
local holder = redis.call('GET', KEYS[1])
if not holder then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
  return 1
end
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
return 0
"""

# KEYS[1] the lease, ARGV[1] the holder's token. Returns 1 if it was the caller's and is gone now.
_RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """A claim of one shard by one attempt. Holding the object does not mean that the lease is still held."""

    key: str
    token: str

    @property
    def worker(self) -> str:
        """The name of the worker that claimed it."""
        return self.token.rpartition("/")[0]


class Leases:
    """Claims, renews and releases. Every method is one round trip and raises BrokerError where the broker is away."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._renew = client.register_script(_RENEW)
        self._release = client.register_script(_RELEASE)

    def claim(self, lease: Lease) -> bool:
        """Take the lease if nobody has it."""
        try:
            return bool(self._client.set(lease.key, lease.token, nx=True, px=LEASE_TTL_MS))
        except redis.RedisError as exc:
            raise _unreachable(exc) from exc

    def renew(self, lease: Lease) -> bool:
        """Keep the lease, or take it again if nobody has it. False: another holds it."""
        try:
            return bool(self._renew(keys=[lease.key], args=[lease.token, LEASE_TTL_MS]))
        except redis.RedisError as exc:
            raise _unreachable(exc) from exc

    def release(self, lease: Lease) -> bool:
        """Give the lease back. False: it was not ours any more."""
        try:
            return bool(self._release(keys=[lease.key], args=[lease.token]))
        except redis.RedisError as exc:
            raise _unreachable(exc) from exc

    def held(self, job_id: str, shards: Sequence[int]) -> dict[int, Lease]:
        """The leases on those of `shards` that somebody works on now."""
        if not shards:
            return {}
        keys = [lease_key(job_id, shard) for shard in shards]
        try:
            tokens = self._client.mget(keys)
        except redis.RedisError as exc:
            raise _unreachable(exc) from exc
        found = zip(shards, keys, tokens, strict=True)
        return {shard: Lease(key, token.decode()) for shard, key, token in found if isinstance(token, bytes)}


def lease_key(job_id: str, shard: int) -> str:
    """The key of a shard's lease."""
    return f"{KEY_PREFIX}lease:{job_id}:{shard}"


def new_lease(job_id: str, shard: int, *, worker: str) -> Lease:
    """A lease to claim, with a token that no other attempt has."""
    return Lease(lease_key(job_id, shard), f"{worker}/{uuid.uuid4().hex}")


def _unreachable(exc: redis.RedisError) -> BrokerError:
    return BrokerError(f"broker: a lease could not be read or written: {exc}")
