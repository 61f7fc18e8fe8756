"""The server when what it stands on fails: workers, its engine, itself."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from batcher.jobdir.folder import JobDir
from tests.support.family import Family, children_of, has_chunks, start_worker, wait_until_ready
from tests.support.serving import Server, serve
from tests.support.waiting import wait_for

NUM_LINES = 500
BAD_LINES = {7, 250, 499}


@pytest.fixture
def batch_file(tmp_path: Path) -> Path:
    path = tmp_path / "batch.jsonl"
    with path.open("w") as file:
        for number in range(NUM_LINES):
            body = {"model": "tiny", "prompt": f"number {number}", "max_tokens": 450, "temperature": 0}
            if number in BAD_LINES:
                body["temperature"] = "hot"
            line = {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key="none needed", max_retries=0)


@pytest.fixture
def clients() -> Iterator[list[openai.OpenAI]]:
    opened: list[openai.OpenAI] = []
    yield opened
    for client in opened:
        client.close()


def test_batch_of_the_sdk_is_complete_though_one_of_its_two_workers_is_killed(
    family: Family, model: Path, redis_url: str, batch_file: Path, clients: list[openai.OpenAI]
) -> None:
    with serve(family, "--broker", redis_url, "--no-auth") as server:
        workers = [start_worker(family, redis_url, model, name, "--lease-ttl", 2) for name in ("w1", "w2")]
        wait_until_ready(*workers)
        client = client_of(server)
        clients.append(client)
        with batch_file.open("rb") as file:
            uploaded = client.files.create(file=file, purpose="batch")
        batch = client.batches.create(input_file_id=uploaded.id, endpoint="/v1/completions", completion_window="24h")
        job = JobDir(family.folder / "jobs" / batch.id)
        wait_for(lambda: job.exists() and has_chunks(job), what="a chunk")

        os.killpg(workers[0].pid, signal.SIGKILL)
        child = family.child_of(workers[0])
        if child is not None:
            os.kill(child, signal.SIGKILL)
        wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", what="the batch is complete")

        done = client.batches.retrieve(batch.id)
        assert done.output_file_id is not None
        assert done.error_file_id is not None
        lines = client.files.content(done.output_file_id).text.splitlines()
        errors = client.files.content(done.error_file_id).text.splitlines()

    assert done.request_counts is not None
    assert done.request_counts.to_dict() == {
        "total": NUM_LINES,
        "completed": NUM_LINES - len(BAD_LINES),
        "failed": len(BAD_LINES),
    }
    found = [json.loads(line)["custom_id"] for line in lines]
    assert len(found) == len(set(found))
    assert set(found) == {f"id-{n}" for n in range(NUM_LINES) if n not in BAD_LINES}
    assert [json.loads(line)["custom_id"] for line in errors] == [f"id-{n}" for n in sorted(BAD_LINES)]
    assert "temperature" in errors[0]


def test_killed_engine_fails_its_requests_and_the_server_stays(family: Family, model: Path) -> None:
    with serve(family, "--model", f"tiny={model}", "--no-auth", "--threads", 1) as server, httpx.Client() as client:
        url = f"{server.base_url}/completions"
        (child,) = children_of(server.pid, "workers.child")
        # Seconds of work, however late the kill comes.
        body = {"model": "tiny", "prompt": "hello", "max_tokens": 450, "n": 128, "stream": True}
        with client.stream("POST", url, json=body, timeout=60) as response:
            lines = response.iter_lines()
            assert next(lines).startswith("data: ")

            os.kill(child, signal.SIGKILL)

            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        wait_for(lambda: client.get(f"{server.root_url}/health").status_code == 200, what="the engine is back")
        answer = client.post(url, json={"model": "tiny", "prompt": "hello"}, timeout=60)
        assert answer.status_code == 200
        assert server.stop() == 0


def test_killed_server_goes_on_with_its_batches_when_it_is_started_again(
    family: Family, model: Path, batch_file: Path
) -> None:
    options = ("--model", f"tiny={model}", "--no-auth", "--threads", 1)
    with serve(family, *options) as server, httpx.Client(base_url=server.base_url, timeout=60) as client:
        with batch_file.open("rb") as file:
            uploaded = client.post("/files", files={"file": file}, data={"purpose": "batch"}).json()
        asked = {"input_file_id": uploaded["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        batch = client.post("/batches", json=asked).json()
        job = JobDir(family.folder / "jobs" / batch["id"])
        wait_for(lambda: job.exists() and has_chunks(job), what="a chunk")

        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: family.pids() == [], what="nothing is left of the server")

    with serve(family, *options) as server, httpx.Client(base_url=server.base_url, timeout=60) as client:
        wait_for(
            lambda: client.get(f"/batches/{batch['id']}").json()["status"] == "completed", what="the batch is complete"
        )
        done = client.get(f"/batches/{batch['id']}").json()
        assert done["request_counts"]["completed"] == NUM_LINES - len(BAD_LINES)
        content = client.get(f"/files/{done['output_file_id']}/content").text
        assert len(content.splitlines()) == NUM_LINES - len(BAD_LINES)
        assert server.stop() == 0
    assert family.pids() == []
