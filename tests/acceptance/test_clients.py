"""litellm and langchain-openai, which many programs speak the API through, with a server of the real model."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import PATIENCE_S, clean_environment
from tests.support.family import Family
from tests.support.serving import Server, serve

#: One server for all.
pytestmark = pytest.mark.xdist_group("clients")

KEY = "sk-test-0123456789"
MODEL = "smollm2-135m"
NUM_LINES = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    family = Family(tmp_path_factory.mktemp("clients"))
    keys = family.folder / "keys.txt"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    with serve(family, "--model", MODEL, "--api-keys-file", keys, "--max-concurrent", 2) as server:
        yield server


def session(server: Server, name: str, *arguments: object) -> dict[str, Any]:
    """What a script of this folder found."""
    python = Path(sys.prefix) / "clients" / "bin" / "python"
    assert python.exists(), "run make"
    environment = {"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": KEY, "LITELLM_OFFLINE_MODE": "true"}
    done = subprocess.run(
        [python, "-I", Path(__file__).with_name(f"{name}_session.py"), MODEL, *map(str, arguments)],
        env=clean_environment() | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr + server.stderr
    # Before it there can be advice of the library's.
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_litellm_completes_streams_and_maps_errors(server: Server, tmp_path: Path) -> None:
    batch = tmp_path / "batch.jsonl"
    with batch.open("w") as file:
        for number in range(NUM_LINES):
            body = {"model": MODEL, "prompt": f"The number {number}", "max_tokens": 3}
            line = {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")

    found = session(server, "litellm", batch)

    check_chat(found["chat"])
    assert found["chat"]["streamed_usage"]["completion"] == found["chat"]["usage"]["completion"]
    assert found["completion"]["text"] == found["completion"]["streamed"]
    assert found["completion"]["usage"]["completion"] == 6
    assert found["batch"] == {"status": "completed", "custom_ids": [f"id-{n}" for n in range(NUM_LINES)]}
    assert found["errors"] == {
        "wrong key": "AuthenticationError 401",
        "no such model": "NotFoundError 404",
        "long chat": "ContextWindowExceededError 400",
        "long prompt": "ContextWindowExceededError 400",
        "long answer": "ContextWindowExceededError 400",
        "bad value": "BadRequestError 400",
        "crowd": "RateLimitError 429",
    }


def test_langchain_completes_streams_and_maps_errors(server: Server) -> None:
    found = session(server, "langchain")

    check_chat(found["chat"])
    [streamed] = found["chat"]["streamed_usage"]
    assert streamed["completion"] == found["chat"]["usage"]["completion"]
    completion = found["completion"]
    assert completion["text"] == completion["streamed"] == completion["batch"][0]
    assert completion["batch"] == completion["generated"]
    assert completion["usage"]["total_tokens"] == sum(
        completion["usage"][key] for key in ("prompt_tokens", "completion_tokens")
    )
    errors = found["errors"]
    assert "AuthenticationError" in errors["wrong key"]
    assert "NotFoundError" in errors["no such model"]
    assert "ContextOverflowError" in errors["long chat"]
    assert "BadRequestError" in errors["bad value"]


def check_chat(chat: dict[str, Any]) -> None:
    """Whole and streamed alike; the second of the batch is a conversation in which a tool was called."""
    assert chat["text"]
    assert chat["streamed"] == chat["text"]
    assert 0 < chat["usage"]["completion"] <= 6
    assert 0 <= chat["usage"]["cached"] < chat["usage"]["prompt"]
    assert len(chat["batch"]) == 2
    assert set(chat["batch"]) <= {"stop", "length"}
