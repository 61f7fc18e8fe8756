"""Constraints as users give them: a job's schema on the real model, one of each row, and live beside hostile ones."""

import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from batcher.jobdir.folder import JobDir
from tests.acceptance.conftest import Batcher
from tests.support.family import Family
from tests.support.job_files import result_rows
from tests.support.serving import serve
from tests.support.tiny_gguf import write_tiny_gguf

NUM_ROWS = 24
WAIT_S = 300
VALIDATOR = jsonschema.Draft202012Validator

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "name": {"type": "string", "minLength": 1, "maxLength": 30},
        "born": {"type": "string", "format": "date"},
        "seen": {"type": "string", "format": "date-time"},
        "score": {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog", "bird"]},
        "address": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "zip": {"type": ["string", "null"], "pattern": "^[0-9]{5}$"},
            },
            "required": ["city", "zip"],
            "additionalProperties": False,
        },
        "pets": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string", "maxLength": 10}, "is_old": {"type": "boolean"}},
                "required": ["name", "is_old"],
                "additionalProperties": False,
            },
            "maxItems": 2,
        },
    },
    "additionalProperties": False,
}
SCHEMA["required"] = list(SCHEMA["properties"])


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def test_every_text_of_a_job_keeps_to_its_schema(tmp_path: Path, batcher: Batcher) -> None:
    # Given a schema of nested objects, arrays, enums, bounded numbers and formats
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA, indent=2))
    rows = ({"prompt": f"A person with the number {n}, as JSON:"} for n in range(NUM_ROWS))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    # When the real model draws at temperature 1
    options = ("--model", "smollm2-135m", "--max-tokens", 300, "--seed", 5)
    done = batcher("run", "prompts.jsonl", "-o", "out", "--json-schema", "schema.json", *options)

    # Then each text that came to its end is valid, formats and all
    assert done.returncode == 0, done.stderr
    found = result_rows(JobDir(tmp_path / "out"))
    ended = [row["text"] for row in found if row["finish_reason"] == "stop"]
    assert len(found) == NUM_ROWS
    assert len(ended) > NUM_ROWS * 0.8
    assert len(set(ended)) == len(ended)
    validator = VALIDATOR(SCHEMA, format_checker=VALIDATOR.FORMAT_CHECKER)
    for text in ended:
        assert list(validator.iter_errors(json.loads(text))) == []


def test_each_row_has_a_constraint_of_its_own(tmp_path: Path, tiny: Path, batcher: Batcher) -> None:
    # Given rows with constraints in a column, and lines of a batch with theirs
    formats: list[Any] = [
        {
            "type": "json_schema",
            "json_schema": {"name": "n", "schema": {"type": "integer", "minimum": 5, "maximum": 7}},
        },
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["only"]}}},
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "objekt"}}},
        {"type": "text"},
        None,
    ]
    rows: list[dict[str, Any]] = [{"prompt": "x", "response_format": each} for each in formats]
    body = {"model": "tiny", "prompt": "x", "max_tokens": 32, "structured_outputs": {"choice": ["left", "right"]}}
    rows.append({"custom_id": "line", "method": "POST", "url": "/v1/completions", "body": body})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    # When the job has another for the rest
    done = batcher(
        *("run", "rows.jsonl", "-o", "out", "--model", f"tiny={tiny}", "--threads", 1, "--max-tokens", 32),
        *("--fields", "response_format", "--regex", "[xyz]{4}"),
    )

    assert done.returncode == 1, done.stderr
    found = {row["row"]: row for row in result_rows(JobDir(tmp_path / "out"))}
    assert found[0]["text"] in ("5", "6", "7")
    assert found[1]["text"] == '"only"'
    assert found[2]["error_code"] == "invalid_request"
    assert "objekt" in found[2]["error_message"]
    assert len(found[3]["text"]) > 4
    assert len(found[4]["text"]) == 4
    assert set(found[4]["text"]) <= set("xyz")
    assert found[5]["text"] in ("left", "right")


def test_constraint_that_cannot_be_kept_is_refused_before_the_job(tmp_path: Path, tiny: Path, batcher: Batcher) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}\n')

    done = batcher(
        "run", "rows.jsonl", "-o", "out", "--model", f"tiny={tiny}", "--json-schema", '{"uniqueItems": true}'
    )

    assert done.returncode == 2
    assert "json_schema can't be compiled: Unimplemented keys" in done.stderr
    assert not (tmp_path / "out").exists()


def test_validate_says_which_rows_have_constraints_that_cannot_be_kept(
    tmp_path: Path, tiny: Path, batcher: Batcher
) -> None:
    (tmp_path / "rows.csv").write_text("prompt,guided_regex\nx,007\nx,(a\n")

    options = ("--model", f"tiny={tiny}", "--fields", "guided_regex")
    done = batcher("validate", "rows.csv", *options)
    ran = batcher("run", "rows.csv", "-o", "out", *options, "--threads", 1)

    assert done.returncode == ran.returncode == 1, done.stderr
    assert "the regex can't be compiled" in done.stdout
    good, bad = result_rows(JobDir(tmp_path / "out"))
    assert good["text"] == "007"
    assert bad["error_code"] == "invalid_request"


def test_server_answers_constrained_requests_and_outlives_hostile_ones(tmp_path: Path, tiny: Path) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    chat: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 64}
    with serve(Family(tmp_path), "--model", f"tiny={tiny}", "--no-auth", "--ctx", 512) as server:
        with httpx.Client(base_url=server.base_url, timeout=WAIT_S) as client:
            # When a client asks for JSON, whole, of several choices, and as a stream
            whole = client.post("/chat/completions", json=chat | {"response_format": wanted, "n": 3}).json()
            streamed = client.post("/chat/completions", json=chat | {"response_format": wanted, "stream": True}).text

            # Then all is JSON that keeps to the schema
            texts = [choice["message"]["content"] for choice in whole["choices"]]
            events = [line.removeprefix("data: ") for line in streamed.splitlines() if line.startswith("data: {")]
            texts.append("".join(json.loads(each)["choices"][0]["delta"].get("content") or "" for each in events))
            assert all(json.loads(text)["n"] in (1, 2) for text in texts)

            # When others send what takes long, what never ends, and what is nothing
            deep = {
                "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}]} for n in range(5_000)},
                "$ref": "#/$defs/d0",
            }
            hostile: list[dict[str, Any]] = [
                {"guided_json": deep},
                {"guided_regex": "(.?a?)" * 1_600},
                {"guided_grammar": "start: " + "(" * 40_000 + '"a"' + ")" * 40_000},
                {"guided_json": {"$ref": "#"}},
                {"guided_json": {"not": {}}},
            ]
            for each in hostile:
                answer = client.post("/chat/completions", json=chat | each)
                assert answer.status_code in (200, 400), answer.text

            # Then the server goes on, with what it had compiled and without
            assert client.post("/chat/completions", json=chat | {"response_format": wanted}).status_code == 200
            assert client.post("/chat/completions", json=chat).status_code == 200
        assert server.stop() == 0
