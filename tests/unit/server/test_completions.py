"""What the routes of completions and chats answer."""

import json
import logging

import pytest

from batcher.live import EngineAwayError, LiveRequestError
from batcher.server.app import Api, make_api
from batcher.server.guard.limits import Limits
from batcher.types import Delta, ErrorCode, RowError
from tests.support.api_client import ask, complete, events
from tests.support.scripted_engine import ScriptedEngine, Step, choice


def api(engine: ScriptedEngine | None = None, *, ignores_unknown: bool = False, limits: Limits | None = None) -> Api:
    return make_api(engine or ScriptedEngine(), keys=None, ignores_unknown=ignores_unknown, limits=limits)


def failing(*steps: Step) -> Api:
    return api(ScriptedEngine(script=lambda request: steps))


def row_error(code: ErrorCode) -> LiveRequestError:
    return LiveRequestError(RowError(code, "what is wrong; the remedy"))


def test_completion_has_the_documented_fields() -> None:
    answer = complete(api(), prompt="a b")

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.pop("id").startswith("cmpl-")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "text_completion",
        "model": "tiny",
        "system_fingerprint": "fp_tiny",
        "choices": [{"text": "<a b>", "index": 0, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 2,
            "total_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_choices_come_in_order_of_index_whatever_ended_first() -> None:
    engine = ScriptedEngine(script=lambda request: [choice(1, "second"), choice(0, "first")])

    body = complete(api(engine), prompt=["a", "b"]).json()

    assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "first"), (1, "second")]


def test_chat_is_answered_with_a_message() -> None:
    messages = [{"role": "user", "content": "hi"}]

    answer = ask(api(), "POST", "/v1/chat/completions", json={"model": "tiny", "messages": messages})

    assert answer.status_code == 200
    assert answer.json()["object"] == "chat.completion"
    assert answer.json()["choices"][0]["message"]["role"] == "assistant"


def test_stream_ends_with_done_and_has_a_finish_reason_only_at_last() -> None:
    answer = complete(api(), prompt="a b", stream=True)

    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, done = events(answer)
    assert done == "[DONE]"
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert "".join(c["text"] for c in choices) == "<a b>"
    assert {json.loads(chunk)["system_fingerprint"] for chunk in chunks} == {"fp_tiny"}
    assert [c["finish_reason"] for c in choices] == [None, None, "stop"]


def test_usage_is_streamed_where_it_was_asked_for() -> None:
    answer = complete(api(), stream=True, stream_options={"include_usage": True})

    *chunks, usage, _ = [json.loads(event) for event in events(answer)[:-1]] + [None]
    assert usage is not None
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 5
    assert all(chunk["usage"] is None for chunk in chunks if chunk is not None)


def test_streamed_chat_begins_with_the_role() -> None:
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "tiny", "messages": messages, "stream": True}

    answer = ask(api(), "POST", "/v1/chat/completions", json=body)

    assert json.loads(events(answer)[0])["choices"][0]["delta"]["role"] == "assistant"


def test_stream_that_fails_at_once_has_a_status_of_its_own() -> None:
    answer = complete(failing(row_error(ErrorCode.CONTEXT_LENGTH_EXCEEDED)), stream=True)

    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_stream_that_fails_midway_ends_with_an_error_event() -> None:
    answer = complete(failing(Delta(0, "begun"), row_error(ErrorCode.TIMEOUT)), stream=True)

    assert answer.status_code == 200
    *_, last = events(answer)
    assert json.loads(last)["error"]["code"] == "timeout"


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        (row_error(ErrorCode.INVALID_REQUEST), 400, "invalid_request"),
        (row_error(ErrorCode.CONTEXT_LENGTH_EXCEEDED), 400, "context_length_exceeded"),
        (row_error(ErrorCode.MODEL_NOT_FOUND), 404, "model_not_found"),
        (row_error(ErrorCode.TIMEOUT), 504, "timeout"),
        (row_error(ErrorCode.ENGINE_ERROR), 500, "engine_error"),
        (row_error(ErrorCode.WORKER_CRASHED), 500, "worker_crashed"),
        (EngineAwayError("loading"), 503, "engine_away"),
        (RuntimeError("secret detail"), 500, "internal_error"),
    ],
)
def test_failure_of_the_engine_has_its_status(failure: Exception, status: int, code: str) -> None:
    answer = complete(failing(failure))

    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert "secret" not in answer.text


def test_engine_that_is_away_says_when_to_come_again() -> None:
    assert int(complete(failing(EngineAwayError("loading"))).headers["retry-after"]) > 0


def test_timeout_is_not_to_be_sent_again_by_the_sdk() -> None:
    assert complete(failing(row_error(ErrorCode.TIMEOUT))).headers["x-should-retry"] == "false"


def test_unforeseen_error_is_logged_with_the_id_that_the_client_got(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = complete(failing(RuntimeError("secret detail")))

    assert answer.headers["x-request-id"] in caplog.text
    assert "secret detail" in caplog.text


def test_server_that_ignores_unknown_fields_names_them_in_a_header() -> None:
    answer = complete(api(ignores_unknown=True), colour="blue", **{"x\r\nset-cookie: a": 1})

    assert answer.status_code == 200
    assert answer.headers["x-batcher-ignored"].startswith("colour, x")
    assert "set-cookie" not in answer.headers


def test_unknown_fields_are_refused() -> None:
    answer = complete(api(), colour="blue")

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "colour"


def test_model_that_is_not_served_is_not_found() -> None:
    answer = complete(api(), model="large")

    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"


def test_server_without_models_finds_none() -> None:
    answer = complete(make_api(None, keys=None))

    assert answer.status_code == 404


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[]", b'{"model": "tiny"}', b"[" * 100_000, b'{"a":' * 100_000, b'"\xed\xa0\x80"']
)
def test_body_that_is_no_request_is_refused(body: bytes) -> None:
    answer = ask(api(), "POST", "/v1/completions", content=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_ten_thousand_prompts_are_refused_with_the_limit() -> None:
    answer = complete(api(), prompt=["a"] * 10_000)

    assert answer.status_code == 400
    assert "2,048" in answer.json()["error"]["message"]


def test_requests_without_a_seed_differ() -> None:
    engine = ScriptedEngine()

    for _ in range(2):
        complete(api(engine))

    assert engine.seen[0].row != engine.seen[1].row


def test_engine_is_told_how_long_a_request_may_take() -> None:
    engine = ScriptedEngine()

    complete(api(engine, limits=Limits(request_timeout_s=12.5)))

    assert engine.timeouts == [12.5]
