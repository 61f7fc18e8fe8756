"""Typed answers and called functions, by the SDK, langchain and instructor, with a server of the real model."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.acceptance.conftest import Batcher
from tests.acceptance.sessions import keyed_server, run_session
from tests.support.serving import Server

#: One server for all.
pytestmark = pytest.mark.xdist_group("structured")

MODEL = "smollm2-135m"
NUM_LINES = 6
LABELS = ["sunny", "rainy", "very cold"]
CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "forecast", "description": "The weather.", "parameters": CITY}}]
FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": CITY}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with keyed_server(tmp_path_factory.mktemp("structured"), MODEL) as server:
        yield server


@pytest.mark.parametrize("major", [1, 2, 3])
def test_sdk_parses_answers_and_calls(server: Server, major: int) -> None:
    found = run_session(server, "structured", MODEL, environment=f"openai-{major}")

    assert found["version"].startswith(f"{major}.")
    assert set(found["report"]) == {"city", "readings"}
    call = found["call"]
    assert call["name"] in {"Weather", "Now"}
    assert (call["content"], call["finish_reason"]) == (None, "tool_calls")
    assert call["after"] in {"stop", "length", "tool_calls"}
    assert found["named"] == ["Now"]
    streamed = found["streamed"]
    assert (streamed["finish_reason"], streamed["is_parsed"]) == ("tool_calls", True)
    # The first piece has the name, those behind it what the arguments gain.
    assert streamed["num_pieces"] > 1 or streamed["arguments"] == "{}"
    assert found["refused"] == "tools[0].function.name"


def test_langchain_has_structured_output_by_schema_and_by_function(server: Server) -> None:
    found = run_session(server, "langchain_structured", MODEL, environment="clients")

    for method in ("json_schema", "function_calling"):
        assert set(found[method]) == {"city", "sky"}
    call = found["call"]
    assert (call["name"], call["finish_reason"]) == ("forecast", "tool_calls")
    assert {name: type(value) for name, value in call["args"].items()} == {"city": str, "days": int}
    [(name, arguments)] = call["streamed"]
    assert (name, set(arguments)) == ("forecast", {"city", "days"})
    assert call["after"] in {"stop", "length", "tool_calls"}


def test_instructor_has_typed_answers_in_every_mode(server: Server) -> None:
    found = run_session(server, "instructor", MODEL, environment="clients")

    assert set(found) == {"JSON", "JSON_SCHEMA", "TOOLS"}
    for mode in ("JSON_SCHEMA", "TOOLS"):
        assert found[mode]["sky"] in {"clear", "clouds", "rain"}
        assert -30 <= found[mode]["degrees"] <= 50


def test_batch_file_has_typed_answers_and_calls(batcher: Batcher, tmp_path: Path) -> None:
    """Given a batch file with schemas, tools and labels to be scored in turn, when it is run, then each answer keeps to
    its own, and OpenAI's lines have what the server answers."""
    lines = []
    for number in range(NUM_LINES):
        kinds: list[dict[str, Any]] = [
            {"response_format": FORMAT},
            {"tools": TOOLS, "tool_choice": "required"},
            {"structured_outputs": {"choice": LABELS, "scores": True}},
        ]
        more = kinds[number % 3]
        message = {"role": "user", "content": f"How is the weather on day {number}?"}
        body = {"model": MODEL, "messages": [message], "max_tokens": 100, **more}
        lines.append({"custom_id": f"id-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    (tmp_path / "batch.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    run = batcher("run", "batch.jsonl", "-o", "job", "--model", MODEL)
    assert run.returncode == 0, run.stderr
    exported = batcher("export", "job", "-o", "openai.jsonl", "--format", "openai")
    assert exported.returncode == 0, exported.stderr

    answered = [json.loads(line) for line in (tmp_path / "openai.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in answered] == [f"id-{number}" for number in range(NUM_LINES)]
    for number, line in enumerate(answered):
        [choice] = line["response"]["body"]["choices"]
        if number % 3 == 2:
            assert set(choice["scores"]) == set(LABELS)
            assert sum(choice["scores"].values()) == pytest.approx(1)
            assert choice["message"]["content"] == max(choice["scores"], key=choice["scores"].__getitem__)
        elif number % 3:
            [call] = choice["message"]["tool_calls"]
            assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
            assert call["function"]["name"] == "forecast"
            jsonschema.validate(json.loads(call["function"]["arguments"]), CITY)
        else:
            assert choice["finish_reason"] == "stop"
            jsonschema.validate(json.loads(choice["message"]["content"]), CITY)
