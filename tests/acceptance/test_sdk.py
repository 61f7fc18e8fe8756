"""The OpenAI SDK, in each of its major versions, with a server of the real model."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from batcher.models.resolver import parse_model
from tests.acceptance.sessions import keyed_server, run_session
from tests.support.serving import Server

#: One server for all.
pytestmark = pytest.mark.xdist_group("sdk")

#: As names are elsewhere: with a slash and a colon.
MODEL = "google/gemma3:27b"
BAD_LINE = 3
NUM_LINES = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with keyed_server(tmp_path_factory.mktemp("sdk"), f"{MODEL}={parse_model('smollm2-135m').path}") as server:
        yield server


@pytest.fixture(scope="module")
def batch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batch") / "batch.jsonl"
    with path.open("w") as file:
        for number in range(NUM_LINES):
            body = {"model": MODEL, "prompt": f"The number {number}", "max_tokens": 5, "temperature": 0}
            if number == BAD_LINE:
                body["max_tokens"] = 0
            line = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")
    return path


@pytest.mark.parametrize("major", [1, 2, 3])
def test_sdk_works_unchanged_but_for_base_url_and_key(server: Server, batch_file: Path, major: int) -> None:
    found = run_session(server, "sdk", MODEL, batch_file, environment=f"openai-{major}")

    assert found["version"].startswith(f"{major}.")
    assert found["models"] == {"ids": [MODEL], "one": MODEL}
    check_completions(found)
    check_batch(found["batch"])
    # The same model file and engine, live and in lines.
    fingerprints = {line["response"]["body"]["system_fingerprint"] for line in found["batch"]["output"]}
    assert fingerprints == {found["completion"]["system_fingerprint"]} == {found["stream"]["system_fingerprint"]}
    assert re.fullmatch(r"fp_[0-9a-f]{12}", fingerprints.pop())
    assert found["cancelled"] in {"cancelling", "cancelled"}
    assert found["errors"] == {
        "wrong key": "AuthenticationError 401 invalid_api_key",
        "bad value": "BadRequestError 400 invalid_request",
        "too long": "BadRequestError 400 context_length_exceeded",
        "no such model": "NotFoundError 404 model_not_found",
        "no such batch": "NotFoundError 404 None",
        "no such file": "NotFoundError 404 None",
        "crowd": "RateLimitError 429 rate_limit_exceeded",
    }


def check_completions(found: dict[str, dict[str, object]]) -> None:
    completion, stream, chat = found["completion"], found["stream"], found["chat"]
    assert completion["object"] == "text_completion"
    assert completion["finish_reason"] == "length"
    assert completion["usage"] == {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    assert completion["indices"] == [0, 1, 2, 3]
    assert stream["text"] == completion["text"]
    reasons = stream["finish_reasons"]
    assert isinstance(reasons, list)
    assert reasons == [None] * (len(reasons) - 1) + ["length"]
    assert stream["completion_tokens"] == 7
    assert chat["role"] == "assistant"
    assert chat["content"]
    assert chat["streamed"] == chat["content"]


def check_batch(batch: dict[str, object]) -> None:
    assert batch["first_status"] in {"validating", "in_progress"}
    assert batch["status"] == "completed"
    assert batch["counts"] == {"total": NUM_LINES, "completed": NUM_LINES - 1, "failed": 1}
    assert batch["metadata"] == {"description": "nightly eval job"}
    output, errors = batch["output"], batch["errors"]
    assert isinstance(output, list)
    assert isinstance(errors, list)
    assert {line["custom_id"] for line in output} == {f"request-{n}" for n in range(NUM_LINES) if n != BAD_LINE}
    assert all(line["response"]["status_code"] == 200 for line in output)
    assert all(line["response"]["body"]["choices"][0]["text"] for line in output)
    assert [line["custom_id"] for line in errors] == [f"request-{BAD_LINE}"]
    assert "max_tokens is 0" in json.dumps(errors[0])
    assert batch["is_listed"]
    assert batch["input_is_listed"]
    assert batch["deleted"]
