"""How `batcher serve` comes and goes: its own process, real signals, an engine that does what prompts say."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from batcher.broker.client import open_client, queue_key
from batcher.broker.embedded import folder_for
from batcher.jobdir.scope import scope_of
from tests.support.waiting import PATIENCE_S, wait_for

ROOT = Path(__file__).parents[3]
KEY = "sk-0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Command:
    """A `batcher serve` that is ready."""

    process: subprocess.Popen[str]
    url: str
    jobs_root: Path
    gate: Path
    log: Path

    def client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE_S)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


def start(folder: Path, *arguments: str, serves_model: bool = True) -> Command:
    model = folder / "tiny.gguf"
    model.write_bytes(b"GGUF")
    gate, jobs_root, log = folder / "gate", folder / "jobs", folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BATCHER_")}
    environment |= {"SCRIPTED_GATE": str(gate), "BATCHER_API_KEYS": KEY, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.support.scripted_server", "serve", "--port", "0"]
    command += ["--model", f"tiny={model}"] if serves_model else []
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, "--jobs-dir", str(jobs_root), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    what = "tiny" if serves_model else "files and batches"
    found = re.fullmatch(
        rf"Serving {what} on (http://127\.0\.0\.1:\d+)/v1, jobs in {re.escape(str(jobs_root))}\n", line
    )
    assert found, f"{line!r}; {log.read_text()}"
    return Command(process, found[1], jobs_root, gate, log)


@pytest.fixture
def command(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Command]:
    started = start(tmp_path, *getattr(request, "param", ()))
    yield started
    started.process.kill()
    started.process.communicate()


def begin(client: httpx.Client, prompt: str) -> tuple[httpx.Response, Iterator[str]]:
    """A stream whose first event has come."""
    body = {"model": "tiny", "prompt": prompt, "stream": True}
    response = client.send(client.build_request("POST", "/v1/completions", json=body), stream=True)
    lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
    assert "begun" in next(lines)
    return response, lines


def test_idle_server_stops_at_once_and_leaves_nothing(command: Command) -> None:
    with command.client() as client:
        assert client.get("/v1/models").status_code == 200

        assert command.stop() == 0

    assert "engines closed" in command.log.read_text()
    assert not folder_for(command.jobs_root).exists()
    assert KEY not in command.log.read_text()


def test_stream_is_finished_before_the_server_stops(command: Command) -> None:
    with command.client() as client:
        response, lines = begin(client, "slow")
        command.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping" in command.log.read_text(), what="the signal is seen")
        assert "engines closed" not in command.log.read_text()

        command.gate.touch()

        assert list(lines)[-1] == "[DONE]"
        response.close()
    assert command.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("command", [("--grace", "0.3")], indirect=True)
def test_stream_that_outlasts_the_grace_ends_with_an_error(command: Command) -> None:
    with command.client() as client:
        response, lines = begin(client, "hold")

        command.process.send_signal(signal.SIGTERM)

        assert json.loads(list(lines)[-1])["error"]["code"] == "stopping"
        response.close()
    assert command.process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("command", [("--grace", "1000")], indirect=True)
def test_second_signal_ends_what_is_open(command: Command) -> None:
    with command.client() as client:
        response, lines = begin(client, "hold")
        command.process.send_signal(signal.SIGINT)
        wait_for(lambda: "stopping" in command.log.read_text(), what="the first signal is seen")

        command.process.send_signal(signal.SIGINT)

        assert json.loads(list(lines)[-1])["error"]["code"] == "stopping"
        response.close()
    assert command.process.wait(PATIENCE_S) == 0
    assert "engines closed urgently" in command.log.read_text()


def test_engine_that_fails_for_good_ends_the_command_with_its_reason(command: Command) -> None:
    with command.client() as client:
        client.post("/v1/completions", json={"model": "tiny", "prompt": "fail"})

    assert command.process.wait(PATIENCE_S) == 2
    assert "Error: the model is broken" in command.log.read_text()


def test_server_without_a_model_takes_batches_for_workers_elsewhere(tmp_path: Path, redis_url: str) -> None:
    body = {"model": "large", "prompt": "a"}
    line = {"custom_id": "1", "method": "POST", "url": "/v1/completions", "body": body}
    command = start(tmp_path, "--broker", redis_url, serves_model=False)
    try:
        with command.client() as client:
            file = client.post("/v1/files", files={"file": json.dumps(line)}, data={"purpose": "batch"}).json()
            batch = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
            made = client.post("/v1/batches", json=batch).json()

            queue = queue_key("large", scope=scope_of(command.jobs_root))

            def is_queued() -> bool:
                state = client.get(f"/v1/batches/{made['id']}").json()["status"]
                with open_client(redis_url) as broker:
                    return bool(state == "in_progress" and broker.llen(queue) == 1)

            wait_for(is_queued, what="the batch is in the queue of its model")
            assert client.get("/v1/models").json()["data"] == []
            assert client.post("/v1/completions", json=body).status_code == 404
            assert client.get("/health").status_code == 200
        assert command.stop() == 0
    finally:
        command.process.kill()
        command.process.communicate()


def test_second_server_of_a_jobs_folder_is_told_to_share_a_broker(command: Command, tmp_path: Path) -> None:
    environment = os.environ | {"BATCHER_API_KEYS": KEY, "PYTHONPATH": str(ROOT)}
    line = ["serve", "--model", f"tiny={tmp_path / 'tiny.gguf'}", "--port", "0", "--jobs-dir", str(command.jobs_root)]

    second = subprocess.run(
        [sys.executable, "-m", "tests.support.scripted_server", *line],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert second.returncode == 3
    assert "--broker URL" in second.stderr
    assert "Traceback" not in second.stderr
