"""A model that reasons, from the file to the answer: a row, a batch line and live requests tell the same thoughts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import batcher
from tests.support.family import Family
from tests.support.serving import Server, serve
from tests.support.tiny_gguf import REASONING_TEMPLATE, THINK_MARKS, write_tiny_gguf
from tests.support.waiting import wait_for

WAIT_S = 60
#: Of rows, lines and live requests alike: one sequence at a time, drawn by seeds of their own.
ENGINE: dict[str, Any] = {"threads": 1, "slots": 1, "ctx": 256}
NUM = 6


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reasons") / "tiny.gguf"
    return write_tiny_gguf(path, chat_template=REASONING_TEMPLATE, thought_marks=THINK_MARKS, end_bias=6)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, reasoner: Path) -> Iterator[Server]:
    family = Family(tmp_path_factory.mktemp("serve"))
    options = [text for name, value in ENGINE.items() for text in (f"--{name}", value)]
    with serve(family, "--model", reasoner, "--no-auth", *options) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.root_url, timeout=WAIT_S) as client:
        yield client


def body_of(number: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"hi {number}"}]
    return {"model": "tiny", "messages": messages, "max_tokens": 40, "seed": number, **more}


def rows_of(reasoner: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    rows = [{"messages": body["messages"], "seed": body["seed"]} for body in map(body_of, range(NUM))]
    job = batcher.run(rows, out, model=str(reasoner), max_tokens=40, **ENGINE, **options)
    return list(job.results())


def streamed(client: httpx.Client, body: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Thoughts, text and usage of a stream."""
    reasoning = text = ""
    usage: dict[str, Any] = {}
    asked = body | {"stream": True, "stream_options": {"include_usage": True}}
    with client.stream("POST", "/v1/chat/completions", json=asked) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            usage = chunk["usage"] or usage
            for choice in chunk["choices"]:
                reasoning += choice["delta"].get("reasoning_content", "")
                text += choice["delta"].get("content", "")
    return reasoning, text, usage


def in_batch(client: httpx.Client, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers to bodies as lines of a batch, in order."""
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for number, body in enumerate(bodies)
    ]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"}).json()
    asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = client.post("/v1/batches", json=asked).json()
    url = f"/v1/batches/{batch['id']}"
    wait_for(lambda: client.get(url).json()["status"] == "completed", what="the batch is complete")
    output = client.get(f"/v1/files/{client.get(url).json()['output_file_id']}/content").text
    return [json.loads(line)["response"]["body"] for line in output.splitlines()]


def told(body: dict[str, Any]) -> list[tuple[str | None, str, str]]:
    return [
        (choice["message"].get("reasoning_content"), choice["message"]["content"], choice["finish_reason"])
        for choice in body["choices"]
    ]


def test_row_line_and_live_answer_tell_the_same_thoughts(client: httpx.Client, reasoner: Path, tmp_path: Path) -> None:
    rows = rows_of(reasoner, tmp_path / "out")
    bodies = [body_of(number) for number in range(NUM)]
    live = [client.post("/v1/chat/completions", json=body).json() for body in bodies]
    lines = in_batch(client, bodies)
    streams = [streamed(client, body) for body in bodies]

    of_rows = [(row["reasoning"], row["text"], row["finish_reason"]) for row in rows]
    assert [told(body) for body in live] == [[each] for each in of_rows]
    assert [told(body) for body in lines] == [[each] for each in of_rows]
    assert [(reasoning, text) for reasoning, text, _ in streams] == [(row["reasoning"], row["text"]) for row in rows]
    counts = [row["reasoning_tokens"] for row in rows]
    for bodies_usage in ([b["usage"] for b in live], [b["usage"] for b in lines], [usage for *_, usage in streams]):
        assert [usage["completion_tokens_details"]["reasoning_tokens"] for usage in bodies_usage] == counts
    # Some have closed their thoughts, others ran out of tokens in them.
    assert {bool(text) for _, text, _ in of_rows} == {True, False}
    lengths = [
        count for count, (_, text, reason) in zip(counts, of_rows, strict=True) if reason == "length" and not text
    ]
    assert set(lengths) == {40}


def test_several_choices_have_thoughts_of_their_own(client: httpx.Client) -> None:
    found = client.post("/v1/chat/completions", json=body_of(1, n=3, logprobs=True)).json()

    assert len({reasoning for reasoning, _, _ in told(found)}) == 3
    for choice in found["choices"]:
        tokens = [bytes(token["bytes"]) for token in choice["logprobs"]["content"]]
        assert b"".join(tokens).decode(errors="replace").lstrip() == choice["message"]["content"]
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] <= found["usage"]["completion_tokens"]


@pytest.mark.parametrize("reasoning", ["keep", "off"])
def test_option_field_and_line_say_the_same(
    client: httpx.Client, reasoner: Path, tmp_path: Path, reasoning: str
) -> None:
    rows = rows_of(reasoner, tmp_path / "out", reasoning=reasoning)
    bodies = [body_of(number, reasoning=reasoning) for number in range(NUM)]
    live = [client.post("/v1/chat/completions", json=body).json() for body in bodies]
    lines = in_batch(client, bodies)

    assert not {"reasoning", "reasoning_tokens"} & rows[0].keys()
    texts = [(None, row["text"], row["finish_reason"]) for row in rows]
    assert [told(body) for body in live] == [[each] for each in texts]
    assert [told(body) for body in lines] == [[each] for each in texts]
    assert "completion_tokens_details" not in live[0]["usage"]


def test_model_that_does_not_reason_has_the_columns_of_ever(model: Path, tmp_path: Path) -> None:
    job = batcher.run([{"prompt": "hi", "reasoning": "mine"}], tmp_path / "out", model=str(model), **ENGINE)

    assert "reasoning_tokens" not in job.results().columns
    # A column of the user's by this name keeps it, but where the job has one of ours.
    assert job.results().columns[-1] == "reasoning"
    asked = batcher.run(
        [{"prompt": "hi", "reasoning": "mine"}], tmp_path / "asked", model=str(model), reasoning="split", **ENGINE
    )
    assert asked.results().columns[-3:] == ["reasoning", "reasoning_tokens", "input_reasoning"]
