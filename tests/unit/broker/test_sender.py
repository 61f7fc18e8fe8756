"""Sending a job's shards: a window at a time, jobs in turn, and on from there by whoever is done with one."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis

from batcher.broker import sender as sending
from batcher.broker.client import count_waiting, cursor_key, queue_key, queue_name, queued_key
from batcher.broker.leases import Leases, new_lease
from batcher.broker.sender import MAX_WINDOW, WINDOW, Sender, turn_of
from batcher.errors import BrokerError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import WorkerHeartbeat, utc_now, write_heartbeat
from batcher.jobdir.pulse import WorkerState
from batcher.jobdir.standing import Standing, change_standing
from batcher.types import PRIORITIES
from tests.support.job_files import MODEL, make_bare_job, make_job
from tests.support.queues import SCOPE, commit, lose_next, take_next, waiting, waiting_shards


@pytest.fixture
def sender(broker_url: str) -> Sender:
    return Sender(broker_url, scope=SCOPE)


def show_worker(home: Path, name: str, *models: str) -> None:
    now = utc_now()
    beat = WorkerHeartbeat(
        *(name, "host", 1, "0", models, now, now, WorkerState.IDLE, 60.0),
        instance=name,
    )
    write_heartbeat(home, beat)


def work_through(sender: Sender, client: redis.Redis, jobs: list[JobDir]) -> list[str]:
    """Take and commit all there is, one after the other, as one worker does. Returns whose shards they were."""
    by_id = {job.job_id: job for job in jobs}
    done = []
    while (found := lose_next(client)) is not None:
        _, job_id, shard = found
        job = by_id[job_id]
        sender.turns(job).taken(job, MODEL, shard)
        commit(job, shard)
        sender.refill(job, MODEL)
        done.append(job_id)
        counts = Counter(of.partition("/")[0] for of in waiting(client))
        assert max(counts.values(), default=0) <= WINDOW
    return done


# -- the window ---------------------------------------------------------------------------------------------------


def test_job_of_many_shards_has_a_window_of_them_in_the_queue_until_its_end(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    job = make_bare_job(tmp_path / "job", 50)

    assert sender(job, job.manifest.shards) == 50

    assert waiting_shards(client) == list(range(WINDOW))
    assert work_through(sender, client, [job]) == ["job"] * 50
    assert job.pending_shards() == []


def test_large_shards_go_first(tmp_path: Path, client: redis.Redis, sender: Sender) -> None:
    job = make_job(tmp_path / "job", (1, 3, 2, 3))

    sender(job, job.manifest.shards)

    assert waiting_shards(client) == [1, 3, 2, 0]


def test_each_model_has_a_window_of_its_own_and_refused_rows_need_none(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    job = make_bare_job(tmp_path / "job", 60, models=[MODEL, "other", None])

    assert sender(job, job.manifest.shards) == 40

    assert len(waiting_shards(client)) == len(waiting_shards(client, model="other")) == WINDOW


@pytest.mark.parametrize("num_workers", [1, 3, MAX_WINDOW])
def test_window_grows_with_the_workers_that_have_the_model(
    tmp_path: Path, client: redis.Redis, broker_url: str, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_bare_job(tmp_path / "job", 1)
    for number in range(min(num_workers, 3)):
        show_worker(tmp_path, f"w{number}", MODEL, "third")
    show_worker(tmp_path, "others", "other")
    monkeypatch.setattr(sending, "WINDOW", WINDOW if num_workers <= 3 else MAX_WINDOW)

    window = Sender(broker_url, scope=SCOPE).window(job, MODEL)

    assert window == (WINDOW * (1 + num_workers) if num_workers <= 3 else MAX_WINDOW)


def test_workers_of_a_run_are_those_beside_its_job(tmp_path: Path, broker_url: str) -> None:
    job = make_bare_job(tmp_path / "job", 1)
    show_worker(tmp_path, "standing", MODEL)
    show_worker(job.path, "own-1", MODEL)
    show_worker(job.path, "own-2", MODEL)

    assert Sender(broker_url, scope=job.manifest.identity).window(job, MODEL) == 3 * WINDOW
    assert Sender(broker_url, scope=SCOPE).window(job, MODEL) == 2 * WINDOW


def test_shards_that_somebody_works_on_or_that_have_a_message_get_none(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    job = make_bare_job(tmp_path / "job", 4)
    Leases(client).claim(new_lease(job.manifest.identity, 1, worker="w", process="p"))
    commit(job, 2)

    for _ in range(3):
        sender(job, job.manifest.shards)

    assert waiting_shards(client) == [0, 3]


def test_job_whose_shards_are_opened_again_anywhere_is_sent_from_its_beginning(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    job = make_bare_job(tmp_path / "job", 200)
    sender(job, job.manifest.shards)
    work_through(sender, client, [job])
    opened = [job.manifest.shards[shard] for shard in range(3, 200, 5)]
    for info in opened:
        job.part_path(info.shard).unlink()

    assert sender(job, opened) == len(opened)

    assert waiting_shards(client) == [info.shard for info in opened[:WINDOW]]
    assert work_through(sender, client, [job]) == ["job"] * len(opened)


def test_two_that_send_at_once_keep_to_the_window(tmp_path: Path, client: redis.Redis, broker_url: str) -> None:
    """Each is done with one shard; the other's next is sent by whoever comes first."""
    job = make_bare_job(tmp_path / "job", 50)
    senders = [Sender(broker_url, scope=SCOPE) for _ in range(2)]
    senders[0](job, job.manifest.shards)
    for _ in range(2):
        shard = take_next(client, job)
        assert shard is not None
        commit(job, shard)

    assert [each.refill(job, MODEL) for each in (*senders, *senders)] == [2, 0, 0, 0]

    assert waiting_shards(client) == list(range(2, WINDOW + 2))


