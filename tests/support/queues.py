"""What lies in the queues of a broker, and the part of a worker that takes from them."""

import json

import redis

from batcher.broker.client import queue_lists
from batcher.broker.turns import Turns
from batcher.jobdir.folder import JobDir
from batcher.types import PRIORITIES
from tests.support.job_files import MODEL

#: Of queues that no jobs folder has.
SCOPE = "here"


def waiting(client: redis.Redis, *, model: str = MODEL, scope: str = SCOPE) -> list[str]:
    """The messages in the queue in the order in which they are taken, each as `<job id>/<shard>`."""
    found = []
    for key in queue_lists(model, scope=scope):
        messages = client.lrange(key, 0, -1)
        assert isinstance(messages, list)
        found += [json.loads(message)["headers"]["of"] for message in reversed(messages)]
    return found


def waiting_shards(client: redis.Redis, *, model: str = MODEL, scope: str = SCOPE) -> list[int]:
    """The shards of one job in the order in which they are taken."""
    return [int(of.partition("/")[2]) for of in waiting(client, model=model, scope=scope)]


def lose_next(client: redis.Redis, *, model: str = MODEL, scope: str = SCOPE) -> tuple[int, str, int] | None:
    """Take the next message away, as a worker that dies of it does. Returns priority, job id and shard; None: none."""
    for priority, key in zip(reversed(PRIORITIES), queue_lists(model, scope=scope), strict=True):
        message = client.rpop(key)
        if isinstance(message, bytes):
            job_id, _, shard = json.loads(message)["headers"]["of"].partition("/")
            return priority, job_id, int(shard)
    return None


def take_next(client: redis.Redis, job: JobDir, *, model: str = MODEL, scope: str = SCOPE) -> int | None:
    """Take the next message, which must be of `job`, and say so. Returns the shard; None: there is none."""
    found = lose_next(client, model=model, scope=scope)
    if found is None:
        return None
    assert found[1] == job.job_id
    Turns(client, scope=scope).taken(job, model, found[2])
    return found[2]


def commit(job: JobDir, shard: int) -> None:
    """Have a part of a shard be there, as its worker does; nobody reads it here."""
    job.results_dir.mkdir(exist_ok=True)
    job.part_path(shard).write_bytes(b"")
