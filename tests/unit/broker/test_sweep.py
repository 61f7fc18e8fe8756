"""The sweep: sends the shards that nobody works on, as soon as that is sure, and no more often than that."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from batcher.broker.client import queue_name, queued_key, swept_key
from batcher.broker.leases import Lease, Leases, new_lease
from batcher.broker.sender import WINDOW, Sender
from batcher.broker.sweep import MAX_RESEND_INTERVAL_S, Every, Sweep
from batcher.errors import BrokerError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.standing import Standing, change_standing
from tests.support.job_files import MODEL, make_bare_job, make_job
from tests.support.queues import SCOPE, commit, lose_next, take_next, waiting, waiting_shards


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    return make_job(tmp_path / "job", (1, 1, 1), models=["tiny", "tiny", "other"])


@pytest.fixture
def sender(broker_url: str) -> Sender:
    return Sender(broker_url, scope=SCOPE)


def sent(client: redis.Redis) -> list[int]:
    """What lies in the queues of both models."""
    return [shard for model in (MODEL, "other") for shard in waiting_shards(client, model=model)]


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


def test_orphaned_shards_are_sent_at_the_second_look(job: JobDir, client: redis.Redis, sender: Sender) -> None:
    sweep = Sweep(job, client, sender=sender)

    assert sweep.look() == 0
    assert sweep.look() == 3

    assert sent(client) == [0, 1, 2]


def test_shards_are_not_sent_again_while_their_message_is_queued(
    job: JobDir, client: redis.Redis, sender: Sender
) -> None:
    sender(job, job.manifest.shards)
    assert lose_next(client, model="other") is not None

    for _ in range(3):
        Sweep(job, client, sender=sender, models={MODEL}).look()

    assert sent(client) == [0, 1]


def test_lost_message_is_found_though_the_queue_is_never_empty(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    """Other jobs have theirs there, and the job its others; its window is as full as it can be at its end."""
    other, job = make_bare_job(tmp_path / "other", 50), make_bare_job(tmp_path / "job", WINDOW)
    sender(job, job.manifest.shards)
    assert lose_next(client) == (5, "job", 0), "it dies before it says what it took"
    sender(other, other.manifest.shards)
    sweep = Sweep(job, client, sender=sender)

    assert [sweep.look() for _ in range(3)] == [0, 1, 0]

    assert waiting(client).count("job/0") == 1
    assert len(waiting(client)) == 2 * WINDOW


def test_job_goes_on_at_the_next_look_where_nobody_sent_its_next_shards(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    """A worker dies between its commit and sending the next."""
    job = make_bare_job(tmp_path / "job", 50)
    sender(job, job.manifest.shards)
    for shard in range(3):
        assert take_next(client, job) == shard
        commit(job, shard)

    assert Sweep(job, client, sender=sender).look() == 3

    assert waiting_shards(client) == list(range(3, WINDOW + 3))


def test_job_goes_on_where_it_had_come_to_after_the_broker_was_emptied(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    job = make_bare_job(tmp_path / "job", 100)
    sender(job, job.manifest.shards)
    for shard in range(60):
        assert take_next(client, job) == shard
        if shard != 7:
            commit(job, shard)
        sender.refill(job, MODEL)
    client.flushall()
    sweep = Sweep(job, client, sender=sender)

    assert [sweep.look() for _ in range(3)] == [0, WINDOW, 0]

    assert waiting_shards(client) == [7, *range(60, 60 + WINDOW - 1)]
    assert sender.refill(job, MODEL) == 0
    assert take_next(client, job) == 7
    assert sender.refill(job, MODEL) == 1, "the chain holds again"


def test_shards_that_fail_keep_no_other_from_being_found_after_the_broker_was_emptied(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    """A window full of them is given up by whoever takes them, and is due again in minutes."""
    job = make_bare_job(tmp_path / "job", 3 * WINDOW)
    sweep = Sweep(job, client, sender=sender)
    sweep.look()
    assert sweep.look() == WINDOW
    for _ in range(WINDOW):
        take_next(client, job)
    client.delete(*client.keys("batcher:cursor:*"))

    sweep.look()
    sweep.look()

    assert set(waiting_shards(client)) == set(range(WINDOW, 2 * WINDOW))


def test_messages_move_at_the_next_look_where_the_job_has_another_priority(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    job, other = make_bare_job(tmp_path / "job", 2), make_bare_job(tmp_path / "other", 2)
    for each in (other, job):
        sender(each, each.manifest.shards)
    sweep = Sweep(job, client, sender=sender)
    sweep.look()
    assert waiting(client) == ["other/0", "job/0", "other/1", "job/1"]

    change_standing(job, Standing(priority=6))
    sweep.look()

    assert waiting(client) == ["job/0", "job/1", "other/0", "other/1"]


def test_what_a_worker_died_with_does_not_narrow_the_window(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    job = make_bare_job(tmp_path / "job", 50)
    sender(job, job.manifest.shards)
    for shard in range(4):
        assert lose_next(client) == (5, "job", shard)
        commit(job, shard)
    queued = queued_key("job", queue_name(MODEL, scope=SCOPE))
    assert client.scard(queued) == WINDOW

    Sweep(job, client, sender=sender).look()

    assert waiting_shards(client) == list(range(4, WINDOW + 4))
    assert client.scard(queued) == WINDOW


def test_leased_and_committed_shards_are_left_alone(job: JobDir, client: redis.Redis, sender: Sender) -> None:
    sweep = Sweep(job, client, sender=sender)
    claim(client, job, 0)
    commit(job, 1)

    for _ in range(3):
        sweep.look()

    assert sent(client) == [2]


def test_shard_seen_orphaned_once_and_then_leased_is_not_sent(job: JobDir, client: redis.Redis, sender: Sender) -> None:
    sweep = Sweep(job, client, sender=sender, models={MODEL})
    sweep.look()
    lease = claim(client, job, 0)
    sweep.look()
    Leases(client).release(lease)

    sweep.look()

    assert sent(client) == [1]


def test_shard_of_a_living_holder_is_not_sent_after_a_flush(job: JobDir, client: redis.Redis, sender: Sender) -> None:
    """Between two looks is a renewal, which takes the lease back."""
    sweep = Sweep(job, client, sender=sender, models={MODEL})
    lease = claim(client, job, 0)
    client.flushall()

    sweep.look()
    sweep.reap()
    Leases(client).renew(lease)
    sweep.look()
    sweep.reap()

    assert sent(client) == [1]


def test_only_orphans_of_the_given_models_are_sent(job: JobDir, client: redis.Redis, sender: Sender) -> None:
    sweep = Sweep(job, client, sender=sender, models={"other"})

    sweep.look()
    sweep.look()

    assert sent(client) == [2]


def test_two_sweepers_send_one_message_between_them(job: JobDir, client: redis.Redis, sender: Sender) -> None:
    first, second = Sweep(job, client, sender=sender), Sweep(job, client, sender=sender)

    for sweep in (first, second, first, second):
        sweep.look()

    assert sorted(sent(client)) == [0, 1, 2]


def test_shard_that_fails_again_and_again_is_sent_at_growing_intervals(
    job: JobDir, client: redis.Redis, sender: Sender
) -> None:
    """Its attempts fail at once, so it is orphaned at every look; the broker's clock is moved by a second each time."""
    sweep = Sweep(job, client, sender=sender, models={"other"})
    sent_at = []
    for second in range(2000):
        if sweep.look():
            sent_at.append(second)
            assert take_next(client, job, model="other") == 2
        let_pass(client, job, 2, 1)

    intervals = [later - earlier for earlier, later in pairwise(sent_at)]

    # Nearly: what passes of the real time is added.
    assert intervals[:7] == pytest.approx([8, 16, 32, 64, 128, 256, 300], rel=0.2)
    assert intervals[7:] == pytest.approx([MAX_RESEND_INTERVAL_S] * len(intervals[7:]), rel=0.1)


