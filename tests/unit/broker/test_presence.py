"""Who works at a broker: what a worker says of itself there, and who reads it."""

from dataclasses import replace
from pathlib import Path

import pytest
import redis

from batcher.broker.client import WORKERS_KEY, connect, worker_key
from batcher.broker.presence import Announcer, Presence, read_present
from batcher.errors import BrokerError
from tests.support.redis_server import RedisServer

ME = Presence("w1", "host-a", 17, "0.1.0", "scope-a", "/mnt/jobs", ("tiny", "gemma3:27b"))


def test_workers_of_all_folders_are_read_until_they_withdraw(redis_url: str) -> None:
    other = replace(ME, name="w2", scope="scope-b", folder="/data/wrong")
    announcers = [Announcer(redis_url, each, pause_s=4) for each in (ME, other)]
    for announcer in announcers:
        announcer.renew()
        announcer.renew()

    with connect(redis_url) as client:
        assert read_present(client) == [other, ME]
        assert announcers[0].others() == [other]

        announcers[1].withdraw()
        announcers[1].renew()  # One that was on its way.
        assert read_present(client) == [ME]


def test_worker_that_says_nothing_any_more_is_forgotten(redis_url: str) -> None:
    Announcer(redis_url, ME, pause_s=4).renew()
    with connect(redis_url) as client:
        (key,) = client.smembers(WORKERS_KEY)
        assert 0 < client.ttl(key) <= 60
        client.delete(key)

        assert read_present(client) == []
        assert client.smembers(WORKERS_KEY) == set()


def test_worker_of_a_long_lease_is_known_for_longer(redis_url: str) -> None:
    Announcer(redis_url, ME, pause_s=80).renew()

    with connect(redis_url) as client:
        (key,) = client.smembers(WORKERS_KEY)
        assert 300 < client.ttl(key) <= 400


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"name": "w"}', b"\xff", b"9" * (1 << 17)])
def test_what_others_write_there_is_passed_over(redis_url: str, value: bytes) -> None:
    Announcer(redis_url, ME, pause_s=4).renew()
    with connect(redis_url) as client:
        client.set(worker_key("scope-a", "odd"), value)
        client.sadd(WORKERS_KEY, worker_key("scope-a", "odd"))

        assert read_present(client) == [ME]


def test_broker_that_is_away_is_no_trouble_to_a_worker_and_one_to_a_reader(redis_server: RedisServer) -> None:
    announcer = Announcer(redis_server.url, ME, pause_s=4)
    client = connect(redis_server.url)
    redis_server.kill()

    announcer.renew()
    assert announcer.others() == []
    announcer.withdraw()
    with pytest.raises(BrokerError, match="its workers could not be read"):
        read_present(client)


def test_user_of_the_documented_acl_may_do_it(redis_url: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    rule = next(line for line in page.splitlines() if line.startswith("ACL SETUSER batcher"))
    with redis.Redis.from_url(redis_url) as admin:
        admin.execute_command(*rule.split())
        assert admin.acl_dryrun("batcher", "SMEMBERS", WORKERS_KEY) == b"OK"
        for command in (
            ("SET", worker_key("s", "w"), "{}", "EX", "60"),
            ("SADD", WORKERS_KEY, "k"),
            ("EXPIRE", WORKERS_KEY, "9"),
            ("MGET", worker_key("s", "w")),
            ("SREM", WORKERS_KEY, "k"),
            ("DEL", worker_key("s", "w")),
        ):
            assert admin.acl_dryrun("batcher", *command) == b"OK", command
