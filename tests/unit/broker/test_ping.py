"""A broker is asked whether it answers, without redis-py. Over TLS in tests/faults/test_security.py."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from batcher.broker.client import connect
from batcher.broker.ping import ping
from batcher.errors import BrokerError
from tests.support.redis_server import RedisServer, free_port

_PASSWORD = "gehe:im/@ é"
_ENCODED = "gehe%3Aim%2F%40%20%C3%A9"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """Of a server with a user `batcher`, who has a password."""
    with server.client() as client:
        client.acl_setuser("batcher", enabled=True, passwords=[f"+{_PASSWORD}"], categories=["+@connection"])
        yield client
        client.acl_deluser("batcher")


def test_server_that_answers_is_well(server: RedisServer) -> None:
    ping(server.url, timeout_s=5)


def test_server_on_a_unix_socket_is_well(broker_url: str) -> None:
    assert "://" in broker_url
    ping(broker_url, timeout_s=5)


def test_user_and_password_are_given_as_the_url_encodes_them(server: RedisServer, client: redis.Redis) -> None:
    ping(f"redis://batcher:{_ENCODED}@127.0.0.1:{server.port}/0", timeout_s=5)


def test_wrong_password_is_refused_and_not_shown(server: RedisServer, client: redis.Redis) -> None:
    with pytest.raises(BrokerError, match="AUTH with WRONGPASS") as caught:
        ping(f"redis://batcher:falsch@127.0.0.1:{server.port}/0", timeout_s=5)

    assert "falsch" not in str(caught.value)


def test_password_that_is_missing_is_said(server: RedisServer, client: redis.Redis) -> None:
    client.config_set("requirepass", "geheim")
    try:
        ping(f"redis://:geheim@127.0.0.1:{server.port}/0", timeout_s=5)
        with pytest.raises(BrokerError, match="PING with NOAUTH"):
            ping(server.url, timeout_s=5)
    finally:
        client.config_set("requirepass", "")


def test_what_is_not_there_is_said_with_its_place() -> None:
    port = free_port()

    with pytest.raises(BrokerError, match=rf"redis://127.0.0.1:{port}/0: cannot reach it: Connection refused"):
        ping(f"redis://127.0.0.1:{port}/0", timeout_s=5)
    with pytest.raises(BrokerError, match="cannot reach it: No such file"):
        ping("redis+socket:///no/such.sock", timeout_s=5)


def test_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(BrokerError, match="timed out"):
        ping(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_s=0.2)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(b"-LOADING Redis is loading the dataset in memory\r\n", "LOADING Redis is loading"), (b"", "PING with nothing")],
)
def test_server_that_is_no_broker_now_is_ill(answer: bytes, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        with pytest.raises(BrokerError, match=said):
            ping(f"redis://127.0.0.1:{listener.getsockname()[1]}/0", timeout_s=5)
        thread.join()


def test_bad_url_is_refused_as_everywhere(tmp_path: Path) -> None:
    for ask in (connect, lambda url: ping(url, timeout_s=5)):
        with pytest.raises(BrokerError, match="not a broker URL"):
            ask("http://127.0.0.1:1/0")
