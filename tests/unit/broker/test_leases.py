"""Leases against a real broker: its scripts, its clock; and a model of them under a clock that a test moves."""

import contextlib
import math
import time
from collections.abc import Iterator

import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batcher.broker.client import claimed_key, lease_key, open_client
from batcher.broker.embedded import embedded_broker
from batcher.broker.leases import BackgroundLeases, Lease, Leases, Pace, new_lease
from batcher.errors import BrokerError
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for

TTL_MS = 30_000


def expires_in_ms(client: redis.Redis, key: str) -> int:
    found = client.pttl(key)
    assert isinstance(found, int)
    return found


def expire(client: redis.Redis, lease: Lease) -> None:
    """What the broker does when a lease ran out."""
    assert client.delete(lease.key) == 1


@pytest.fixture
def leases(client: redis.Redis) -> Leases:
    return Leases(client)


def claimed(leases: Leases, shard: int) -> Lease:
    lease = new_lease("job", shard, worker="a", process="p1")
    assert leases.claim(lease)
    return lease


def test_of_two_claims_the_first_wins(client: redis.Redis, leases: Leases) -> None:
    mine, other = new_lease("job", 3, worker="a", process="p1"), new_lease("job", 3, worker="b", process="p1")

    assert leases.claim(mine)
    assert not leases.claim(other)
    assert client.get(lease_key("job", 3)) == mine.token.encode()


def test_claim_whose_answer_was_lost_can_be_repeated(leases: Leases) -> None:
    lease = new_lease("job", 3, worker="a", process="p1")

    assert leases.claim(lease)
    assert leases.claim(lease)


@pytest.mark.parametrize("ttl_s", [30.0, 3.0, 0.5])
def test_lease_lives_for_its_time_and_bears_missed_renewals(client: redis.Redis, ttl_s: float) -> None:
    leases = Leases(client, ttl_s=ttl_s)
    lease = new_lease("job", 3, worker="a", process="p1")

    leases.claim(lease)

    assert ttl_s * 1000 - 400 < expires_in_ms(client, lease.key) <= ttl_s * 1000
    assert leases.pace.renewal_interval_s * 10 == pytest.approx(ttl_s)


def test_default_pace_finds_a_dead_holder_within_35_seconds_and_bears_a_flush() -> None:
    pace = Pace()

    assert pace.ttl_s + pace.sweep_interval_s < 35
    assert pace.sweep_interval_s > pace.renewal_interval_s


def test_renewal_extends_the_holders_lease(client: redis.Redis, leases: Leases) -> None:
    lease = claimed(leases, 3)
    client.pexpire(lease.key, 1000)

    assert leases.renew(lease)

    assert expires_in_ms(client, lease.key) > TTL_MS - 5000


def test_renewal_takes_back_a_lease_that_vanished(client: redis.Redis, leases: Leases) -> None:
    lease = claimed(leases, 3)
    client.flushall()

    assert leases.renew(lease)

    assert client.get(lease.key) == lease.token.encode()
    assert expires_in_ms(client, lease.key) > TTL_MS - 5000
    assert leases.claimed("job") == [3]


def test_lease_of_another_is_neither_renewed_nor_released(client: redis.Redis, leases: Leases) -> None:
    mine, other = new_lease("job", 3, worker="a", process="p1"), new_lease("job", 3, worker="b", process="p1")
    leases.claim(other)
    client.pexpire(other.key, 1000)

    assert not leases.renew(mine)
    assert not leases.release(mine)

    assert client.get(other.key) == other.token.encode()
    assert expires_in_ms(client, other.key) <= 1000
    assert leases.claimed("job") == [3]


def test_released_lease_can_be_claimed_at_once(leases: Leases) -> None:
    first, second = new_lease("job", 3, worker="a", process="p1"), new_lease("job", 3, worker="b", process="p1")
    leases.claim(first)

    assert leases.release(first)

    assert leases.claim(second)


def test_two_attempts_of_one_worker_are_two_holders(leases: Leases) -> None:
    first, second = new_lease("job", 3, worker="a", process="p1"), new_lease("job", 3, worker="a", process="p1")
    leases.claim(first)

    assert not leases.claim(second)
    assert not leases.release(second)


def test_held_names_the_leased_among_the_asked(leases: Leases) -> None:
    for shard in (1, 4):
        leases.claim(new_lease("job", shard, worker="a", process="p1"))
    leases.claim(new_lease("other", 2, worker="a", process="p1"))

    held = leases.held("job", [0, 1, 2, 3, 4])

    assert {shard: lease.worker for shard, lease in held.items()} == {1: "a", 4: "a"}
    assert leases.held("job", []) == {}


def test_expired_lease_is_told_to_one_reaper_once(client: redis.Redis, leases: Leases) -> None:
    dead, alive = new_lease("job", 10, worker="dead", process="p1"), new_lease("job", 9, worker="alive", process="p1")
    for lease in (dead, alive, new_lease("other", 10, worker="dead", process="p1")):
        leases.claim(lease)
    expire(client, dead)

    assert leases.reap("job").expired == (10,)

    assert leases.reap("job").expired == ()
    assert leases.claimed("job") == [9]


