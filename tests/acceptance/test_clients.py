"""litellm and langchain-openai, which many programs speak the API through, with a server of the real model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.sessions import keyed_server, run_session
from tests.support.serving import Server

#: One server for all.
pytestmark = pytest.mark.xdist_group("clients")

MODEL = "smollm2-135m"
NUM_LINES = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with keyed_server(tmp_path_factory.mktemp("clients"), MODEL) as server:
        yield server


def test_litellm_completes_streams_and_maps_errors(server: Server, tmp_path: Path) -> None:
    batch = tmp_path / "batch.jsonl"
    with batch.open("w") as file:
        for number in range(NUM_LINES):
            body = {"model": MODEL, "prompt": f"The number {number}", "max_tokens": 3}
            line = {"custom_id": f"id-{number}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")

    found = run_session(server, "litellm", MODEL, batch, environment="clients")

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
    found = run_session(server, "langchain", MODEL, environment="clients")

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
