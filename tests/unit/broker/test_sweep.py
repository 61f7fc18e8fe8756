"""The sweep: sends the shards that nobody works on, as soon as that is sure, and no more often than that."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from batcher.broker.client import queue_key, swept_key
from batcher.broker.leases import Lease, Leases, new_lease
from batcher.broker.sweep import MAX_RESEND_INTERVAL_S, Every, Sweep
from batcher.errors import BrokerError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo
from tests.support.job_files import MODEL, make_job

#: Of the queues.
SCOPE = "here"


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    return make_job(tmp_path / "job", (1, 1, 1), models=["tiny", "tiny", "other"])


class Sent:
    """Where the sweep's messages go."""

    def __init__(self) -> None:
        self.shards: list[int] = []

    def __call__(self, job: JobDir, shards: Sequence[ShardInfo]) -> int:
        self.shards += [info.shard for info in shards]
        return len(shards)


@pytest.fixture
def sent() -> Sent:
    return Sent()


class Queued(Sent):
    """Also puts them into the queue, where nobody takes them out."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self._client = client

    def __call__(self, job: JobDir, shards: Sequence[ShardInfo]) -> int:
        for info in shards:
            assert info.model is not None
            self._client.lpush(queue_key(info.model, scope=SCOPE), str(info.shard))
        return super().__call__(job, shards)


def claim(client: redis.Redis, job: JobDir, shard: int, *, worker: str = "w", process: str = "p1") -> Lease:
    lease = new_lease(job.manifest.identity, shard, worker=worker, process=process)
    assert Leases(client).claim(lease)
    return lease


def expire(client: redis.Redis, lease: Lease) -> None:
    """What the broker does when a lease ran out."""
    assert client.delete(lease.key) == 1


def let_pass(client: redis.Redis, job: JobDir, shard: int, seconds: float) -> None:
    """Move the clock of the mark that a shard was sent."""
    key = swept_key(job.manifest.identity, shard)
    left_ms = client.pttl(key)
    assert isinstance(left_ms, int)
    client.pexpire(key, left_ms - round(seconds * 1000))


# -- orphaned -----------------------------------------------------------------------------------------------------


def test_orphaned_shards_are_sent_at_the_second_look(job: JobDir, client: redis.Redis, sent: Sent) -> None:
    sweep = Sweep(job, client, send=sent, scope=SCOPE)

    assert sweep.look() == 0
    assert sweep.look() == 3

    assert sent.shards == [0, 1, 2]


def test_shards_are_not_sent_again_while_their_message_is_queued(job: JobDir, client: redis.Redis, sent: Sent) -> None:
    sweep = Sweep(job, client, send=sent, scope=SCOPE)
    client.lpush(queue_key(MODEL, scope=SCOPE), "message")

    for _ in range(3):
        sweep.look()

    assert sent.shards == [2]


def test_leased_and_committed_shards_are_left_alone(job: JobDir, client: redis.Redis, sent: Sent) -> None:
    sweep = Sweep(job, client, send=sent, scope=SCOPE)
    claim(client, job, 0)
    job.results_dir.mkdir()
    job.part_path(1).write_bytes(b"")

    for _ in range(3):
        sweep.look()

    assert sent.shards == [2]


def test_shard_seen_orphaned_once_and_then_leased_is_not_sent(job: JobDir, client: redis.Redis, sent: Sent) -> None:
    sweep = Sweep(job, client, send=sent, models={MODEL}, scope=SCOPE)
    sweep.look()
    lease = claim(client, job, 0)
    sweep.look()
    Leases(client).release(lease)

    sweep.look()

    assert sent.shards == [1]


def test_shard_of_a_living_holder_is_not_sent_after_a_flush(job: JobDir, client: redis.Redis, sent: Sent) -> None:
    """Between two looks is a renewal, which takes the lease back."""
    sweep = Sweep(job, client, send=sent, models={MODEL}, scope=SCOPE)
    lease = claim(client, job, 0)
    client.flushall()

    sweep.look()
    sweep.reap()
    Leases(client).renew(lease)
    sweep.look()
    sweep.reap()

    assert sent.shards == [1]


def test_only_orphans_of_the_given_models_are_sent(job: JobDir, client: redis.Redis, sent: Sent) -> None:
    sweep = Sweep(job, client, send=sent, models={"other"}, scope=SCOPE)

    sweep.look()
    sweep.look()

    assert sent.shards == [2]


def test_two_sweepers_send_one_message_between_them(job: JobDir, client: redis.Redis, sent: Sent) -> None:
    first, second = Sweep(job, client, send=sent, scope=SCOPE), Sweep(job, client, send=sent, scope=SCOPE)

    for sweep in (first, second, first, second):
        sweep.look()

    assert sorted(sent.shards) == [0, 1, 2]


def test_shard_that_fails_again_and_again_is_sent_at_growing_intervals(
    job: JobDir, client: redis.Redis, sent: Sent
) -> None:
    """Its attempts fail at once, so it is orphaned at every look; the broker's clock is moved by a second each time."""
    sweep = Sweep(job, client, send=sent, models={"other"}, scope=SCOPE)
    sent_at = []
    for second in range(2000):
        if sweep.look():
            sent_at.append(second)
        let_pass(client, job, 2, 1)

    intervals = [later - earlier for earlier, later in pairwise(sent_at)]

    # Nearly: what passes of the real time is added.
    assert intervals[:7] == pytest.approx([8, 16, 32, 64, 128, 256, 300], rel=0.2)
    assert intervals[7:] == pytest.approx([MAX_RESEND_INTERVAL_S] * len(intervals[7:]), rel=0.1)


