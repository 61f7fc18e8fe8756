"""The idle sweep: sends exactly the shards that nobody would ever work on."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from batcher.broker import queue_key
from batcher.jobdir import JobDir, ShardInfo
from batcher.lease import Leases, new_lease
from batcher.reconcile import Every, IdleSweep
from tests.job_factory import MODEL, make_job, make_request


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    return make_job(tmp_path / "job", [[make_request(0)], [make_request(1)], [make_request(2, model="other")]])


class Sent:
    """Where the sweep's messages go."""

    def __init__(self) -> None:
        self.shards: list[int] = []

    def __call__(self, job: JobDir, shards: Sequence[ShardInfo]) -> int:
        self.shards += [info.shard for info in shards]
        return len(shards)


def test_orphaned_shards_are_sent_at_the_second_look(job: JobDir, client: redis.Redis) -> None:
    sent = Sent()
    sweep = IdleSweep(job, client, enqueue=sent)

    assert sweep.tick() == 0
    assert sweep.tick() == 3

    assert sent.shards == [0, 1, 2]


def test_shards_are_not_sent_again_while_their_message_is_queued(job: JobDir, client: redis.Redis) -> None:
    sent = Sent()
    sweep = IdleSweep(job, client, enqueue=sent)
    client.lpush(queue_key(MODEL), "message")

    for _ in range(3):
        sweep.tick()

    assert sent.shards == [2]


def test_leased_and_committed_shards_are_left_alone(job: JobDir, client: redis.Redis) -> None:
    sent = Sent()
    sweep = IdleSweep(job, client, enqueue=sent)
    Leases(client).claim(new_lease(job.job_id, 0, worker="w"))
    job.results_dir.mkdir()
    job.part_path(1).write_bytes(b"")

    for _ in range(3):
        sweep.tick()

    assert sent.shards == [2]


def test_shard_seen_orphaned_once_and_then_leased_is_not_sent(job: JobDir, client: redis.Redis) -> None:
    sent = Sent()
    sweep = IdleSweep(job, client, enqueue=sent, models={MODEL})
    sweep.tick()
    leases = Leases(client)
    lease = new_lease(job.job_id, 0, worker="w")
    leases.claim(lease)
    sweep.tick()
    leases.release(lease)

    sweep.tick()

    assert sent.shards == [1]


def test_only_shards_of_the_given_models_are_sent(job: JobDir, client: redis.Redis) -> None:
    sent = Sent()
    sweep = IdleSweep(job, client, enqueue=sent, models={"other"})

    sweep.tick()
    sweep.tick()

    assert sent.shards == [2]


def test_two_sweepers_send_one_message_between_them(job: JobDir, client: redis.Redis) -> None:
    sent = Sent()
    first, second = IdleSweep(job, client, enqueue=sent), IdleSweep(job, client, enqueue=sent)

    for sweep in (first, second, first, second):
        sweep.tick()

    assert sorted(sent.shards) == [0, 1, 2]


def test_leases_of_a_dead_worker_are_given_back_and_no_others(job: JobDir, client: redis.Redis) -> None:
    leases = Leases(client)
    for shard, worker in ((0, "dead"), (1, "alive"), (2, "dead-2")):
        leases.claim(new_lease(job.job_id, shard, worker=worker))

    IdleSweep(job, client, enqueue=Sent()).release_dead("dead")

    assert set(leases.held(job.job_id, [0, 1, 2])) == {1, 2}


def test_cancelled_job_is_not_swept(job: JobDir, client: redis.Redis) -> None:
    sent = Sent()
    sweep = IdleSweep(job, client, enqueue=sent)
    sweep.tick()
    job.cancel()

    sweep.tick()

    assert sent.shards == []


def test_periodic_task_is_due_at_once_and_then_after_each_interval() -> None:
    now = 100.0
    every = Every(5, clock=lambda: now)

    assert every.is_due()
    assert not every.is_due()
    now = 104.9
    assert not every.is_due()
    now = 105.0
    assert every.is_due()
    assert not every.is_due()
