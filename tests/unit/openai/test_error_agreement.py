"""What is wrong with a body is told alike, live and in the error line of a batch: the same code, param and status."""

import io
import json
import math
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from batcher.jobdir.results import build_table
from batcher.openai.answers import batch_output_line
from batcher.server.app import make_api
from batcher.submission.readers.files import LineBatch, NamedStream, read_batches
from batcher.submission.rows import RowParser
from batcher.types import Completion, RequestFacts, SamplingParams
from tests.support.api_client import ask
from tests.support.job_files import carried_of
from tests.support.parsing import parse_line
from tests.support.scripted_engine import ScriptedEngine

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]

#: Bodies with one thing wrong in each, and the field that it is.
BODIES: list[tuple[str, dict[str, Any], str]] = [
    (TEXT, {"max_tokens": -1}, "max_tokens"),
    (TEXT, {"temperature": "hot"}, "temperature"),
    (TEXT, {"prompt": None}, "prompt"),
    (TEXT, {"prompt": ["a", 7]}, "prompt[1]"),
    (TEXT, {"stop": ["a", ""]}, "stop[1]"),
    (TEXT, {"n": 3, "best_of": 2}, "best_of"),
    (TEXT, {"logit_bias": {"x": 1}}, "logit_bias.x"),
    (TEXT, {"model": "other"}, "model"),
    (TEXT, {"model": 7}, "model"),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
    (CHAT, {"messages": [*MESSAGES, {"role": "user"}]}, "messages[1].content"),
    (CHAT, {"top_logprobs": 3}, "top_logprobs"),
    (CHAT, {"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
]


@pytest.mark.parametrize(("url", "wrong", "param"), BODIES)
def test_wrong_field_is_named_alike_live_and_in_a_line(url: str, wrong: dict[str, Any], param: str) -> None:
    # Given a body with one wrong field
    body = {"model": "tiny"} | ({"messages": MESSAGES} if url == CHAT else {"prompt": "p"}) | wrong
    body = {name: value for name, value in body.items() if value is not None}

    # When it is sent live, and as a line of a batch
    live = ask(make_api(ScriptedEngine(), keys=None), "POST", url, json=body)
    line = line_of({"custom_id": "a", "method": "POST", "url": url, "body": body})

    # Then both say the same
    error = line["response"]["body"]["error"]
    assert line["response"]["status_code"] == live.status_code
    told = live.json()["error"]
    assert [error[key] for key in ("param", "code", "type")] == [told[key] for key in ("param", "code", "type")]
    assert told["param"] == param
    assert told["code"] in {"invalid_request", "model_not_found"}


@pytest.mark.parametrize(
    ("url", "body", "problem", "param"),
    [
        (TEXT, '{"model": "tiny", "prompt": "a", "user": NaN}', "user is NaN, which is no JSON", "user"),
        (TEXT, '{"model": "tiny", "prompt": "a", "temperature": -Infinity}', "temperature is -Infinity", "temperature"),
        (
            CHAT,
            '{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "metadata": {"b": [1, Infinity]}}',
            "metadata.b[1] is Infinity",
            "metadata.b[1]",
        ),
    ],
)
def test_number_that_json_has_not_is_refused_alike_live_and_in_a_line(
    url: str, body: str, problem: str, param: str
) -> None:
    # Given a body with a number that JSON has not

    # When it is sent live, as a line of a batch, and as such a line of a `key=value` folder
    live = ask(make_api(ScriptedEngine(), keys=None), "POST", url, content=body.encode())
    line = f'{{"custom_id": "a", "method": "POST", "url": "{url}", "body": {body}}}'.encode()

    # Then all name it
    told = live.json()["error"]
    assert (live.status_code, told["param"]) == (400, param)
    assert told["message"].startswith(problem)
    for columns in ({}, {"year": 2024}):
        out = line_of_bytes(line, columns=columns)["response"]
        error = out["body"]["error"]
        assert out["status_code"] == 400
        assert [error[key] for key in ("param", "code", "type")] == [told[key] for key in ("param", "code", "type")]
        assert told["message"].split(";")[0] in error["message"]


def test_word_nan_in_a_prompt_and_nan_beside_the_body_are_no_mistakes() -> None:
    body = '{"model": "tiny", "prompt": "NaN, Infinity"}'
    line = f'{{"custom_id": "a", "method": "POST", "url": "{TEXT}", "body": {body}, "c": NaN}}'.encode()

    row = parse_line(line)

    assert row.error is None
    assert row.request.prompts == ("NaN, Infinity",)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"method": "GET"}, "method"),
        ({"body": math.nan}, "body"),
        ({"url": "/v1/embeddings"}, "url"),
        ({"body": {"prompt": "p"}}, "model"),
    ],
)
def test_frame_of_a_line_that_is_wrong_is_named(changes: dict[str, Any], param: str) -> None:
    frame = {"custom_id": "a", "method": "POST", "url": TEXT, "body": {"model": "tiny", "prompt": "p"}}

    assert line_of(frame | changes)["response"]["body"]["error"]["param"] == param


def line_of(line: dict[str, Any]) -> dict[str, Any]:
    """The line that comes out of a batch for one that is refused."""
    return line_of_bytes(json.dumps(line).encode())


def line_of_bytes(line: bytes, *, columns: dict[str, Any] | None = None) -> dict[str, Any]:
    parser = RowParser(params=SamplingParams(), default_model=None, known_models=frozenset({"tiny"}))
    [batch] = read_batches([NamedStream(io.BytesIO(line + b"\n"))])
    assert isinstance(batch, LineBatch)
    batch = replace(batch, columns=columns or {})
    [row] = parser.parse(batch, numbers=count()).rows
    assert row.error is not None
    table = build_table(
        [Completion(row.request, "", 5, error=row.error)], carried=carried_of([0]), attempt=1, worker="w"
    )
    facts = RequestFacts(is_chat=row.request.is_chat, is_refused=True, error_param=row.error.param)
    return batch_output_line(table.to_pylist(), digits="1f", facts=facts)
