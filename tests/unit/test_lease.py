"""Leases against a real broker, by name and by clock of the broker."""

import pytest
import redis

from batcher.broker import embedded_broker, open_client
from batcher.errors import BrokerError
from batcher.lease import LEASE_TTL_MS, RENEW_INTERVAL_S, Leases, lease_key, new_lease


def expires_in_ms(client: redis.Redis, key: str) -> int:
    found = client.pttl(key)
    assert isinstance(found, int)
    return found


def test_of_two_claims_the_first_wins(client: redis.Redis) -> None:
    leases = Leases(client)
    mine, other = new_lease("job", 3, worker="a"), new_lease("job", 3, worker="b")

    assert leases.claim(mine)
    assert not leases.claim(other)
    assert client.get(lease_key("job", 3)) == mine.token.encode()


def test_lease_expires_after_three_missed_renewals(client: redis.Redis) -> None:
    leases = Leases(client)
    lease = new_lease("job", 3, worker="a")

    leases.claim(lease)

    assert LEASE_TTL_MS == 3 * RENEW_INTERVAL_S * 1000
    assert LEASE_TTL_MS - 5000 < expires_in_ms(client, lease.key) <= LEASE_TTL_MS


def test_renewal_extends_the_holders_lease(client: redis.Redis) -> None:
    leases = Leases(client)
    lease = new_lease("job", 3, worker="a")
    leases.claim(lease)
    client.pexpire(lease.key, 1000)

    assert leases.renew(lease)

    assert expires_in_ms(client, lease.key) > LEASE_TTL_MS - 5000


def test_renewal_takes_back_a_lease_that_vanished(client: redis.Redis) -> None:
    leases = Leases(client)
    lease = new_lease("job", 3, worker="a")
    leases.claim(lease)
    client.flushall()

    assert leases.renew(lease)

    assert client.get(lease.key) == lease.token.encode()
    assert expires_in_ms(client, lease.key) > LEASE_TTL_MS - 5000


def test_lease_of_another_is_neither_renewed_nor_released(client: redis.Redis) -> None:
    leases = Leases(client)
    mine, other = new_lease("job", 3, worker="a"), new_lease("job", 3, worker="b")
    leases.claim(other)
    client.pexpire(other.key, 1000)

    assert not leases.renew(mine)
    assert not leases.release(mine)

    assert client.get(other.key) == other.token.encode()
    assert expires_in_ms(client, other.key) <= 1000


def test_released_lease_can_be_claimed_at_once(client: redis.Redis) -> None:
    leases = Leases(client)
    first, second = new_lease("job", 3, worker="a"), new_lease("job", 3, worker="b")
    leases.claim(first)

    assert leases.release(first)

    assert leases.claim(second)


def test_two_attempts_of_one_worker_are_two_holders(client: redis.Redis) -> None:
    leases = Leases(client)
    first, second = new_lease("job", 3, worker="a"), new_lease("job", 3, worker="a")
    leases.claim(first)

    assert not leases.claim(second)
    assert not leases.release(second)


def test_held_names_the_leased_among_the_asked(client: redis.Redis) -> None:
    leases = Leases(client)
    for shard in (1, 4):
        leases.claim(new_lease("job", shard, worker="a"))
    leases.claim(new_lease("other", 2, worker="a"))

    held = leases.held("job", [0, 1, 2, 3, 4])

    assert {shard: lease.worker for shard, lease in held.items()} == {1: "a", 4: "a"}
    assert leases.held("job", []) == {}


def test_broker_that_is_away_is_a_broker_error(tmp_path_factory: pytest.TempPathFactory) -> None:
    with embedded_broker(tmp_path_factory.mktemp("short")) as url:
        client = open_client(url)
        leases = Leases(client)
    lease = new_lease("job", 3, worker="a")

    for call in (leases.claim, leases.renew, leases.release):
        with pytest.raises(BrokerError):
            call(lease)
    with pytest.raises(BrokerError):
        leases.held("job", [1])
    client.close()
