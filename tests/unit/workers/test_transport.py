"""The transport on a real broker: what becomes of a message that a worker gives back."""

# kombu has no types.
# mypy: disable-error-code="no-untyped-call, attr-defined"

from pathlib import Path

import redis
from kombu import Consumer, Message, Queue

from batcher.broker.client import queue_name
from batcher.broker.sender import Sender
from tests.support.job_files import MODEL, make_bare_job
from tests.support.queues import SCOPE, waiting
from workers.queue.app import make_celery
from workers.queue.transport import Transport


def test_message_that_is_given_back_is_the_next_and_what_comes_later_keeps_its_turn(
    tmp_path: Path, client: redis.Redis, broker_url: str
) -> None:
    sender = Sender(broker_url, scope=SCOPE)
    job, other = make_bare_job(tmp_path / "job", 3), make_bare_job(tmp_path / "other", 3)
    sender(job, job.manifest.shards)
    with make_celery(broker_url) as app, app.connection_for_read() as connection:
        connection.transport_cls = Transport
        taken: list[Message] = []
        queue = Queue(queue_name(MODEL, scope=SCOPE))
        with Consumer(connection, [queue], callbacks=[lambda body, message: taken.append(message)]):
            connection.drain_events(timeout=10)
        assert waiting(client) == ["job/1", "job/2"]

        taken[0].reject(requeue=True)
        sender(other, other.manifest.shards)

    assert waiting(client) == ["job/0", "job/1", "other/0", "job/2", "other/1", "other/2"]
