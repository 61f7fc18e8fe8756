"""The sweeper's thread: when it ticks, what it bears, whom it tells."""

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from batcher.broker.client import queue_key, queue_keys
from batcher.broker.leases import Leases, new_lease
from batcher.broker.sender import Sender
from batcher.errors import BrokerError, JobError
from batcher.jobdir.folder import JobDir, Watch
from tests.support.job_files import MODEL, make_job
from tests.support.waiting import wait_for
from workers.queue.sweeper import JobSweep, RootSweep, Sweeper, Tick, drop_own_queues

#: Of the queues.
SCOPE = "here"
#: Seconds. Longer than any test: a round that comes before it was asked for.
LONG_S = 1000.0


class Rounds:
    """A tick that notes what it was told, and fails as often as it is told to."""

    def __init__(self, *, wait_s: float = LONG_S) -> None:
        self.deaths: list[list[str]] = []
        self.error: Exception | None = None
        self._wait_s = wait_s

    def __call__(self, deaths: Sequence[str]) -> float:
        self.deaths.append(list(deaths))
        if self.error is not None:
            raise self.error
        return self._wait_s


def sweeping(tick: Tick, *, patience_s: float | None = None, retry_interval_s: float = 0.05) -> Sweeper:
    return Sweeper(tick, patience_s=patience_s, retry_interval_s=retry_interval_s)


