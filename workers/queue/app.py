"""The Celery application: every setting that the worker protocol rests on, with its reason.

A message is two ids and nothing else: `{job_id, shard}`. Each model has a queue in each scope, so a worker takes only
what it can compute and finds in its jobs folder. Measured facts are for Celery 5.7.0 and kombu 5.7.0.
"""

import math

from celery import Celery

from batcher.broker.client import CONNECT_TIMEOUT_S, HEALTH_CHECK_INTERVAL_S, KEY_PREFIX, SOCKET_TIMEOUT_S
from batcher.broker.url import celery_url

_SETTINGS = {
    # Acknowledge after the work, so that the message of a worker that was stopped goes back to the queue.
    "task_acks_late": True,
    # One message for each free thread, none in reserve: a waiting message belongs to whoever is free first.
    "worker_disable_prefetch": True,
    # No second limit beside that one (0 is none). kombu counts a message whose acknowledgement failed as still taken,
    # so with 1 a worker whose broker restarted while both threads were busy never asked for another message.
    "worker_prefetch_multiplier": 0,
    # A shard goes on while the broker is away; its commit is safe without it.
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    # With fewer messages than threads after a reconnect, the engine would run half empty.
    "worker_enable_prefetch_count_reduction": False,
    # The results are in the job directory.
    "task_ignore_result": True,
    "result_backend": None,
    # Nothing that can carry code. (It is also what lets a worker run as root without a complaint about pickle.)
    "accept_content": ["json"],
    "task_serializer": "json",
    # A broker that restarts, however long it takes, is no reason to unload a model.
    "broker_connection_max_retries": None,
    "broker_connection_retry_on_startup": True,
    # Nor is one that is full and refuses.
    "broker_channel_error_retry": True,
    # Celery's own pauses between tries grow to half a minute.
    "worker_consumer": "workers.queue.consumer:PatientConsumer",
    # We have our own ways to watch and to stop; without them no worker holds a subscription.
    "worker_enable_remote_control": False,
    "worker_send_task_events": False,
    # The log and the terminal are ours.
    "worker_hijack_root_logger": False,
    "worker_redirect_stdouts": False,
    "broker_transport_options": {
        # So that a Redis can be shared.
        "global_keyprefix": KEY_PREFIX,
        # Seconds after which a message that nobody acknowledged is forgotten (`workers/queue/transport.py`). Longer
        # than any shard takes, so that the copy of a message in work is there when the worker gives it back.
        "visibility_timeout": 86_400,
        # Look for such messages every 10 s, at every look (kombu's default is every tenth).
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        # A broker that has silently gone must be noticed, or a shutdown waits for it.
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "health_check_interval": HEALTH_CHECK_INTERVAL_S,
    },
}

#: Of the Celery worker in a child process.
#: Threads, since all of them wait for one engine; see `concurrency` for how many.
#: No gossip, mingle or heartbeat: with heartbeats on and a half-open connection, SIGTERM hung for over two minutes.
WORKER_OPTIONS = {
    "pool": "threads",
    "without_gossip": True,
    "without_mingle": True,
    "without_heartbeat": True,
    "loglevel": "WARNING",
    "quiet": True,
}


#: Rows that a small shard has (`batcher.submission.splitter`).
_SMALL_SHARD_ROWS = 32

#: So that a worker of very many slots does not hold the whole of a job.
_MOST_SHARDS = 16


def concurrency(num_slots: int) -> int:
    """How many shards a worker holds at a time: small ones that fill all slots three times, and one more.

    So the engine stays full while shards drain, and has prompts to choose from that begin alike. What fewer shards cost
    is in docs/performance.md.
    """
    return min(_MOST_SHARDS, 1 + math.ceil(3 * num_slots / _SMALL_SHARD_ROWS))


def make_celery(broker_url: str, **transport_options: object) -> Celery:
    """The application on a broker. Does not connect. `transport_options` are those of `workers/queue/transport.py`."""
    app = Celery("batcher", broker=celery_url(broker_url), set_as_current=False)
    app.conf.update(_SETTINGS)
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, **transport_options}
    return app
