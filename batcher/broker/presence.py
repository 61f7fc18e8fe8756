"""Who works at a broker, in whatever jobs folder: a key of each worker, which it renews while it lives.

Signs of life (`batcher/jobdir/heartbeats.py`) say more, to those who share a worker's jobs folder. This tells of those
in another folder, who wait for jobs that never come where that was not meant. Nothing's correctness rests on it.
"""

import contextlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis
from pydantic import TypeAdapter, ValidationError

from batcher.broker.client import WORKERS_KEY, open_client, trouble, worker_key
from batcher.errors import BrokerError

#: Seconds that a worker is known after its last renewal, at least, and for how many of its own pauses.
_MIN_TTL_S = 60
_TTL_PAUSES = 5
#: Seconds that the set of keys outlives the last renewal of anybody.
_SET_TTL_S = 86_400
#: Models that are named; more add nothing.
MAX_MODELS = 100
#: Bytes of what one worker says. More is of somebody else's making.
_MAX_BYTES = 1 << 16
#: Seconds for the farewell of a worker that ends, which comes on top of its grace period.
_FAREWELL_PATIENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class Presence:
    """A worker at a broker. `folder` is its jobs folder, as it is called on its machine; `scope` is that of it."""

    name: str
    host: str
    pid: int
    version: str
    scope: str
    folder: str
    models: tuple[str, ...]


_PRESENCE = TypeAdapter(Presence)


class Announcer:
    """Keeps up one worker's key, within a `with` block in which `renew` is called every `pause_s` seconds."""

    def __init__(self, url: str, presence: Presence, *, pause_s: float) -> None:
        self.presence = presence
        self._url = url
        self._client = open_client(url)
        self._key = worker_key(presence.scope, secrets.token_hex(6))
        self._ttl_s = int(max(_MIN_TTL_S, _TTL_PAUSES * pause_s))
        self._is_over = False

    def renew(self) -> None:
        """Say that the worker is there. Never raises: a broker that is away, or refuses, is others' business."""
        if self._is_over:
            return
        with contextlib.suppress(redis.RedisError), self._client.pipeline(transaction=False) as pipe:
            pipe.set(self._key, _PRESENCE.dump_json(self.presence), ex=self._ttl_s)
            pipe.sadd(WORKERS_KEY, self._key)
            pipe.expire(WORKERS_KEY, _SET_TTL_S)
            pipe.execute()

    def others(self) -> list[Presence]:
        """Who else works at the broker; nobody where that can't be known."""
        try:
            return [each for each in read_present(self._client) if each != self.presence]
        except BrokerError:
            return []

    def withdraw(self) -> None:
        """Take leave: the worker ends. Never raises; the key expires, too."""
        self._is_over = True
        client = open_client(self._url, timeout_s=_FAREWELL_PATIENCE_S)
        with contextlib.closing(client), contextlib.suppress(redis.RedisError):
            client.delete(self._key)
            client.srem(WORKERS_KEY, self._key)


def read_present(client: redis.Redis) -> list[Presence]:
    """Who works at the broker, by folder and name; those that are gone are forgotten there. Raises BrokerError."""
    try:
        keys = sorted(client.smembers(WORKERS_KEY))
        values: list[Any] = client.mget(keys) if keys else []
    except redis.RedisError as exc:
        raise BrokerError(f"broker: its workers could not be read: {trouble(exc)}") from exc
    if gone := [key for key, value in zip(keys, values, strict=True) if value is None]:
        # A user who may only read, say.
        with contextlib.suppress(redis.RedisError):
            client.srem(WORKERS_KEY, *gone)
    return sorted(_valid(values), key=lambda each: (each.folder, each.name, each.host, each.pid))


def _valid(values: Iterable[bytes | None]) -> list[Presence]:
    """What is of our making; anybody at the broker can write there."""
    found = []
    for value in values:
        if value is not None and len(value) <= _MAX_BYTES:
            with contextlib.suppress(ValidationError):
                found.append(_PRESENCE.validate_json(value))
    return found
