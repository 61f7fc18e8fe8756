"""Jobs that share workers: a window of messages each, and turns. Counted in shards and messages, never in seconds."""

import json
import time
from datetime import datetime
from pathlib import Path

import redis

from batcher.broker.client import queue_lists
from batcher.broker.sender import WINDOW
from batcher.jobdir.folder import JobDir
from batcher.jobdir.scope import scope_of
from tests.faults.injection import inject
from tests.support.family import Family, assert_every_row_once, start_worker, submit
from tests.support.queues import waiting
from tests.support.waiting import PATIENCE_S, wait_for

#: Of one row and one token: what counts is how many there are.
ROWS = 150
SHORT = ("--max-tokens", 1)
#: A worker with it holds two shards at a time.
SLOTS = ("--slots", 2)
SHARDS_HELD = 2


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


def test_urgent_job_goes_before_a_huge_one_within_a_shard(family: Family, model: Path, redis_url: str) -> None:
    """Counted in shards: what a worker holds is finished, and the next that it takes is the urgent one's."""
    huge = submit(family, redis_url, rows=ROWS, shard_rows=1, options=("--max-tokens", 8))
    start_worker(family, redis_url, model, "w1", *SLOTS, env=inject(slow_step_s=0.05))
    wait_for(lambda: len(huge.committed_shards()) >= 5, what="the huge job is at work")

    urgent = submit(family, redis_url, rows=1, shard_rows=1, options=("--max-tokens", 1, "--priority", "urgent"))
    wait_for(lambda: urgent.is_complete, what="the urgent job is complete")

    # A worker takes the next when one of those that it holds is done, and that one may just have been on its way.
    before = [at for at in claims(huge) if urgent.manifest.created_at < at <= claimed_at(urgent, 0)]
    assert len(before) <= 2 * SHARDS_HELD
    assert not huge.is_complete
    wait_for(lambda: huge.is_complete, what="the huge job is complete")
    assert_every_row_once(huge, ROWS)


def test_job_that_waits_goes_first_once_it_is_more_urgent(family: Family, model: Path, redis_url: str) -> None:
    """`batcher priority` needs no broker: the worker's sweep moves what waits, also across priorities."""
    jobs = [
        submit(family, redis_url, rows=60, shard_rows=1, options=(*SHORT, "--priority", level))
        for level in ("normal", "low")
    ]
    first, later = jobs
    folder = family.folder / "jobs"
    command = family.run("priority", later.job_id, "9", "--jobs-dir", folder, code=0)
    assert command.stdout == "Priority 9 (urgent).\n"

    start_worker(family, redis_url, model, "w1", *SLOTS)
    wait_for(lambda: later.is_complete, what="the job that was low is complete")

    # All but what was taken before the first look of the sweep, which moves it.
    assert len([at for at in claims(first) if at < max(claims(later))]) < 60
    assert not first.is_complete
    wait_for(lambda: first.is_complete, what="the other is complete")
    for job in jobs:
        assert_every_row_once(job, 60)


def claimed_at(job: JobDir, shard: int) -> datetime:
    record = json.loads(job.attempt_path(shard, attempt=1).read_bytes())
    return datetime.fromisoformat(record["claimed_at"])


def claims(job: JobDir) -> list[datetime]:
    """When each shard was claimed that was."""
    shards = [info.shard for info in job.manifest.shards]
    return [claimed_at(job, shard) for shard in shards if job.attempt_path(shard, attempt=1).exists()]