@pytest.mark.parametrize("halt", [JobDir.cancel, JobDir.pause])
def test_cancelled_and_paused_jobs_send_no_more(
    tmp_path: Path, client: redis.Redis, sender: Sender, halt: Callable[[JobDir], object]
) -> None:
    job = make_bare_job(tmp_path / "job", 50)
    sender(job, job.manifest.shards)
    while take_next(client, job) is not None:
        pass
    halt(job)

    assert sender.refill(job, MODEL) == 0


@pytest.mark.parametrize("lost", [(queued_key,), (cursor_key,), (queued_key, cursor_key)])
def test_what_the_broker_knows_of_a_job_can_be_lost(
    tmp_path: Path, client: redis.Redis, sender: Sender, lost: tuple[object, ...]
) -> None:
    """Without the set the lists are counted; without the cursor nobody but the sweep sends."""
    job = make_bare_job(tmp_path / "job", 50)
    sender(job, job.manifest.shards)
    assert take_next(client, job) == 0
    for make_key in lost:
        client.delete(make_key("job", queue_name(MODEL, scope=SCOPE)))  # type: ignore[operator]

    num_sent = sender.refill(job, MODEL)

    assert num_sent == (0 if cursor_key in lost else 1)
    assert len(waiting_shards(client)) <= WINDOW


def test_nonsense_in_the_brokers_keys_harms_nobody(tmp_path: Path, client: redis.Redis, sender: Sender) -> None:
    job = make_bare_job(tmp_path / "job", 3)
    client.set(cursor_key("job", queue_name(MODEL, scope=SCOPE)), "9" * 400)
    nonsense = [{"turn": "x", "of": "?/?"}, {"of": "job/" + "9" * 5000}, {"turn": "9" * 5000 + " 0", "of": "job/0"}]
    client.lpush(queue_key(MODEL, scope=SCOPE), "no message", *(json.dumps({"headers": each}) for each in nonsense))

    assert sender.refill(job, MODEL) == 0
    sender(job, job.manifest.shards)

    assert sorted(sender.turns(job).count(job, MODEL)) == [0, 1, 2]
    assert sorted(sender.turns(job).read(MODEL)["job"].shards) == [0, 1, 2]


