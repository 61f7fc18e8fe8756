"""`batcher serve` as a user starts it, with a tiny model: by its own description, under load, and under abuse."""

import asyncio
import contextlib
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.family import Family, children_of
from tests.support.serving import Server, serve
from tests.support.waiting import wait_for

KEY = "sk-0123456789abcdef"
WAIT_S = 60
MAX_BODY = 4 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Server]:
    family = Family(tmp_path_factory.mktemp("serve"))
    keys = family.folder / "keys.txt"
    keys.write_text(KEY)
    keys.chmod(0o600)
    options = ("--api-keys-file", keys, "--threads", 1, "--slots", 8, "--max-body", MAX_BODY)
    with serve(family, "--model", f"tiny={model}", *options) as server:
        yield server
        assert server.stop() == 0
    assert family.pids() == []


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.root_url, headers=headers, timeout=WAIT_S) as client:
        yield client


def metric(client: httpx.Client, name: str) -> float:
    found = re.search(rf'^{name}{{model="tiny"}} (\S+)$', client.get("/metrics").text, re.MULTILINE)
    assert found, name
    return float(found[1])


def num_open(client: httpx.Client) -> float:
    found = re.search(r"^batcher_http_requests_open (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


def test_server_keeps_to_its_own_description(server: Server) -> None:
    """Every operation, with data that fits its schema and data that does not, and sequences of them."""
    done = subprocess.run(
        [
            *(Path(sys.executable).parent / "schemathesis", "run", f"{server.root_url}/openapi.json"),
            *("-H", f"Authorization: Bearer {KEY}", "--no-color"),
            # Rules between fields (best_of below n) can't be said in a schema: such bodies fit it and are refused.
            *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
            *("--max-examples", "25", "--generation-deterministic"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-5000:] + server.stderr[-2000:]
    tested = re.search(r"Tested: +(\d+)", done.stdout)
    assert tested
    assert int(tested[1]) >= 15
    assert "Traceback" not in server.stderr


def test_streams_of_many_clients_are_whole(server: Server, client: httpx.Client) -> None:
    bodies = [body_of(f"client {n}", max_tokens=20 + n % 7) for n in range(64)]
    whole = [client.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in bodies]

    async def stream_all() -> list[str]:
        async with async_client(server) as streaming:
            return await asyncio.gather(*(joined(streaming, body) for body in bodies))

    streamed = asyncio.run(stream_all())

    # Float order differs with the batch's composition, so a rare text may differ; with one slot none does.
    assert sum(a == b for a, b in zip(whole, streamed, strict=True)) >= 60
    assert all(streamed)


def test_clients_who_hang_up_free_their_slots_at_once(server: Server, client: httpx.Client) -> None:
    # More work than could be done before all have come: 512 texts of 450 tokens.
    bodies = [body_of(f"p{number}", max_tokens=450, n=16) for number in range(32)]

    async def hang_up() -> float:
        async with async_client(server) as streaming, asyncio.timeout(WAIT_S):
            tasks = [asyncio.create_task(first_event(streaming, body)) for body in bodies]
            # One more is the question itself.
            while await asyncio.to_thread(num_open, client) < len(bodies) + 1:
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(metric, client, "batcher_live_sequences_waiting") > 0
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return time.monotonic()

    left_at = asyncio.run(hang_up())

    wait_for(lambda: metric(client, "batcher_sequences_running") == 0, what="the slots are free")
    # A second where nothing else runs. No test of speed: what was asked for would take this model longer than this.
    assert time.monotonic() - left_at < 3
    assert metric(client, "batcher_live_sequences_waiting") == 0


def test_live_request_passes_a_large_batch_on_the_same_engine(
    server: Server, client: httpx.Client, tmp_path: Path
) -> None:
    path = tmp_path / "batch.jsonl"
    with path.open("w") as file:
        for number in range(200):
            line = {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/completions"}
            file.write(json.dumps(line | {"body": body_of(f"row {number}", max_tokens=400)}) + "\n")
    with path.open("rb") as file:
        uploaded = client.post("/v1/files", files={"file": file}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": uploaded["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = client.post("/v1/batches", json=asked).json()
    wait_for(lambda: metric(client, "batcher_sequences_running") == 8, what="the batch fills the slots")

    preempted = metric(client, "batcher_preemptions_total")
    answer = client.post("/v1/completions", json=body_of("live", max_tokens=3))

    assert answer.status_code == 200
    found = client.get(f"/v1/batches/{batch['id']}").json()
    assert found["status"] == "in_progress"
    assert found["request_counts"]["completed"] < 200
    assert metric(client, "batcher_preemptions_total") > preempted
    client.post(f"/v1/batches/{batch['id']}/cancel")
    wait_for(lambda: client.get(f"/v1/batches/{batch['id']}").json()["status"] == "cancelled", what="it is cancelled")


def test_abuse_is_answered_in_bounded_memory(server: Server, client: httpx.Client) -> None:
    before = resident_mb(server.pid)
    attempts: dict[str, tuple[bytes, int]] = {
        "a body of 100 MB": (b'{"prompt": "' + b"x" * 100_000_000, 413),
        "10,000 prompts": (json.dumps(body_of(["p"] * 10_000)).encode(), 400),
        "no UTF-8": (b'{"model": "tiny", "prompt": "\xff\xfe"}', 400),
        "deep nesting": (b'{"model": "tiny", "prompt": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}", 400),
        "no end": (b'{"model": "tiny", "prompt": "x', 400),
        "half a pair of surrogates": (rb'{"model": "tiny", "prompt": "\ud800"}', 400),
        "a number of a million digits": (b'{"model": "tiny", "prompt": "x", "seed": ' + b"9" * 1_000_000 + b"}", 400),
        "a prompt over the context": (json.dumps(body_of("x" * 100_000)).encode(), 400),
    }
    for name, (body, status) in attempts.items():
        answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status, f"{name}: {answer.text[:300]}"
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert len(answer.content) < 2000, name

    # Connections that send half a request, or read nothing, while others are served.
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            half = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n")
        assert client.post("/v1/completions", json=body_of("alive")).status_code == 200

    assert resident_mb(server.pid) - before < 150
    assert client.get("/health").json() == {"status": "ok"}
    assert "Traceback" not in server.stderr


def test_stop_leaves_no_process(tmp_path: Path, model: Path) -> None:
    family = Family(tmp_path)
    with serve(family, "--model", f"tiny={model}", "--no-auth", "--threads", 1) as server:
        assert children_of(server.pid, "workers.child")

        assert server.stop() == 0

        assert family.pids() == []


def test_drained_server_lets_requests_finish_and_ends_well(tmp_path: Path, model: Path) -> None:
    family = Family(tmp_path)
    options = ("--model", f"tiny={model}", "--no-auth", "--threads", 1, "--jobs-dir", tmp_path / "jobs", "--grace", 60)
    with serve(family, *options) as server:
        long = {"model": "tiny", "prompt": "a", "max_tokens": 300, "stream": True}
        with httpx.stream("POST", f"{server.root_url}/v1/completions", json=long, timeout=WAIT_S) as response:
            lines = response.iter_lines()
            next(lines)
            (worker,) = (path.stem for path in (tmp_path / "jobs" / ".workers").glob("*.json"))

            family.run("drain", worker, "--jobs-dir", tmp_path / "jobs", code=0)

            assert [line for line in lines if line][-1] == "data: [DONE]"
        wait_for(lambda: family.pids() == [], what="all have ended")
        assert server.stop() == 0


def body_of(prompt: str | list[str], **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": prompt, "max_tokens": 4, "temperature": 0} | more


def async_client(server: Server) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=server.root_url,
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=WAIT_S,
        limits=httpx.Limits(max_connections=200),
    )


async def events(client: httpx.AsyncClient, body: dict[str, Any]) -> AsyncIterator[str]:
    async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line:
                yield line.removeprefix("data: ")


async def joined(client: httpx.AsyncClient, body: dict[str, Any]) -> str:
    texts, last = [], ""
    async for event in events(client, body):
        if event != "[DONE]":
            texts.append(json.loads(event)["choices"][0]["text"])
        last = event
    assert last == "[DONE]"
    return "".join(texts)


async def first_event(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    async for _ in events(client, body):
        await asyncio.Event().wait()


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1024
