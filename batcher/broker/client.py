"""The broker: a client for the Redis protocol, and the keys that Batcher has there.

The broker is a doorbell. Whatever it holds (messages, leases) can be lost, and is rebuilt from the job directory.

Every key that Batcher uses begins with `KEY_PREFIX`:

    batcher:batcher.<scope>.<model>        list, kombu's queue of a model; gone when empty
    batcher:batcher.<scope>.<model>:<priority>     the same for another priority than the usual one
    batcher:queued:<queue>:<job_id>        set of the shards of a job that have a message there; see `turns`
    batcher:cursor:<queue>:<job_id>        string, how far a job has come in sending them; see `turns`
    batcher:_kombu.binding*.batcher.*      sets of kombu, two a queue: that it exists
    batcher:unacked, batcher:unacked_*     hashes of kombu: messages taken and not acknowledged
    batcher:lease:<job>:<shard>            string, who works on a shard now; see `leases`
    batcher:claimed:<job>                  set of the shards that were taken and not given back; see `leases`
    batcher:swept:<job>:<shard>            hash, when a message was last sent for an orphaned shard; see `sweep`
    batcher:worker:<scope>:<worker>        string, who works there, and in which folder; see `presence`
    batcher:workers                        set of these keys

<scope> is that of a jobs folder (`batcher/jobdir/scope.py`), so that workers of several folders can share a broker, or
of one job, where its own workers complete it. <job> is a job's `Manifest.identity`: in two folders there can be jobs of
one name, and workers of two scopes can work on one job. The functions below make all of these names.
"""

import os
import ssl
import time
from collections.abc import Sequence

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batcher.broker.url import client_url, hide_password, redact, tls_files
from batcher.errors import BrokerError
from batcher.ids import encode_name
from batcher.types import NORMAL, PRIORITIES

#: Before every key of ours and of kombu's, so that a Redis can be shared with other applications.
KEY_PREFIX = "batcher:"

#: Seconds. A broker that stops answering must not hold up the thread that renews a lease, nor a shutdown.
SOCKET_TIMEOUT_S = 10
CONNECT_TIMEOUT_S = 5
#: Seconds between checks of an idle connection: one that a firewall dropped is noticed before it is needed.
HEALTH_CHECK_INTERVAL_S = 10
#: Seconds that a broker gets which was just started and loads what it had written down, and between two looks at it.
LOADING_PATIENCE_S = 30
_LOADING_POLL_INTERVAL_S = 0.2

#: Between the name of a queue and a priority. Neither scope nor model has it. KEDA makes the name of a metric from that
#: of a list, with a dash for this; the control characters that kombu has here would stay in.
PRIORITY_SEPARATOR = ":"

#: Of kombu's sets.
_BINDINGS = ("binding", "binding_permanent")

#: Errors of redis-py, of which some are kinds of others, with what they mean here.
_TROUBLES: tuple[tuple[type[redis.RedisError], str], ...] = (
    (
        redis.AuthenticationError,
        "wrong or missing password; give redis://:PASSWORD@host:6379/0 (or redis://USER:PASSWORD@...) as "
        "BATCHER_BROKER, or in the first line of a file with --broker-file",
    ),
    (redis.BusyLoadingError, "it was just started and still loads its data; wait until it has"),
    (
        redis.ReadOnlyError,
        "it is a replica, which takes no writes; give the URL of the primary, or make it the primary "
        "(REPLICAOF NO ONE)",
    ),
    (
        redis.exceptions.MasterDownError,
        "it is a replica, and its primary is away; give the URL of the primary, or make it the primary "
        "(REPLICAOF NO ONE)",
    ),
    (redis.exceptions.OutOfMemoryError, "its memory is full; raise its maxmemory, or free some"),
    *(
        (kind, "it is a Redis Cluster, whose keys lie on several servers; give one that runs without cluster mode")
        for kind in (
            redis.exceptions.ClusterError,
            redis.exceptions.ClusterCrossSlotError,
            redis.exceptions.MovedError,
            redis.exceptions.AskError,
        )
    ),
)


def queue_name(model: str, *, scope: str) -> str:
    """The Celery queue of a model's shards for the workers of a scope."""
    return f"batcher.{scope}.{encode_name(model)}"


def queue_key(model: str, *, scope: str, priority: int = NORMAL) -> str:
    """The Redis list behind `queue_name` for jobs of a priority."""
    return KEY_PREFIX + list_name(queue_name(model, scope=scope), priority)


def list_name(queue: str, priority: int) -> str:
    """The list of a queue, without our prefix. That of the usual priority has the name of the queue, as there was no
    other in older versions."""
    return queue if priority == NORMAL else f"{queue}{PRIORITY_SEPARATOR}{priority}"


def queue_lists(model: str, *, scope: str) -> tuple[str, ...]:
    """The Redis lists behind `queue_name`, the most urgent first."""
    return tuple(queue_key(model, scope=scope, priority=priority) for priority in reversed(PRIORITIES))


def queue_keys(model: str, *, scope: str) -> tuple[str, ...]:
    """All that a broker holds of `queue_name`: the lists, and what kombu notes beside them."""
    name = queue_name(model, scope=scope)
    return *queue_lists(model, scope=scope), *(f"{KEY_PREFIX}_kombu.{kind}.{name}" for kind in _BINDINGS)


def queued_key(job_id: str, queue: str) -> str:
    """The key of the set of a job's shards that have a message in a queue, by its `queue_name`."""
    return f"{KEY_PREFIX}queued:{queue}:{job_id}"


def cursor_key(job_id: str, queue: str) -> str:
    """The key of how far a job has come in sending its shards to a queue."""
    return f"{KEY_PREFIX}cursor:{queue}:{job_id}"