def test_lease_given_back_or_flushed_is_not_reaped(client: redis.Redis, leases: Leases) -> None:
    released, flushed = new_lease("job", 1, worker="a", process="p1"), new_lease("job", 2, worker="a", process="p1")
    leases.claim(released)
    leases.release(released)
    assert leases.reap("job").expired == ()

    leases.claim(flushed)
    client.flushall()
    assert leases.reap("job").expired == ()


def test_shard_whose_lease_expired_unnoticed_before_its_release_is_not_reaped(
    client: redis.Redis, leases: Leases
) -> None:
    lease = claimed(leases, 1)
    expire(client, lease)

    assert not leases.release(lease)

    assert leases.reap("job").expired == ()


def test_reaper_says_when_the_next_lease_can_expire(client: redis.Redis, leases: Leases) -> None:
    assert leases.reap("job").next_expiry_s == math.inf
    first, second = new_lease("job", 1, worker="a", process="p1"), new_lease("job", 2, worker="a", process="p1")
    leases.claim(first)
    leases.claim(second)
    client.pexpire(first.key, 20_000)

    assert 15 < leases.reap("job").next_expiry_s <= 20

    expire(client, first)
    assert 25 < leases.reap("job").next_expiry_s <= 30


def test_claimed_set_does_not_outlive_a_deleted_job_for_long(client: redis.Redis) -> None:
    Leases(client).claim(new_lease("job", 1, worker="a", process="p1"))

    assert 0 < expires_in_ms(client, claimed_key("job")) <= 86_400_000


def test_server_with_full_memory_refuses_a_claim_and_grants_a_renewal(client: redis.Redis, leases: Leases) -> None:
    held, refused = new_lease("job", 1, worker="a", process="p1"), new_lease("job", 2, worker="a", process="p1")
    leases.claim(held)
    client.config_set("maxmemory", 1)
    try:
        assert leases.renew(held)
        with pytest.raises(BrokerError, match="maxmemory"):
            leases.claim(refused)
        assert leases.release(held)
    finally:
        client.config_set("maxmemory", 0)
    assert leases.claimed("job") == []


def test_broker_that_is_away_is_a_broker_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    with embedded_broker(tmp_path_factory.mktemp("short")) as url:
        client = open_client(url)
        leases = Leases(client)
    lease = new_lease("job", 3, worker="a", process="p1")

    for call in (leases.claim, leases.renew, leases.release):
        with pytest.raises(BrokerError):
            call(lease)
    for ask in (leases.claimed, leases.reap):
        with pytest.raises(BrokerError):
            ask("job")
    with pytest.raises(BrokerError):
        leases.held("job", [1])
    client.close()


# -- in the background --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def in_background(client: redis.Redis) -> Iterator[BackgroundLeases]:
    """Ends when its thread needs `client` no more: one that is closed under it would end it with a traceback."""
    leases = BackgroundLeases(client)
    yield leases
    wait_for(lambda: not leases._pending, what="no renewal is under way")


