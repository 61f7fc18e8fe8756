"""What is wrong with a body is told alike, live and in the error line of a batch: the same code, param and status."""

import io
import json
from typing import Any

import pytest

from batcher.jobdir.results import build_table
from batcher.openai.answers import batch_output_line
from batcher.server.app import make_app
from batcher.submission.readers.files import STDIN, InputFile, read_batches
from batcher.submission.rows import RowParser
from batcher.types import Completion, RequestFacts, SamplingParams
from tests.support.api_client import ask
from tests.support.job_files import carried_of
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
    live = ask(make_app(ScriptedEngine(), keys=None), "POST", url, json=body)
    line = line_of({"custom_id": "a", "method": "POST", "url": url, "body": body})

    # Then both say the same
    error = line["response"]["body"]["error"]
    assert line["response"]["status_code"] == live.status_code
    told = live.json()["error"]
    assert [error[key] for key in ("param", "code", "type")] == [told[key] for key in ("param", "code", "type")]
    assert told["param"] == param
    assert told["code"] in {"invalid_request", "model_not_found"}


@pytest.mark.parametrize(
    ("changes", "param"),
    [({"method": "GET"}, "method"), ({"url": "/v1/embeddings"}, "url"), ({"body": {"prompt": "p"}}, "model")],
)
def test_frame_of_a_line_that_is_wrong_is_named(changes: dict[str, Any], param: str) -> None:
    frame = {"custom_id": "a", "method": "POST", "url": TEXT, "body": {"model": "tiny", "prompt": "p"}}

    assert line_of(frame | changes)["response"]["body"]["error"]["param"] == param


def line_of(line: dict[str, Any]) -> dict[str, Any]:
    """The line that comes out of a batch for one that is refused."""
    parser = RowParser(params=SamplingParams(), default_model=None, known_models=frozenset({"tiny"}))
    data = json.dumps(line).encode() + b"\n"
    [batch] = read_batches([InputFile(STDIN)], stdin=io.BytesIO(data))
    [row] = parser.parse(batch, first_row=0).rows
    assert row.error is not None
    table = build_table(
        [Completion(row.request, "", 5, error=row.error)], carried=carried_of([0]), attempt=1, worker="w"
    )
    facts = RequestFacts(is_chat=row.request.is_chat, is_refused=True, error_param=row.error.param)
    return batch_output_line(table.to_pylist(), digits="1f", facts=facts)
