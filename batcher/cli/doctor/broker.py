"""The broker: whether it answers, takes what queues and leases need, keeps it, and agrees about the time."""

import contextlib
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batcher.broker.client import KEY_PREFIX, connect, open_client, trouble
from batcher.broker.embedded import embedded_broker, find_server
from batcher.broker.url import client_url, has_secret, hide_password, redact
from batcher.cli.doctor.finding import Check, Level, size_text
from batcher.cli.doctor.jobs_folder import clock_check
from batcher.errors import BrokerError

#: Seconds. Who waits longer for a PING has something to mend; a job's own connections are more patient.
ANSWER_TIMEOUT_S = 5.0
#: Of the broker's memory limit. What is missing to it is soon taken by a job of many shards.
NEARLY_FULL = 0.9
#: Milliseconds after which a key that a killed doctor left is gone.
_PROBE_TTL_MS = 10_000
_DELETE = "return redis.call('DEL', KEYS[1])"


def check_embedded_broker() -> Check:
    """Whether the server that `batcher run` would start does start. Takes some hundredths of a second."""
    try:
        with tempfile.TemporaryDirectory() as folder, embedded_broker(Path(folder)):
            return Check("broker", Level.OK, f"none given; `batcher run` starts its own: {find_server()}")
    except BrokerError as exc:
        return _refused(exc, Level.WARN)


def check_broker(url: str) -> Iterator[Check]:
    """Everything about the broker. Blocks for `ANSWER_TIMEOUT_S` where it hangs; writes a key and deletes it."""
    shown = hide_password(url)
    try:
        with contextlib.closing(_connect_once(url)) as client:
            yield from _check_answering(client, url)
    except BrokerError as exc:
        yield _refused(exc, Level.FAIL)
    except redis.BusyLoadingError as exc:
        yield Check("broker", Level.FAIL, f"{shown}: still reads its data from disk ({exc})", "wait until it has")
    except redis.TimeoutError as exc:
        yield Check(
            "broker",
            Level.FAIL,
            f"{shown}: no answer within {ANSWER_TIMEOUT_S:.0f} s ({exc}): it hangs, or something drops the connection",
            "look whether the server is stopped, swapping or busy (SLOWLOG GET), and at firewalls; it may be killed "
            "and started again, as jobs lose nothing by that",
        )
    except redis.RedisError as exc:
        yield Check("broker", Level.FAIL, f"{shown}: went away: {redact(str(exc), url)}", "look at the server's log")


def _connect_once(url: str) -> redis.Redis:
    """As `connect`, but one that hangs is not tried again: it would be waited for several times as long."""
    client = open_client(url)
    client.set_retry(Retry(NoBackoff(), 0))
    client.get_connection_kwargs().update(socket_timeout=ANSWER_TIMEOUT_S)
    try:
        client.ping()
    except (redis.TimeoutError, redis.BusyLoadingError):
        client.close()
        raise
    except redis.RedisError:
        client.close()
        # It fails again, with words for the reason.
        return connect(url)
    return client


def _refused(exc: BrokerError, level: Level) -> Check:
    message, _, remedy = str(exc).removeprefix("broker ").partition("; ")
    return Check("broker", level, message, remedy or "give another one with --broker URL")


def _check_answering(client: redis.Redis, url: str) -> Iterator[Check]:
    shown = hide_password(url)
    try:
        info: dict[str, Any] = client.info()
    except redis.ResponseError as exc:  # A managed server may forbid it.
        yield Check(
            "broker",
            Level.WARN,
            f"{shown}: answers, but won't tell about itself, so its memory and persistence are unknown: {exc}",
            "allow this user the command INFO (ACL SETUSER NAME +info)",
        )
    else:
        if info.get("cluster_enabled"):
            message, _, remedy = trouble(redis.exceptions.ClusterError()).partition("; ")
            yield Check("broker", Level.FAIL, f"{shown}: {message}", remedy)
            return
        version = info.get("valkey_version") or info.get("redis_version")
        yield Check("broker", Level.OK, f"{shown}: version {version}")
        yield _check_persistence(client, info, url)
        yield _check_memory(info, url)
    yield _check_writing(client, url)
    with contextlib.suppress(redis.ResponseError):
        yield clock_check("broker clock", "the broker's clock", _skew_s(client))