def test_shard_that_makes_progress_is_sent_soon_again(job: JobDir, client: redis.Redis, sender: Sender) -> None:
    sweep = Sweep(job, client, sender=sender, models={"other"})
    num_sent = 0
    for _ in range(200):
        num_sent += sweep.look()
        take_next(client, job, model="other")
        let_pass(client, job, 2, 1)
    assert num_sent == 5, "the next one is due in minutes"

    chunk = job.chunk_path(2, attempt=1, uid="abc", sequence=1)
    chunk.parent.mkdir(parents=True)
    chunk.touch()

    assert sweep.look() == 1
    assert take_next(client, job, model="other") == 2
    let_pass(client, job, 2, 8)
    assert sweep.look() == 1


@pytest.mark.parametrize("halt", [JobDir.cancel, JobDir.pause])
def test_cancelled_and_paused_jobs_are_not_swept(
    job: JobDir, client: redis.Redis, sender: Sender, halt: Callable[[JobDir], object]
) -> None:
    sweep = Sweep(job, client, sender=sender)
    sweep.look()
    expire(client, claim(client, job, 1))
    halt(job)

    sweep.look()
    sweep.reap()

    assert sent(client) == []


# -- expired ------------------------------------------------------------------------------------------------------


def test_shard_whose_lease_expired_is_sent_at_once_and_is_the_next_one_taken(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    job, other = make_bare_job(tmp_path / "job", 3), make_bare_job(tmp_path / "other", 3)
    sender(other, other.manifest.shards)
    expire(client, claim(client, job, 1))

    Sweep(job, client, sender=sender).reap()

    assert waiting(client) == ["job/1", "other/0", "other/1", "other/2"]


def test_no_pile_of_messages_grows_while_nobody_is_free(tmp_path: Path, client: redis.Redis, sender: Sender) -> None:
    """A hundred shards wait, two workers died, nobody takes a message: one for each expiry, however often we look."""
    job = make_bare_job(tmp_path / "job", 102)
    sender(job, job.manifest.shards)
    sweeps = [Sweep(job, client, sender=sender) for _ in range(5)]
    assert [take_next(client, job) for _ in range(2)] == [0, 1]
    leases = [claim(client, job, shard) for shard in range(2)]
    sweeps[0].look()
    for lease in leases:
        expire(client, lease)

    for _ in range(20):
        for sweep in sweeps:
            sweep.reap()
            sweep.look()

    assert sorted(waiting_shards(client)) == list(range(WINDOW + 2))


@pytest.mark.parametrize("models", [None, {MODEL}])
def test_shard_that_expired_before_the_sweep_began_is_sent_by_whoever_finds_it(
    job: JobDir, client: redis.Redis, sender: Sender, models: set[str] | None
) -> None:
    """It is handed out once, so who does not serve its model must not keep it to himself."""
    expire(client, claim(client, job, 2))

    Sweep(job, client, sender=sender, models=models).reap()

    assert sent(client) == [2]


def test_committed_shard_is_not_sent_though_its_lease_expired(job: JobDir, client: redis.Redis, sender: Sender) -> None:
    expire(client, claim(client, job, 1))
    commit(job, 1)

    Sweep(job, client, sender=sender).reap()

    assert sent(client) == []


def test_expired_shard_that_could_not_be_sent_is_sent_the_next_time(
    job: JobDir, client: redis.Redis, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    expire(client, claim(client, job, 1))
    away = Sender("redis://127.0.0.1:1/0", scope=SCOPE)
    sweep = Sweep(job, client, sender=away)
    with pytest.raises(BrokerError):
        sweep.reap()
    monkeypatch.setattr(away, "send_first", sender.send_first)

    sweep.reap()
    sweep.reap()

    assert sent(client) == [1]


def test_sweep_says_when_the_next_lease_can_expire(job: JobDir, client: redis.Redis, sender: Sender) -> None:
    sweep = Sweep(job, client, sender=sender)
    assert sweep.reap() == math.inf
    lease = claim(client, job, 1)
    client.pexpire(lease.key, 12_000)

    assert 8 < sweep.reap() <= 12


# -- left by the dead ---------------------------------------------------------------------------------------------


def test_shards_of_a_dead_process_are_released_and_sent_at_once_and_no_others(
    job: JobDir, client: redis.Redis, sender: Sender
) -> None:
    claim(client, job, 0, worker="w", process="dead")
    claim(client, job, 1, worker="w-2", process="other")
    # Of the same name: a later process of that worker, or another worker.
    claim(client, job, 2, worker="w", process="living")

    Sweep(job, client, sender=sender).release_dead("dead")

    assert sent(client) == [0]
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
