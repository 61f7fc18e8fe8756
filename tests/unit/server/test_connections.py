"""What clients do to connections: hang up, read slowly or not at all, stop in the middle, send what is no HTTP."""

import contextlib
import json
import socket
from collections.abc import Iterable

import pytest

from batcher.server.guard.connections import MAX_HEAD_BYTES, MAX_PIPELINED
from batcher.server.guard.limits import Limits
from batcher.types import Delta, Request
from tests.support.live_server import LiveServer, live_server, post, read_all
from tests.support.scripted_engine import Latch, ScriptedEngine, Step, choice
from tests.support.waiting import wait_for

STREAM = json.dumps({"model": "tiny", "prompt": "a", "stream": True}).encode()
WHOLE = json.dumps({"model": "tiny", "prompt": "a"}).encode()
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"


def is_well(server: LiveServer) -> bool:
    with server.client() as client:
        answer = client.post("/v1/completions", content=WHOLE)
    return answer.status_code == 200


def send_until_closed(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            client.sendall(data)


def error_of(answer: bytes) -> tuple[int, dict[str, object]]:
    """Status and error object of a raw answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize("body", [STREAM, WHOLE], ids=["streamed", "whole"])
def test_client_that_hangs_up_frees_its_slot(latch: Latch, body: bytes) -> None:
    engine = ScriptedEngine(script=lambda request: [Delta(0, "begun"), latch])

    with live_server(engine) as server:
        clients = [server.connect(post("/v1/completions", body)) for _ in range(32)]
        wait_for(lambda: engine.num_open == 32, what="all are at the engine")

        for client in clients:
            client.close()

        wait_for(lambda: engine.num_open == 0, what="the engine is left by all")


def test_client_that_hangs_up_while_another_waits_takes_only_itself_along(latch: Latch) -> None:
    engine = ScriptedEngine(script=lambda request: [latch, choice(0, "x")])

    with live_server(engine) as server:
        leaving, staying = (server.connect(post("/v1/completions", WHOLE)) for _ in range(2))
        wait_for(lambda: engine.num_open == 2, what="both are at the engine")

        leaving.close()
        wait_for(lambda: engine.num_open == 1, what="one has left")
        latch.open()

        assert staying.recv(65536).startswith(b"HTTP/1.1 200")


def flood(request: Request) -> Iterable[Step]:
    """64 MB of text in a thousand pieces."""
    yield from (Delta(0, "x" * 65536) for _ in range(1000))
    yield choice(0, "")


def test_slow_client_gets_all_in_larger_pieces() -> None:
    engine = ScriptedEngine(script=flood)

    with live_server(engine) as server:
        client = server.connect(post("/v1/completions", STREAM))
        wait_for(lambda: engine.num_open == 0 and engine.num_pieces == 1001, what="the engine is done")

        data = b""
        while not data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") and (piece := client.recv(1 << 20)):
            data += piece

        assert data.count(b"x") >= 1000 * 65536
        assert data.count(b"data: {") < 100


def test_client_that_reads_nothing_is_cut_off() -> None:
    engine = ScriptedEngine(script=flood)

    with live_server(engine, limits=Limits(write_idle_s=0.2)) as server:
        client = server.connect(receive_buffer=4096)
        client.sendall(post("/v1/completions", STREAM))

        wait_for(lambda: engine.seen, what="the request is at the engine")
        wait_for(lambda: server.num_connections == 0, what="the connection is cut")
        assert is_well_without_flood(server)


def is_well_without_flood(server: LiveServer) -> bool:
    server.engine.script = lambda request: [choice(0, "x")]
    return is_well(server)


def test_body_that_stops_in_the_middle_is_answered_and_closed() -> None:
    with live_server(ScriptedEngine(), limits=Limits(body_idle_s=0.1)) as server:
        client = server.connect(post("/v1/completions", WHOLE[:5], length=len(WHOLE)))

        status, error = error_of(read_all(client))

        assert status == 408
        assert "0.1 s" in str(error["message"])
        assert is_well(server)


@pytest.mark.parametrize("data", [b"", b"G", HEAD, HEAD + b"x: " + b"y" * 100])
def test_head_that_does_not_come_ends_the_connection(data: bytes) -> None:
    with live_server(ScriptedEngine(), limits=Limits(head_timeout_s=0.1)) as server:
        client = server.connect(data)

        assert read_all(client) == b""
        assert is_well(server)


def test_head_without_end_is_refused() -> None:
    with live_server(ScriptedEngine()) as server:
        client = server.connect(HEAD)

        send_until_closed(client, b"x: " + b"y" * MAX_HEAD_BYTES + b"\r\n")

        assert is_well(server)


def test_what_is_no_http_is_answered_with_an_error_object() -> None:
    with live_server(ScriptedEngine()) as server:
        client = server.connect(b"\x16\x03\x01 hello?\r\n\r\n")

        status, error = error_of(read_all(client))

        assert status == 400
        assert error["type"] == "invalid_request_error"


def test_client_that_sends_a_hundred_megabytes_finds_the_refusal() -> None:
    with live_server(ScriptedEngine()) as server, server.client() as client:
        answer = client.post("/v1/completions", content=b"a" * 100_000_000)

        assert answer.status_code == 413
        assert client.post("/v1/completions", content=WHOLE).status_code == 200


def test_client_that_wants_the_connection_to_end_finds_the_refusal_too() -> None:
    size = 100_000_000
    with live_server(ScriptedEngine()) as server:
        client = server.connect(HEAD + b"connection: close\r\ncontent-length: %d\r\n\r\n" % size)

        for _ in range(size // 1_000_000):
            client.sendall(b"a" * 1_000_000)
        answer = read_all(client)

        assert error_of(answer)[0] == 413
        assert b"connection: close" in answer
        wait_for(lambda: server.num_connections == 0, what="the connection has ended")


def test_refused_body_that_goes_on_for_too_long_is_cut_off() -> None:
    with live_server(ScriptedEngine(), limits=Limits(head_timeout_s=0.2)) as server:
        client = server.connect(post("/v1/completions", b"", length=1 << 40))

        send_until_closed(client, b"a" * 65536)

        assert is_well(server)


def test_client_that_asks_before_it_sends_is_refused_at_once() -> None:
    with live_server(ScriptedEngine()) as server:
        client = server.connect(HEAD + b"content-length: 100000000\r\nexpect: 100-continue\r\n\r\n")

        status, _ = error_of(read_all(client))

        assert status == 413


def test_requests_share_a_connection() -> None:
    with live_server(ScriptedEngine()) as server:
        client = server.connect(post("/v1/completions", WHOLE) * 3)

        data = b""
        while data.count(b"HTTP/1.1 200") < 3:
            piece = client.recv(65536)
            assert piece, data
            data += piece
        client.shutdown(socket.SHUT_RDWR)


def test_request_without_a_body_waits_for_none() -> None:
    with live_server(ScriptedEngine()) as server:
        client = server.connect(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")

        assert read_all(client).startswith(b"HTTP/1.1 200")


def test_client_that_hangs_up_with_a_second_request_waiting_frees_its_slot(latch: Latch) -> None:
    engine = ScriptedEngine(script=lambda request: [Delta(0, "begun"), latch])

    with live_server(engine) as server:
        client = server.connect(post("/v1/completions", STREAM) * 2)
        wait_for(lambda: engine.num_open == 1, what="the first is at the engine")

        client.close()

        wait_for(lambda: engine.num_open == 0, what="the engine is left")
        assert len(engine.seen) == 1, "nobody waits for the second"


def test_requests_that_wait_behind_another_are_few(latch: Latch) -> None:
    engine = ScriptedEngine(script=lambda request: [latch, choice(0, "x")])

    with live_server(engine) as server:
        client = server.connect(post("/v1/completions", WHOLE) * (MAX_PIPELINED + 2))

        status, error = error_of(read_all(client))

        assert status == 400
        assert error["type"] == "invalid_request_error"
        wait_for(lambda: engine.num_open == 0, what="the engine is left")


def test_answer_that_has_begun_is_not_mixed_with_a_refusal(latch: Latch) -> None:
    engine = ScriptedEngine(script=lambda request: [Delta(0, "begun"), latch])

    with live_server(engine) as server:
        client = server.connect(post("/v1/completions", STREAM))
        data = client.recv(65536)
        client.sendall(post("/v1/completions", WHOLE) + b"what is no HTTP\r\n\r\n")

        data += read_all(client)

        assert data.count(b"HTTP/1.1") == 1
        assert not data.endswith(b"0\r\n\r\n"), "the client sees that something is missing"


@pytest.mark.parametrize(
    "data", [b"0\r\n" + b"x: y\r\n" * 65536, b"5;" + b"y" * (1 << 20), b"0\r\nx: " + b"y" * (1 << 20)]
)
def test_chunked_body_with_endless_extensions_or_trailers_is_refused(data: bytes) -> None:
    with live_server(ScriptedEngine()) as server:
        client = server.connect(HEAD + b"transfer-encoding: chunked\r\n\r\n")

        # The connection may end before all was sent.
        with contextlib.suppress(ConnectionError):
            client.sendall(data)
        answer = read_all(client)

        assert not answer or error_of(answer)[0] == 431
        assert is_well(server)


GET = b"GET /v1/models HTTP/1.1\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (GET + b"\r\n", 400),
        (GET + b"host: localhost\r\nhost: localhost\r\n\r\n", 400),
        (GET + b"host: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (GET + b"host: user@localhost\r\n\r\n", 400),
        (GET + b"host: localhost/path\r\n\r\n", 400),
        (GET + b"host: local host\r\n\r\n", 400),
        (GET + b"host: localhost:80:80\r\n\r\n", 400),
        (GET + b"host: [::1]:8000 \r\nconnection: close\r\n\r\n", 200),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", 200),
        (POST + b"transfer-encoding: gzip\r\n\r\n", 501),
        (POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"transfer-encoding: identity\r\n\r\n", 501),
        (POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", 400),
        (POST.replace(b"1.1", b"1.0") + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ],
)
def test_head_is_taken_or_refused_as_the_standard_has_it(data: bytes, expected: int) -> None:
    with live_server(ScriptedEngine()) as server:
        client = server.connect(data)

        answer = read_all(client)

        assert answer.count(b"content-length: ") == 1
        assert int(answer.split()[1]) == expected
        assert expected == 200 or error_of(answer)[1]["type"] in ("invalid_request_error", "server_error")
        assert is_well(server)


def test_chunked_body_is_taken() -> None:
    with live_server(ScriptedEngine()) as server:
        chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(WHOLE), WHOLE)
        client = server.connect(POST + b"connection: close\r\nTransfer-Encoding: Chunked\r\n\r\n" + chunked)

        assert read_all(client).startswith(b"HTTP/1.1 200")


OFFER = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n"


def test_client_that_offers_another_protocol_is_answered_and_connects_anew() -> None:
    with live_server(ScriptedEngine()) as server:
        client = server.connect(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n" + OFFER + b"\r\n")

        answer = read_all(client)

        assert answer.startswith(b"HTTP/1.1 200")
        assert b"connection: close" in answer


def test_client_that_offers_another_protocol_with_a_body_is_told_not_to() -> None:
    with live_server(ScriptedEngine()) as server:
        client = server.connect(HEAD + OFFER + b"content-length: %d\r\n\r\n" % len(WHOLE) + WHOLE)

        status, error = error_of(read_all(client))

        assert status == 400
        assert "Upgrade" in str(error["message"])
        assert is_well(server)