def test_broker_that_is_away_is_named_with_the_way_to_go_on(tmp_path: Path) -> None:
    job = make_bare_job(tmp_path / "job", 1)

    with pytest.raises(BrokerError, match=r"the shards of job could not be queued: .*batcher resume"):
        Sender(f"redis+socket://{tmp_path}/none.sock", scope=SCOPE)(job, job.manifest.shards)


# -- turns --------------------------------------------------------------------------------------------------------


def test_jobs_take_turns_however_large_they_are_and_whenever_they_come(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    large = make_bare_job(tmp_path / "large", 60)
    sender(large, large.manifest.shards)
    small = make_bare_job(tmp_path / "small", 3)
    sender(small, small.manifest.shards)

    done = work_through(sender, client, [large, small])

    assert done[:6] == ["large", "small"] * 3
    assert Counter(done) == {"large": 60, "small": 3}


def test_equal_jobs_progress_alike(tmp_path: Path, client: redis.Redis, sender: Sender) -> None:
    jobs = [make_bare_job(tmp_path / name, 40) for name in ("a", "b", "c")]
    for job in jobs:
        sender(job, job.manifest.shards)

    done = work_through(sender, client, jobs)

    for end in range(1, len(done) + 1):
        counts = Counter(done[:end])
        assert max(counts.values()) - min(counts[job.job_id] for job in jobs) <= 1


def test_job_that_comes_late_does_not_make_up_for_what_it_missed(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    first = make_bare_job(tmp_path / "first", 60)
    sender(first, first.manifest.shards)
    for _ in range(30):
        shard = take_next(client, first)
        assert shard is not None
        commit(first, shard)
        sender.refill(first, MODEL)
    second = make_bare_job(tmp_path / "second", 30)
    sender(second, second.manifest.shards)

    done = work_through(sender, client, [first, second])

    assert done == ["first", "second"] * 30


def test_shard_that_was_begun_is_before_all_turns_and_moves_none_of_them(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    jobs = [make_bare_job(tmp_path / name, 20) for name in ("a", "b")]
    for job in jobs:
        sender(job, job.manifest.shards)
    assert lose_next(client) == (5, "a", 0)
    sender.turns(jobs[0]).taken(jobs[0], MODEL, 0)

    sender.send_first(jobs[0], MODEL, 0)
    sender.refill(jobs[1], MODEL)

    assert waiting(client)[:4] == ["a/0", "b/0", "a/1", "b/1"]


def test_messages_of_before_come_first_and_keep_their_order(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    """An older version sent all of a job at once, and none of its messages says whose it is."""
    for number in range(100):
        client.lpush(queue_key(MODEL, scope=SCOPE), json.dumps({"number": number}))
    job = make_bare_job(tmp_path / "job", 2)

    sender(job, job.manifest.shards)

    for number in range(100):
        message = client.rpop(queue_key(MODEL, scope=SCOPE))
        assert isinstance(message, bytes)
        assert json.loads(message) == {"number": number}
    assert waiting_shards(client) == [0, 1]


# -- priorities and times -----------------------------------------------------------------------------------------


def stand(job: JobDir, priority: int | None = None, *, hours: float | None = None) -> JobDir:
    at = None if hours is None else datetime(2026, 12, 1, tzinfo=UTC) + timedelta(hours=hours)
    change_standing(job, Standing(priority, at), forgets_time=hours is None)
    return job


def test_each_priority_goes_before_those_below_it(tmp_path: Path, client: redis.Redis, sender: Sender) -> None:
    for priority in (5, 0, 9, 3, 1, 8, 2, 7, 6, 4):
        job = stand(make_bare_job(tmp_path / f"p{priority}", 2), priority)
        sender(job, job.manifest.shards)

    assert waiting(client) == [f"p{priority}/{shard}" for priority in reversed(PRIORITIES) for shard in (0, 1)]


def test_what_waits_is_counted_by_priority_in_one_round_trip(
    tmp_path: Path, client: redis.Redis, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert count_waiting(client, [MODEL, "other"], scope=SCOPE) == {}
    for number, priority in ((1, 0), (2, 5), (3, 9), (4, 9)):
        job = stand(make_bare_job(tmp_path / str(number), number), priority)
        sender(job, job.manifest.shards)

    with monkeypatch.context() as patch:
        patch.setattr(client, "execute_command", None)  # all in the pipeline
        assert count_waiting(client, [MODEL, "other"], scope=SCOPE) == {MODEL: {9: 7, 5: 2, 0: 1}}


def test_shard_that_was_begun_is_first_of_its_priority_and_no_further(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    urgent, low = stand(make_bare_job(tmp_path / "urgent", 1), 9), stand(make_bare_job(tmp_path / "low", 2), 0)
    sender(urgent, urgent.manifest.shards)
    sender(low, low.manifest.shards)

    sender.send_first(low, MODEL, 1)

    assert waiting(client) == ["urgent/0", "low/1", "low/0", "low/1"]


def test_of_one_priority_the_earliest_to_be_finished_goes_first_and_equals_take_turns(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    for name, hours in (("any", None), ("late", 9), ("soon", 1), ("also", 1), ("other", None)):
        job = stand(make_bare_job(tmp_path / name, 2), hours=hours)
        sender(job, job.manifest.shards)

    order = [of.partition("/")[0] for of in waiting(client)]

    assert order == ["soon", "also", "soon", "also", "late", "late", "any", "other", "any", "other"]


def test_next_shards_go_to_the_priority_that_the_job_has_now(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    job = make_bare_job(tmp_path / "job", 50)
    sender(job, job.manifest.shards)
    for _ in range(3):
        take_next(client, job)
    stand(job, 9)

    assert sender.refill(job, MODEL) == 3

    assert waiting_shards(client) == [WINDOW, WINDOW + 1, WINDOW + 2, *range(3, WINDOW)]


def test_window_is_counted_over_all_priorities_where_the_set_is_lost(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    job = make_bare_job(tmp_path / "job", 50)
    sender(job, job.manifest.shards)
    stand(job, 2)
    client.delete(queued_key("job", queue_name(MODEL, scope=SCOPE)))

    sender(job, job.manifest.shards)
    sender.refill(job, MODEL)

    assert len(waiting_shards(client)) == WINDOW


@pytest.mark.parametrize(("priority", "hours"), [(9, None), (0, None), (None, 1.0), (7, 3.0)])
def test_messages_of_a_job_move_with_it_in_their_order_and_no_others(
    tmp_path: Path, client: redis.Redis, sender: Sender, priority: int | None, hours: float | None
) -> None:
    job, other = make_bare_job(tmp_path / "job", 3), make_bare_job(tmp_path / "other", 3)
    for each in (other, job):
        sender(each, each.manifest.shards)
    sender.send_first(job, MODEL, 2)

    stand(job, priority, hours=hours)
    sender.turns(job).move(job, MODEL, turn_of(job))

    own = ["job/2", "job/0", "job/1", "job/2"]
    others = ["other/0", "other/1", "other/2"]
    assert waiting(client) == (others + own if priority == 0 else own + others)
    assert sender.turns(job).read(MODEL)["job"].belongs_to(turn_of(job))
    assert client.scard(queued_key("job", queue_name(MODEL, scope=SCOPE))) == 3


def test_job_that_moves_takes_turns_with_those_that_are_there(
    tmp_path: Path, client: redis.Redis, sender: Sender
) -> None:
    there, job = stand(make_bare_job(tmp_path / "there", 3), 9), make_bare_job(tmp_path / "job", 3)
    for each in (there, job):
        sender(each, each.manifest.shards)

    sender.turns(job).move(stand(job, 9), MODEL, turn_of(job))

    assert waiting(client) == ["there/0", "job/0", "there/1", "job/1", "there/2", "job/2"]