def test_shard_that_makes_progress_is_sent_soon_again(job: JobDir, client: redis.Redis, sent: Sent) -> None:
    sweep = Sweep(job, client, send=sent, models={"other"}, scope=SCOPE)
    for _ in range(200):
        sweep.look()
        let_pass(client, job, 2, 1)
    assert len(sent.shards) == 5, "the next one is due in minutes"

    chunk = job.chunk_path(2, attempt=1, uid="abc", sequence=1)
    chunk.parent.mkdir(parents=True)
    chunk.touch()

    assert sweep.look() == 1
    let_pass(client, job, 2, 8)
    assert sweep.look() == 1


@pytest.mark.parametrize("halt", [JobDir.cancel, JobDir.pause])
def test_cancelled_and_paused_jobs_are_not_swept(
    job: JobDir, client: redis.Redis, sent: Sent, halt: Callable[[JobDir], object]
) -> None:
    sweep = Sweep(job, client, send=sent, scope=SCOPE)
    sweep.look()
    expire(client, claim(client, job, 1))
    halt(job)

    sweep.look()
    sweep.reap()

    assert sent.shards == []


# -- expired ------------------------------------------------------------------------------------------------------


def test_shard_whose_lease_expired_is_sent_at_once_and_is_the_next_one_taken(job: JobDir, client: redis.Redis) -> None:
    sent = Queued(client)
    for other in ("a", "b", "c"):
        client.lpush(queue_key(MODEL, scope=SCOPE), other)
    expire(client, claim(client, job, 1))

    Sweep(job, client, send=sent, scope=SCOPE).reap()

    assert sent.shards == [1]
    assert client.rpop(queue_key(MODEL, scope=SCOPE)) == b"1"
    assert client.llen(queue_key(MODEL, scope=SCOPE)) == 3


def test_no_pile_of_messages_grows_while_nobody_is_free(tmp_path: Path, client: redis.Redis) -> None:
    """A hundred shards wait, two workers died, nobody takes a message: one for each expiry, however often we look."""
    job = make_job(tmp_path / "job", (1,) * 102)
    sent = Queued(client)
    sent(job, job.manifest.shards[2:])
    sent.shards.clear()
    sweeps = [Sweep(job, client, send=sent, scope=SCOPE) for _ in range(5)]
    for shard in (0, 1):
        expire(client, claim(client, job, shard))

    for _ in range(20):
        for sweep in sweeps:
            sweep.reap()
            sweep.look()

    assert sorted(sent.shards) == [0, 1]
    assert client.llen(queue_key(MODEL, scope=SCOPE)) == 102


@pytest.mark.parametrize("models", [None, {MODEL}])
def test_shard_that_expired_before_the_sweep_began_is_sent_by_whoever_finds_it(
    job: JobDir, client: redis.Redis, sent: Sent, models: set[str] | None
) -> None:
    """It is handed out once, so who does not serve its model must not keep it to himself."""
    expire(client, claim(client, job, 2))

    Sweep(job, client, send=sent, models=models, scope=SCOPE).reap()

    assert sent.shards == [2]


def test_committed_shard_is_not_sent_though_its_lease_expired(job: JobDir, client: redis.Redis, sent: Sent) -> None:
    expire(client, claim(client, job, 1))
    job.results_dir.mkdir()
    job.part_path(1).write_bytes(b"")

    Sweep(job, client, send=sent, scope=SCOPE).reap()

    assert sent.shards == []


def test_expired_shard_that_could_not_be_sent_is_sent_the_next_time(
    job: JobDir, client: redis.Redis, sent: Sent
) -> None:
    expire(client, claim(client, job, 1))
    is_away = True

    def send(job: JobDir, shards: Sequence[ShardInfo]) -> int:
        if is_away:
            raise BrokerError("away")
        return sent(job, shards)

    sweep = Sweep(job, client, send=send, scope=SCOPE)
    with pytest.raises(BrokerError):
        sweep.reap()
    is_away = False

    sweep.reap()
    sweep.reap()

    assert sent.shards == [1]


def test_sweep_says_when_the_next_lease_can_expire(job: JobDir, client: redis.Redis) -> None:
    sweep = Sweep(job, client, send=Sent(), scope=SCOPE)
    assert sweep.reap() == math.inf
    lease = claim(client, job, 1)
    client.pexpire(lease.key, 12_000)

    assert 8 < sweep.reap() <= 12


# -- left by the dead ---------------------------------------------------------------------------------------------


def test_shards_of_a_dead_process_are_released_and_sent_at_once_and_no_others(
    job: JobDir, client: redis.Redis, sent: Sent
) -> None:
    claim(client, job, 0, worker="w", process="dead")
    claim(client, job, 1, worker="w-2", process="other")
    # Of the same name: a later process of that worker, or another worker.
    claim(client, job, 2, worker="w", process="living")

    Sweep(job, client, send=sent, scope=SCOPE).release_dead("dead")

    assert sent.shards == [0]
    assert set(Leases(client).held(job.manifest.identity, [0, 1, 2])) == {1, 2}


# -- the clock ----------------------------------------------------------------------------------------------------


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
