"""What is too much for the server, and that it is well afterwards."""

import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from batcher.server.app import make_api
from batcher.server.guard.auth import ApiKeys
from batcher.server.guard.limits import Limits
from tests.support.api_client import ask, complete
from tests.support.live_server import LiveServer, live_server
from tests.support.scripted_engine import Latch, ScriptedEngine, choice
from tests.support.waiting import wait_for

KEYS = ["sk-0123456789abcdef", "sk-fedcba9876543210"]
BODY = {"model": "tiny", "prompt": "a"}


def held(latch: Latch) -> ScriptedEngine:
    """An engine that answers nothing before the latch is open."""
    return ScriptedEngine(script=lambda request: [latch, *(choice(i, "x") for i in range(request.num_choices))])


def post(server: LiveServer, *, key: str | None = None, **body: object) -> httpx.Response:
    with server.client(key=key) as client:
        return client.post("/v1/completions", json=BODY | body)


def test_body_that_is_announced_too_large_is_refused_before_it_is_read() -> None:
    engine = ScriptedEngine()
    api = make_api(engine, keys=None, limits=Limits(max_body_bytes=1000))

    answer = complete(api, prompt="a" * 1000)

    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    assert engine.seen == []


def test_body_of_unknown_length_is_refused_where_it_gets_too_large() -> None:
    api = make_api(ScriptedEngine(), keys=None, limits=Limits(max_body_bytes=1000))

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"a" * 100

    answer = ask(api, "POST", "/v1/completions", content=pieces())

    assert answer.status_code == 413


def test_request_beyond_the_concurrent_ones_is_told_to_come_again(latch: Latch) -> None:
    with live_server(held(latch), limits=Limits(max_concurrent=2)) as server, ThreadPoolExecutor() as pool:
        waiting = [pool.submit(post, server) for _ in range(2)]
        wait_for(lambda: server.engine.num_open == 2, what="two requests are at the engine")

        refused = post(server)
        with server.client() as client:
            statuses = [client.get(path).status_code for path in ("/health", "/metrics")]
        latch.open()

        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert statuses == [200, 200]
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert post(server).status_code == 200


def test_bodies_are_bounded_together(latch: Latch) -> None:
    limits = Limits(max_body_bytes=1000, max_held_bytes=1000)
    with live_server(held(latch), limits=limits) as server, ThreadPoolExecutor() as pool:
        waiting = pool.submit(post, server, prompt="a" * 700)
        wait_for(lambda: server.engine.num_open == 1, what="the request is at the engine")

        refused = post(server, prompt="a" * 700)
        latch.open()

        assert refused.status_code == 429
        assert waiting.result().status_code == 200
        assert post(server, prompt="a" * 700).status_code == 200


def test_completions_beyond_the_queue_are_told_to_come_again(latch: Latch) -> None:
    with live_server(held(latch), limits=Limits(max_queued=4)) as server, ThreadPoolExecutor() as pool:
        waiting = pool.submit(post, server, prompt=["a", "b", "c"])
        wait_for(lambda: server.engine.num_open == 1, what="the request is at the engine")

        refused = post(server, prompt=["a", "b"])
        fits = pool.submit(post, server)
        wait_for(lambda: server.engine.num_open == 2, what="the second request is at the engine")
        latch.open()

        assert refused.status_code == 429
        assert [waiting.result().status_code, fits.result().status_code] == [200, 200]


@pytest.mark.parametrize(
    ("limits", "limit", "prompts"),
    [
        (Limits(max_queued=4), "queue", ["a", "b"]),
        (Limits(max_queued_per_key=2), "queue", ["a", "b"]),
        (Limits(max_concurrent=2), "concurrent", ["a"]),
        (Limits(max_held_bytes=2000, max_body_bytes=1000), "held", ["a" * 700]),
    ],
)
def test_one_key_leaves_room_to_others(latch: Latch, limits: Limits, limit: str, prompts: list[str]) -> None:
    with (
        live_server(held(latch), limits=limits, keys=ApiKeys(KEYS)) as server,
        server.client(key=KEYS[1]) as client,
        ThreadPoolExecutor() as pool,
    ):
        waiting = pool.submit(post, server, key=KEYS[0], prompt=prompts)
        wait_for(lambda: server.engine.num_open == 1, what="the request is at the engine")

        refused = post(server, key=KEYS[0], prompt=prompts)
        other = pool.submit(post, server, key=KEYS[1], prompt=prompts)
        wait_for(lambda: server.engine.num_open == 2, what="that of the other key is at the engine")
        metrics = client.get("/metrics").text
        latch.open()

        assert refused.status_code == 429
        assert "for your key" in refused.json()["error"]["message"]
        assert [waiting.result().status_code, other.result().status_code] == [200, 200]
        assert server.engine.clients == ["1", "2"]
        assert f'batcher_key_refusals_total{{key="1",limit="{limit}"}} 1.0' in metrics
        assert f'batcher_key_completions_queued{{key="2"}} {float(len(prompts))}' in metrics
        assert 'batcher_key_requests_open{key="1"} 1.0' in metrics
        assert not any(key in metrics for key in KEYS)


def test_only_key_may_take_all_there_is(latch: Latch) -> None:
    with (
        live_server(held(latch), limits=Limits(max_queued=4), keys=ApiKeys(KEYS[:1])) as server,
        ThreadPoolExecutor() as pool,
    ):
        waiting = [pool.submit(post, server, key=KEYS[0], prompt=["a", "b"]) for _ in range(2)]
        wait_for(lambda: server.engine.num_open == 2, what="both are at the engine")
        latch.open()
        assert [each.result().status_code for each in waiting] == [200, 200]


def test_without_keys_each_connection_is_a_client() -> None:
    with live_server(ScriptedEngine()) as server, server.client() as client:
        for _ in range(2):
            assert client.post("/v1/completions", json=BODY).status_code == 200
        assert post(server).status_code == 200

        first, second, third = server.engine.clients
        assert first == second != third
        assert first.startswith("127.0.0.1:")
        assert "key=" not in client.get("/metrics").text


def test_single_request_is_taken_whatever_the_queue(latch: Latch) -> None:
    latch.open()

    with live_server(held(latch), limits=Limits(max_queued=1)) as server:
        assert post(server, prompt=["a", "b"]).status_code == 200


@pytest.mark.parametrize("is_streaming", [False, True])
def test_request_that_takes_too_long_ends_and_frees_its_slot(latch: Latch, is_streaming: bool) -> None:
    with live_server(held(latch), limits=Limits(request_timeout_s=0.05)) as server:
        answer = post(server, stream=is_streaming)

        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        assert answer.headers["x-should-retry"] == "false"
        wait_for(lambda: server.engine.num_open == 0, what="the engine is left")


def test_many_streams_at_once_are_all_complete() -> None:
    with live_server(ScriptedEngine()) as server, ThreadPoolExecutor(64) as pool:
        barrier = threading.Barrier(64)
        prompt = " ".join(str(n) for n in range(100))

        def stream(_: int) -> str:
            barrier.wait()
            return post(server, prompt=prompt, stream=True).text

        texts = list(pool.map(stream, range(64)))

        assert all(text.endswith("data: [DONE]\n\n") for text in texts)
        assert all(text.count('"text":" 57"') == 1 for text in texts)