def test_background_renewal_waits_for_no_broker(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server.client() as client, in_background(client) as leases:
        lease = new_lease("job", 3, worker="a", process="p1")
        leases.claim(lease)
        client.pexpire(lease.key, 20_000)
        redis_server.freeze()

        began_at = time.monotonic()
        for _ in range(5):
            assert leases.renew(lease)

        assert time.monotonic() - began_at < 5, "the broker answers, or the client gives up, after 10"
        redis_server.thaw()
        wait_for(lambda: expires_in_ms(client, lease.key) > 25_000, what="the lease is renewed")


def test_background_renewal_bears_a_broker_that_is_away_and_says_so_once(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server.client() as client, in_background(client) as leases:
        lease = new_lease("job", 3, worker="a", process="p1")
        leases.claim(lease)
        redis_server.kill()

        for _ in range(3):
            assert leases.renew(lease)
            wait_for(lambda: lease.token not in leases._pending, what="the renewal is tried")
        redis_server.start()
        assert leases.renew(lease)

        wait_for(lambda: client.get(lease.key) == lease.token.encode(), what="the lease is taken again")
        wait_for(lambda: "the broker is back" in caplog.text, what="the log says so")
    assert caplog.text.count("worked on without") == 1


def test_background_renewal_notices_a_lost_lease_the_next_time(client: redis.Redis) -> None:
    with in_background(client) as leases:
        lease, other = new_lease("job", 3, worker="a", process="p1"), new_lease("job", 3, worker="b", process="p1")
        leases.claim(lease)
        expire(client, lease)
        Leases(client).claim(other)

        wait_for(lambda: not leases.renew(lease), what="the loss is noticed", timeout_s=10)

        assert not leases.release(lease)
        assert client.get(lease.key) == other.token.encode()


def test_background_renewal_never_takes_back_what_was_released(client: redis.Redis) -> None:
    with in_background(client) as leases:
        for number in range(300):
            lease = new_lease("job", number, worker="a", process="p1")
            leases.claim(lease)
            leases.renew(lease)
            assert leases.release(lease)

        last = new_lease("job", 1000, worker="a", process="p1")
        leases.renew(last)
        wait_for(lambda: client.exists(last.key), what="every renewal is done")

        assert client.keys("batcher:lease:*") == [last.key.encode()]
        assert leases.claimed("job") == [1000]


# -- the model ----------------------------------------------------------------------------------------------------

SHARDS = range(2)
HOLDERS = range(3)


class LeaseMachine(RuleBasedStateMachine):
    """Several holders of the leases of two shards, a reaper, and a broker that is flushed now and then.

    The clock is the test's: it moves by shortening what the real leases in the real broker have to live. It moves by
    five seconds at least, in which many examples run, so the real clock decides nothing.
    """

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.leases = Leases(self.client)
        #: What each holder would claim each shard with.
        self.tokens = {
            (who, shard): new_lease("job", shard, worker=f"w{who}", process="p1") for who in HOLDERS for shard in SHARDS
        }
        #: Who has a shard by the model, and the milliseconds that he has it for.
        self.holder: dict[int, int] = {}
        self.ttl_ms: dict[int, int] = {}
        #: Shards whose holder let them expire, not handed out yet.
        self.expired: set[int] = set()

    @initialize()
    def begin_empty(self) -> None:
        assert self.leases.claimed("job") == []

    @rule(who=st.sampled_from(HOLDERS), shard=st.sampled_from(SHARDS))
    def claim(self, who: int, shard: int) -> None:
        assert self.leases.claim(self.tokens[who, shard]) is self._take(who, shard)

    @rule(who=st.sampled_from(HOLDERS), shard=st.sampled_from(SHARDS))
    def renew(self, who: int, shard: int) -> None:
        assert self.leases.renew(self.tokens[who, shard]) is self._take(who, shard)

    def _take(self, who: int, shard: int) -> bool:
        if self.holder.get(shard, who) != who:
            return False
        self.holder[shard] = who
        self.ttl_ms[shard] = TTL_MS
        self.expired.discard(shard)
        return True

    @rule(who=st.sampled_from(HOLDERS), shard=st.sampled_from(SHARDS))
    def release(self, who: int, shard: int) -> None:
        had_it = self.holder.get(shard) == who
        assert self.leases.release(self.tokens[who, shard]) is had_it
        if had_it:
            self._drop(shard)
        elif shard not in self.holder:
            self.expired.discard(shard)

    @rule(seconds=st.sampled_from([5, 10, 25, 35]))
    def let_time_pass(self, seconds: int) -> None:
        for shard in SHARDS:
            key = lease_key("job", shard)
            left_ms = expires_in_ms(self.client, key)
            if left_ms > 0:
                # Less than nothing to live is an end at once, as with the real clock.
                self.client.pexpire(key, left_ms - seconds * 1000)
        for shard in list(self.holder):
            self.ttl_ms[shard] -= seconds * 1000
            if self.ttl_ms[shard] <= 0:
                self._drop(shard)
                self.expired.add(shard)

    @rule()
    def reap(self) -> None:
        reaped = self.leases.reap("job")
        assert set(reaped.expired) == self.expired
        self.expired.clear()
        soonest_ms = min(self.ttl_ms.values(), default=None)
        if soonest_ms is None:
            assert reaped.next_expiry_s == math.inf
        else:
            assert soonest_ms - 4900 < reaped.next_expiry_s * 1000 <= soonest_ms

    @rule()
    def flush(self) -> None:
        self.client.flushall()
        for shard in list(self.holder):
            self._drop(shard)
        self.expired.clear()

    @precondition(lambda self: self.holder)
    @rule(data=st.data())
    def work_with_renewals(self, data: st.DataObject) -> None:
        """A holder that renews in time never loses its lease, however long it works."""
        shard = data.draw(st.sampled_from(sorted(self.holder)))
        who = self.holder[shard]
        for _ in range(3):
            if self.ttl_ms[shard] > 10_000:
                self.let_time_pass(10)
            self.renew(who, shard)
        assert self.holder[shard] == who

    @invariant()
    def has_the_holders_of_the_model(self) -> None:
        held = self.leases.held("job", list(SHARDS))
        assert {shard: lease.worker for shard, lease in held.items()} == {s: f"w{w}" for s, w in self.holder.items()}
        assert set(self.leases.claimed("job")) == self.holder.keys() | self.expired

    def _drop(self, shard: int) -> None:
        del self.holder[shard]
        del self.ttl_ms[shard]


def test_leases_behave_like_their_model(client: redis.Redis) -> None:
    class Machine(LeaseMachine):
        pass

    Machine.client = client

    run_state_machine_as_test(Machine, settings=settings(max_examples=60, stateful_step_count=30))


def test_lease_that_a_clock_set_back_would_keep_for_a_day_ends_in_its_time(client: redis.Redis, leases: Leases) -> None:
    lease = new_lease("job", 1, worker="a", process="p1", pace=leases.pace)
    leases.claim(lease)
    client.pexpire(lease.key, 86_400_000)

    reaped = leases.reap("job")

    assert reaped.expired == ()
    assert reaped.next_expiry_s <= leases.pace.ttl_s
    assert client.pttl(lease.key) <= leases.pace.ttl_s * 1000