def count_waiting(client: redis.Redis, models: Sequence[str], *, scope: str) -> dict[str, dict[int, int]]:
    """How many shards of each priority wait for each model; what has none is left out. One round trip.

    Raises BrokerError.
    """
    try:
        with client.pipeline(transaction=False) as pipe:
            for model in models:
                for key in queue_lists(model, scope=scope):
                    pipe.llen(key)
            found = iter(pipe.execute())
    except redis.RedisError as exc:
        raise BrokerError(f"broker: the queues could not be read: {trouble(exc)}") from exc
    lengths = {model: {priority: next(found) for priority in reversed(PRIORITIES)} for model in models}
    waiting = {model: {priority: number for priority, number in of.items() if number} for model, of in lengths.items()}
    return {model: of for model, of in waiting.items() if of}


def lease_key(job: str, shard: int) -> str:
    """The key of a shard's lease. `job` is a job's `Manifest.identity`, here and below."""
    return f"{KEY_PREFIX}lease:{job}:{shard}"


def claimed_key(job: str) -> str:
    """The key of the set of a job's shards that were taken and not given back."""
    return f"{KEY_PREFIX}claimed:{job}"


def swept_key(job: str, shard: int) -> str:
    """The key of the mark that a message was sent for an orphaned shard."""
    return f"{KEY_PREFIX}swept:{job}:{shard}"


#: The key of the set of all `worker_key`s.
WORKERS_KEY = f"{KEY_PREFIX}workers"


def worker_key(scope: str, worker: str) -> str:
    """The key of what a worker says of itself. `worker` is an id that no other has."""
    return f"{KEY_PREFIX}worker:{scope}:{worker}"


def open_client(url: str, *, timeout_s: float = SOCKET_TIMEOUT_S) -> redis.Redis:
    """A client that connects when it is first used, and waits for each answer. Raises BrokerError for a bad `url`."""
    spelled = client_url(url)
    return redis.Redis.from_url(
        spelled,
        socket_timeout=timeout_s,
        socket_connect_timeout=min(timeout_s, CONNECT_TIMEOUT_S),
        health_check_interval=HEALTH_CHECK_INTERVAL_S,
        # One more try at once, where the connection turns out to be dead. Not where the broker hangs, as client and
        # connection would both try again: our callers have their own pace.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        **({} if spelled.startswith("unix:") else {"socket_keepalive": True}),
    )


def connect(url: str) -> redis.Redis:
    """A client whose broker has answered. Raises BrokerError with a remedy; no message shows a password.

    Blocks for LOADING_PATIENCE_S at most where the broker has just been started and still loads its data.
    """
    for name, path in tls_files(url).items():
        if not os.access(path, os.R_OK):
            raise BrokerError(f"broker {hide_password(url)}: {name}={path}: cannot read the file; correct its path")
    client = open_client(url)
    try:
        _greet(client)
    except redis.RedisError as exc:
        client.close()
        raise BrokerError(f"broker {hide_password(url)}: {trouble(exc, url)}") from exc
    return client


def _greet(client: redis.Redis) -> None:
    """Wait for an answer. Raises RedisError."""
    deadline = time.monotonic() + LOADING_PATIENCE_S
    while True:
        try:
            client.ping()
            break
        except redis.BusyLoadingError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOADING_POLL_INTERVAL_S)
    try:
        is_cluster = client.info("cluster").get("cluster_enabled")
    except redis.ResponseError:
        return  # A user who may not ask. The first message is refused then.
    if is_cluster:
        raise redis.exceptions.ClusterError("cluster_enabled")


def trouble(exc: BaseException, url: str = "") -> str:
    """Why the broker can't be used or refuses, and the remedy; `exc` is an error of redis-py, or of kombu by one."""
    if not isinstance(exc, redis.RedisError) and isinstance(exc.__cause__, redis.RedisError):
        exc = exc.__cause__
    said = redact(str(exc) or repr(exc), url).rstrip(".")
    if said.startswith("UNBLOCKED") and "replica" in said:
        # What a client hears that waits for a message at that moment.
        exc = redis.ReadOnlyError(said)
    for kinds, text in _TROUBLES:
        if isinstance(exc, kinds):
            return text
    if isinstance(exc, redis.exceptions.NoPermissionError):
        return f"the user may not do what Batcher does: {said}; docs/operations.md has the ACL that it needs"
    if "max number of clients" in said:
        return "it has as many clients as it takes; raise its maxclients, or stop some of the others"
    if isinstance(exc, redis.ConnectionError | redis.TimeoutError):
        return _no_connection(exc, said, is_tls=url.startswith("rediss:"))
    if "HELLO" in said:
        return "the server is older than Redis 6, which is needed"
    if isinstance(exc, redis.ResponseError):
        return f"it refuses: {said}"
    return f"cannot reach it: {said}; start it, or mend the URL"


def _no_connection(exc: redis.RedisError, said: str, *, is_tls: bool) -> str:
    # redis-py makes its own error of the reason, and leaves that as its context.
    cause = exc.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return (
            f"its certificate is refused: {cause.verify_message}; give the CA that signed it as "
            "?ssl_ca_certs=/path/to/ca.pem at the end of the URL, and the host by the name in the certificate"
        )
    if isinstance(cause, ssl.SSLError):
        return f"no TLS there ({cause.reason or cause}); give the port where it speaks TLS"
    if is_tls and isinstance(exc, redis.TimeoutError):
        # Redis waits for more where it is spoken to in TLS and knows none.
        return f"cannot reach it: {said}; start it, or give the port where it speaks TLS"
    return f"cannot reach it: {said}; start it, or mend the URL"
