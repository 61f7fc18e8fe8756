"""Which connection gives way to a new one."""

import re
import resource
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from batcher.server.guard.limits import Limits
from batcher.server.guard.pool import ConnectionPool, raise_open_files_limit
from tests.support.live_server import live_server, post, read_all
from tests.support.scripted_engine import Latch, ScriptedEngine, choice
from tests.support.waiting import wait_for

GET = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n"


@dataclass(eq=False)
class Plug:
    """A connection that only notes that it was closed."""

    is_idle: bool = True
    is_closed: bool = False
    address: str = "192.0.2.1"

    def abort(self) -> None:
        self.is_closed = True


def read_head(connection: socket.socket) -> bytes:
    """The head of an answer, whose body is read, too."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(4096)
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    assert found
    while len(body) < int(found[1]):
        body += connection.recv(4096)
    return head


def test_oldest_idle_stranger_gives_way_then_the_oldest_idle_of_the_others() -> None:
    pool = ConnectionPool(3)
    known, busy, stranger = Plug(), Plug(is_idle=False), Plug()
    for plug in (known, busy, stranger):
        assert pool.add(plug)
    pool.admit(known)

    second, third = Plug(is_idle=False), Plug()
    assert pool.add(second)
    assert (known.is_closed, busy.is_closed, stranger.is_closed) == (False, False, True)
    assert pool.add(third)
    assert (known.is_closed, busy.is_closed, second.is_closed) == (True, False, False)
    assert len(pool) == 3


def test_nobody_who_is_being_answered_gives_way() -> None:
    pool = ConnectionPool(2)
    busy = [Plug(is_idle=False), Plug(is_idle=False)]
    for plug in busy:
        pool.add(plug)
    pool.admit(busy[0])

    assert not pool.add(Plug())
    assert not any(plug.is_closed for plug in busy)
    pool.discard(busy[0])
    assert pool.add(Plug())


def test_address_at_its_bound_gives_way_to_itself_alone() -> None:
    pool = ConnectionPool(100, max_per_address=2)
    other = Plug(address="192.0.2.2")
    known, busy, stranger, late = Plug(), Plug(is_idle=False), Plug(), Plug()
    for plug in (other, known):
        assert pool.add(plug)
    pool.admit(known)

    assert pool.add(busy)
    assert pool.add(stranger)
    assert (known.is_closed, other.is_closed) == (True, False)
    stranger.is_idle = False
    assert not pool.add(late)
    pool.discard(busy)
    assert pool.add(late)
    assert pool.add(Plug(address="192.0.2.3"))
    assert len(pool) == 4


def test_idle_connections_beyond_the_bound_are_closed_and_a_new_one_is_answered() -> None:
    with live_server(ScriptedEngine(), limits=Limits(max_connections=8)) as server:
        server.uvicorn.config.timeout_keep_alive = 600
        admitted = server.connect(GET)
        assert read_head(admitted).startswith(b"HTTP/1.1 200")
        idle = [server.connect(b"GET / HT") for _ in range(40)]
        wait_for(lambda: server.num_connections <= 8, what="the connections are few")

        for client in (admitted, server.connect()):
            client.sendall(GET)
            assert read_head(client).startswith(b"HTTP/1.1 200")
            client.close()
        for client in idle:
            client.close()


def test_connections_of_an_address_have_a_bound_of_their_own() -> None:
    with live_server(ScriptedEngine(), limits=Limits(max_connections_per_address=4)) as server:
        idle = [server.connect(b"GET / HT") for _ in range(20)]
        wait_for(lambda: server.num_connections <= 4, what="the connections are few")

        client = server.connect(GET)
        assert read_head(client).startswith(b"HTTP/1.1 200")
        for each in (client, *idle):
            each.close()


def test_connection_beyond_those_that_are_answered_is_told_to_come_again() -> None:
    latch = Latch()
    engine = ScriptedEngine(script=lambda request: [latch, choice(0, "x")])
    body = b'{"model": "tiny", "prompt": "a"}'
    with live_server(engine, limits=Limits(max_connections=2)) as server:
        held = [server.connect(post("/v1/completions", body)) for _ in range(2)]
        wait_for(lambda: engine.num_open == 2, what="both are at the engine")

        refused = server.connect()
        answer = read_all(refused)
        refused.close()
        latch.open()

        assert answer.startswith(b"HTTP/1.1 429")
        assert b"retry-after: 1\r\n" in answer
        for client in held:
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
            client.close()


@pytest.fixture
def limit_of_open_files() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_soft_limit_of_open_files_is_raised_to_the_hard_one(limit_of_open_files: tuple[int, int]) -> None:
    hard = limit_of_open_files[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    limit = raise_open_files_limit()

    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert limit == (min(hard, 65_536) if hard != resource.RLIM_INFINITY else 65_536)
    assert raise_open_files_limit() == limit
