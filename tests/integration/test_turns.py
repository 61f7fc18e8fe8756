"""Jobs that share workers: a window of messages each, and turns. Counted in shards and messages, never in seconds."""

import time
from pathlib import Path

import redis

from batcher.broker.client import queue_lists
from batcher.broker.sender import WINDOW
from batcher.jobdir.folder import JobDir
from batcher.jobdir.scope import scope_of
from tests.support.family import Family, assert_every_row_once, start_worker, submit
from tests.support.queues import waiting
from tests.support.waiting import PATIENCE_S

#: Of one row and one token: what counts is how many there are.
ROWS = 150
SHORT = ("--max-tokens", 1)
#: A worker with it holds two shards at a time.
SLOTS = ("--slots", 2)


def counted(job: JobDir, client: redis.Redis) -> int:
    """How many messages lie in the queue of the job's folder."""
    with client.pipeline(transaction=True) as pipe:
        for key in queue_lists("tiny", scope=scope_of(job.path.parent)):
            pipe.llen(key)
        return sum(pipe.execute())


def test_job_of_many_shards_has_a_window_of_messages_until_its_end(family: Family, model: Path, redis_url: str) -> None:
    job = submit(family, redis_url, rows=ROWS, shard_rows=1, options=SHORT)
    client = redis.Redis.from_url(redis_url)
    counts = [counted(job, client)]
    start_worker(family, redis_url, model, "w1", *SLOTS)

    deadline = time.monotonic() + PATIENCE_S
    while not job.is_complete:
        counts.append(counted(job, client))
        assert time.monotonic() < deadline
        time.sleep(0.002)

    assert counts[0] == WINDOW
    assert max(counts) <= 2 * WINDOW, "one for itself, one for the worker"
    assert counted(job, client) == 0
    client.close()
    assert_every_row_once(job, ROWS)
    assert {job.num_attempts(info.shard) for info in job.manifest.shards} == {1}


def test_equal_jobs_go_on_side_by_side(family: Family, model: Path, redis_url: str) -> None:
    """Within a fifth of each other, from the first commit to the last."""
    num_shards = 30
    jobs = [submit(family, redis_url, rows=num_shards, shard_rows=1, options=SHORT) for _ in range(3)]
    with redis.Redis.from_url(redis_url) as client:
        first = waiting(client, scope=scope_of(jobs[0].path.parent))[:6]
        assert first == [f"{job.job_id}/{shard}" for shard in (0, 1) for job in jobs]
    for name in ("w1", "w2"):
        start_worker(family, redis_url, model, name, *SLOTS)

    deadline = time.monotonic() + PATIENCE_S
    spreads = []
    while not all(job.is_complete for job in jobs):
        # Read one after the other: what is committed meanwhile counts for the later ones.
        counts = [len(job.committed_shards()) for job in jobs]
        spreads.append(max(counts) - min(counts))
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert max(spreads) <= num_shards / 5
    for job in jobs:
        assert_every_row_once(job, num_shards)