def is_sweeping() -> bool:
    return any(thread.name == "sweeper" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_sweeper_of_the_last_test() -> None:
    """They end by themselves, a moment after their block."""
    wait_for(lambda: not is_sweeping(), what="the last test's sweeper is gone", timeout_s=10)


def test_first_round_is_at_once_and_the_next_when_it_is_due() -> None:
    rounds = Rounds(wait_s=0.01)

    with sweeping(rounds):
        wait_for(lambda: len(rounds.deaths) >= 5, what="five rounds", timeout_s=10)


def test_death_brings_the_next_round_at_once() -> None:
    rounds = Rounds()
    with sweeping(rounds) as sweeper:
        wait_for(lambda: len(rounds.deaths) == 1, what="the first round", timeout_s=10)

        sweeper.on_death("seven")

        wait_for(lambda: len(rounds.deaths) == 2, what="the next round", timeout_s=10)
    assert rounds.deaths == [[], ["seven"]]


def test_death_is_told_again_where_the_broker_was_away() -> None:
    rounds = Rounds()
    rounds.error = BrokerError("away")
    with sweeping(rounds) as sweeper:
        sweeper.on_death("seven")
        wait_for(lambda: len([told for told in rounds.deaths if told]) >= 2, what="it is told twice", timeout_s=10)
        rounds.error = None
        number = len(rounds.deaths)
        wait_for(lambda: len(rounds.deaths) > number, what="a round that goes well", timeout_s=10)

        sweeper.on_death("eight")
        wait_for(lambda: ["eight"] in rounds.deaths, what="only what is new is told", timeout_s=10)
        sweeper.check()


def test_broker_that_is_away_for_too_long_ends_the_sweeping_and_says_for_how_long() -> None:
    rounds = Rounds()
    rounds.error = BrokerError("broker: nobody is there")

    with sweeping(rounds, patience_s=0.2) as sweeper:
        wait_for(lambda: not is_sweeping(), what="it gives up", timeout_s=10)
        with pytest.raises(BrokerError, match="nobody is there; the broker has been away for 0 s"):
            sweeper.check()
    assert len(rounds.deaths) > 1


def test_broker_that_comes_back_in_time_is_forgiven(caplog: pytest.LogCaptureFixture) -> None:
    rounds = Rounds(wait_s=0.01)
    rounds.error = BrokerError("away")
    with sweeping(rounds, patience_s=60) as sweeper:
        wait_for(lambda: len(rounds.deaths) >= 3, what="three rounds", timeout_s=10)
        rounds.error = None
        number = len(rounds.deaths)
        wait_for(lambda: len(rounds.deaths) > number + 3, what="it goes on", timeout_s=10)
        sweeper.check()
    assert caplog.text.count("away; trying on") == 1, "said once, not at each try"


def test_what_comes_first_is_tried_until_the_broker_takes_it_and_then_done_with() -> None:
    rounds = Rounds(wait_s=0.01)
    calls: list[int] = []

    def send() -> None:
        calls.append(len(rounds.deaths))
        if len(calls) < 3:
            raise BrokerError("away")

    with Sweeper(rounds, first=send, patience_s=60, retry_interval_s=0.05) as sweeper:
        wait_for(lambda: len(rounds.deaths) >= 3, what="three rounds", timeout_s=10)
        sweeper.check()
    assert calls == [0, 0, 0]


def test_error_that_is_no_brokers_ends_the_sweeping() -> None:
    rounds = Rounds()
    rounds.error = JobError("damaged")
    with sweeping(rounds) as sweeper:
        wait_for(lambda: not is_sweeping(), what="it ends", timeout_s=10)
        with pytest.raises(JobError, match="damaged"):
            sweeper.check()


def test_shards_of_the_dead_are_found_in_a_job_that_is_newer_than_the_last_look(
    tmp_path: Path, broker_url: str, client: redis.Redis
) -> None:
    sweep = RootSweep(tmp_path, broker_url, models=frozenset([MODEL]), lease_ttl_s=30, scope=SCOPE)
    sweep.tick([])
    job = make_job(tmp_path / "new", (1, 1))
    Leases(client).claim(new_lease(job.manifest.identity, 1, worker="w", process="seven"))

    sweep.tick(["seven"])

    assert Leases(client).held(job.manifest.identity, [0, 1]) == {}
    assert client.llen(queue_key(MODEL, scope=SCOPE)) == 1


def test_damaged_job_does_not_keep_others_from_being_swept(
    tmp_path: Path, broker_url: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = make_job(tmp_path / "a", (1,))
    damaged.manifest_path.write_bytes(b"{")
    job = make_job(tmp_path / "b", (1,))
    lease = new_lease(job.manifest.identity, 0, worker="w", process="p")
    Leases(client).claim(lease)
    client.delete(lease.key)

    RootSweep(tmp_path, broker_url, models=frozenset([MODEL]), lease_ttl_s=30, scope=SCOPE).tick([])

    assert client.llen(queue_key(MODEL, scope=SCOPE)) == 1
    assert "job a is not swept" in caplog.text


def test_round_is_due_when_the_first_lease_can_expire(tmp_path: Path, broker_url: str, client: redis.Redis) -> None:
    job = make_job(tmp_path / "job", (1, 1))
    sweep = JobSweep(Watch(job), broker_url, lease_ttl_s=30, scope=SCOPE)
    assert sweep.tick([]) == 4
    lease = new_lease(job.manifest.identity, 0, worker="w", process="p")
    Leases(client).claim(lease)

    client.pexpire(lease.key, 3_000)

    assert 1 < sweep.tick([]) < 3.1


def test_queues_of_a_job_of_its_own_expire_and_those_of_a_jobs_folder_do_not(
    tmp_path: Path, broker_url: str, client: redis.Redis
) -> None:
    """A command that is killed leaves its queues behind; they are renewed for as long as it lives."""
    job = make_job(tmp_path / "job", (1, 1))
    own = job.manifest.identity
    Sender(broker_url, scope=own)(job, job.manifest.shards)
    for scope in (own, SCOPE):
        for key in queue_keys(MODEL, scope=scope):
            client.lpush(key, "message")

    for scope in (own, SCOPE):
        JobSweep(Watch(job), broker_url, scope=scope, lease_ttl_s=30).tick([])

    assert len(client.keys(f"batcher:*{own}*")) == 10 + 2 + 2
    assert all(0 < client.ttl(key) <= 86_400 for key in client.keys(f"batcher:*{own}*"))
    assert {client.ttl(key) for key in queue_keys(MODEL, scope=SCOPE)} == {-1}
    drop_own_queues(job, broker_url)
    assert client.keys(f"batcher:*{own}*") == []
    assert client.exists(*queue_keys(MODEL, scope=SCOPE)) == 12


def test_broker_that_is_away_keeps_nobody_from_ending(tmp_path: Path) -> None:
    drop_own_queues(JobDir(tmp_path / "none"), "redis://127.0.0.1:1/0")
    job = make_job(tmp_path / "job", (1,))

    drop_own_queues(job, f"redis+socket://{tmp_path}/none.sock")
    drop_own_queues(job, "redis://127.0.0.1:1/0")