def _check_persistence(client: redis.Redis, info: dict[str, Any], url: str) -> Check:
    name = "broker persistence"
    if info.get("aof_enabled") and info.get("aof_last_write_status", "ok") == "ok":
        return Check(name, Level.OK, "append-only file")
    if info.get("aof_enabled"):
        return Check(
            name,
            Level.WARN,
            f"appendonly is on, but the file can't be written (aof_last_write_status {info['aof_last_write_status']})",
            "make room on the server's disk; its log says what went wrong",
        )
    try:
        save = client.config_get("save").get("save")
    except redis.ResponseError:
        save = None
    if save:
        what = f"appendonly is off, only snapshots are taken (save {save}): a restart forgets what was queued since"
    elif save is None:
        what = "appendonly is off: a restart forgets queued shards"
    else:
        what = "appendonly is off and save is empty: a restart forgets all queued shards"
    return Check(
        name,
        Level.WARN,
        f"{what}, until workers or `batcher resume` queue them again",
        f"{_redis_cli(url)} CONFIG SET appendonly yes, and the same in the server's configuration file",
    )


def _check_memory(info: dict[str, Any], url: str) -> Check:
    name, policy = "broker memory", info.get("maxmemory_policy", "unknown")
    limit, used = info.get("maxmemory", 0), info.get("used_memory", 0)
    limit_text = f"maxmemory {size_text(limit)}" if limit else "no maxmemory"
    if policy not in ("noeviction", "unknown"):
        danger = "queues and leases may be evicted" if limit else "queues and leases are evicted once it has one"
        return Check(
            name,
            Level.WARN,
            f"maxmemory-policy {policy} with {limit_text}: {danger}, and shards are computed twice or late",
            f"{_redis_cli(url)} CONFIG SET maxmemory-policy noeviction, and the same in its configuration file",
        )
    if limit and used > NEARLY_FULL * limit:
        return Check(
            name,
            Level.WARN,
            f"{size_text(used)} of {limit_text} are used: at the limit it refuses to queue shards and to lease them",
            f"{_redis_cli(url)} CONFIG SET maxmemory {2 * limit}, or remove what others keep there",
        )
    return Check(name, Level.OK, f"maxmemory-policy {policy}, {size_text(used)} used, {limit_text}")


def _check_writing(client: redis.Redis, url: str) -> Check:
    """Whether it takes the commands of a lease: SET and, in Lua, DEL of a key with our prefix."""
    name, key = "broker writes", f"{KEY_PREFIX}doctor:{uuid.uuid4().hex}"
    try:
        client.set(key, "1", nx=True, px=_PROBE_TTL_MS)
        # By EVALSHA and SCRIPT LOAD, as leases do: a user may be allowed these and not EVAL.
        client.register_script(_DELETE)(keys=[key])
    except redis.ResponseError as exc:
        return Check(name, Level.FAIL, f"refuses what queues and leases need: {exc}", _write_remedy(exc, url))
    return Check(name, Level.OK, "takes what queues and leases need")


def _write_remedy(exc: redis.ResponseError, url: str) -> str:
    if isinstance(exc, redis.exceptions.ReadOnlyError):
        return "it is a replica; give the URL of its primary with --broker"
    if isinstance(exc, redis.exceptions.OutOfMemoryError):
        return f"{_redis_cli(url)} CONFIG SET maxmemory with a higher value, or remove what others keep there"
    if isinstance(exc, redis.exceptions.NoPermissionError):
        return f"allow this user what Batcher does; at its simplest, ACL SETUSER NAME ~{KEY_PREFIX}* +@all"
    return "the server's log says more; jobs lose nothing where it is started anew"


def _skew_s(client: redis.Redis) -> float:
    """Seconds that the broker's clock is ahead, by the quickest of three answers."""
    samples = []
    for _ in range(3):
        started_at = time.time()
        seconds, microseconds = client.time()
        ended_at = time.time()
        samples.append((ended_at - started_at, seconds + microseconds / 1e6 - (started_at + ended_at) / 2))
    return min(samples)[1]


def _redis_cli(url: str) -> str:
    """The command line that reaches the broker, without its password."""
    parts = urlsplit(client_url(url))
    askpass = " --askpass" if has_secret(url) else ""
    if parts.scheme == "unix":
        return f"redis-cli -s {parts.path}{askpass}"
    tls = " --tls" if parts.scheme == "rediss" else ""
    return f"redis-cli -h {parts.hostname or 'localhost'} -p {parts.port or 6379}{tls}{askpass}"
