"""Response objects of completions and chats, whole and in chunks, and batch output lines."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.constraints import scored_choice
from batcher.jobdir.optional_columns import optional_schema
from batcher.jobdir.results import build_table
from batcher.openai.answers import (
    LEAST_LOGPROB,
    ChunkStream,
    batch_output_line,
    completion_body,
    completion_object,
    logprobs_object,
    token_text,
)
from batcher.types import (
    Choice,
    Completion,
    Delta,
    ErrorCode,
    FinishReason,
    FunctionCall,
    Request,
    RequestFacts,
    RowError,
    SamplingParams,
    TokenLogprob,
    Tools,
    Usage,
)
from tests.support.job_files import carried_of

TEXT = Request(0, "a", "m", ("p", "q"), True, SamplingParams(n=2))
CHAT = Request(0, "a", "m", ("[]",), False, SamplingParams(n=2), is_chat=True)
HEAD = {"id": "cmpl-1", "object": "text_completion", "created": 5, "model": "m", "system_fingerprint": None}
CHAT_HEAD = HEAD | {"id": "chatcmpl-1", "object": "chat.completion.chunk"}


def result_row(**changes: Any) -> dict[str, Any]:
    return {
        "row": 3,
        "custom_id": "a",
        "index": 0,
        "status": "ok",
        "id": "cmpl-1f",
        "object": "text_completion",
        "created": datetime(2026, 1, 2, tzinfo=UTC),
        "model": "m",
        "text": " world",
        "finish_reason": "stop",
        "logprobs": None,
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "cached_tokens": 1,
        "error_code": None,
        "error_message": None,
    } | changes


def usage_of(prompt: int, completion: int, *, cached: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def choice(index: int, logprobs: tuple[TokenLogprob, ...] | None = None) -> Choice:
    return Choice(index, f"text {index}", FinishReason.STOP, Usage(5, 3, 1), 1.0, logprobs)


def tokens(*texts: str) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(text.encode(), -1.0) for text in texts)


def stream_of(request: Request, *, includes_usage: bool = False) -> ChunkStream:
    completion_id = "chatcmpl-1" if request.is_chat else "cmpl-1"
    return ChunkStream(request, completion_id=completion_id, created=5, includes_usage=includes_usage)


# -- whole ------------------------------------------------------------------------------------------------------------


def test_completion_object_counts_each_prompt_once_and_every_choice() -> None:
    found = completion_object(Completion(TEXT, "cmpl-1", 5, tuple(choice(index) for index in range(4))))
    assert found == {
        **HEAD,
        "choices": [
            {"text": f"text {index}", "index": index, "logprobs": None, "finish_reason": "stop"} for index in range(4)
        ],
        "usage": usage_of(10, 12, cached=2),
    }


def test_chat_object_has_messages() -> None:
    found = completion_object(Completion(CHAT, "chatcmpl-1", 5, (choice(0), choice(1, tokens("x")))))
    assert (found["id"], found["object"]) == ("chatcmpl-1", "chat.completion")
    assert found["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "text 0", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert found["choices"][1]["logprobs"]["content"][0]["token"] == "x"
    assert found["usage"] == usage_of(5, 6, cached=1)


CALLING = Completion(
    replace(CHAT, params=SamplingParams(n=2, tools=Tools("[]"))),
    "chatcmpl-1",
    5,
    (
        Choice(0, "Let me see.", FinishReason.TOOL_CALLS, Usage(2, 3), 1.0, call=FunctionCall("f", '{"a": 1}')),
        Choice(1, "", FinishReason.LENGTH, Usage(2, 3), 1.0, call=FunctionCall("f", '{"a"')),
    ),
)


def test_call_is_the_same_in_an_object_in_rows_and_in_chunks() -> None:
    first, second = completion_object(CALLING)["choices"]
    schema = optional_schema(SamplingParams(), has_tools=True)
    table = build_table([CALLING], carried=carried_of([0]), attempt=1, worker="w", optional=schema)
    chunks = ChunkStream(CALLING.request, completion_id="chatcmpl-1", created=5, includes_usage=False)
    gained = [
        Delta(0, "Let me see."),
        Delta(0, "", call=FunctionCall("f", "")),
        Delta(0, "", call=FunctionCall("", '{"a"')),
        Delta(0, "", call=FunctionCall("", ": 1}")),
    ]
    pieces = [chunks.delta(delta)["choices"][0]["delta"] for delta in gained]
    end = chunks.end(CALLING.choices[0])["choices"][0]

    [call] = first["message"]["tool_calls"]
    assert call["function"] == {"name": "f", "arguments": '{"a": 1}'}
    assert (first["message"]["content"], first["finish_reason"]) == ("Let me see.", "tool_calls")
    assert (second["message"]["content"], second["finish_reason"]) == (None, "length")
    assert second["message"]["tool_calls"][0]["function"]["arguments"] == '{"a"'
    assert second["message"]["tool_calls"][0]["id"] != call["id"]
    assert completion_body(table.to_pylist())["choices"] == [first, second]
    assert pieces == [
        {"content": "Let me see."},
        {"tool_calls": [{"index": 0, **call, "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ": 1}"}}]},
    ]
    assert (end["delta"], end["finish_reason"]) == ({}, "tool_calls")


def test_object_of_a_failed_completion_is_the_error_object() -> None:
    failed = Completion(TEXT, "cmpl-1", 5, error=RowError(ErrorCode.TIMEOUT, "why"))
    error = {"message": "why", "type": "server_error", "param": None, "code": "timeout"}
    assert completion_object(failed) == {"error": error}


@pytest.mark.parametrize("request_", [TEXT, CHAT, replace(TEXT, params=SamplingParams(n=1))])
def test_result_rows_give_the_same_object_as_the_completion(request_: Request) -> None:
    choices = tuple(choice(index, tokens("a", "é")) for index in range(request_.num_choices))
    completion = Completion(request_, "chatcmpl-1" if request_.is_chat else "cmpl-1", 5, choices)
    rows = build_table([completion], carried=carried_of([0]), attempt=1, worker="w").to_pylist()
    assert completion_body(rows, facts=RequestFacts(request_.params.n)) == completion_object(completion)


# -- log-probabilities ------------------------------------------------------------------------------------------------


def test_legacy_logprobs_hold_the_token_itself_among_the_likeliest() -> None:
    found = logprobs_object(
        [TokenLogprob(b" a", -2.0, ((b" b", -0.5), (b"\xe2\x80", -1.0))), TokenLogprob(b"c", -0.1, ((b"c", -0.1),))],
        is_chat=False,
    )
    assert found == {
        "tokens": [" a", "c"],
        "token_logprobs": [-2.0, -0.1],
        "top_logprobs": [{" b": -0.5, "bytes:\\xe2\\x80": -1.0, " a": -2.0}, {"c": -0.1}],
        "text_offset": [0, 2],
    }
    assert logprobs_object(tokens("a"), is_chat=False) == {
        "tokens": ["a"],
        "token_logprobs": [-1.0],
        "top_logprobs": [{"a": -1.0}],
        "text_offset": [0],
    }


def test_chat_logprobs_hold_bytes() -> None:
    found = logprobs_object([TokenLogprob(b"\xc3", float("-inf"), ((b"a", -0.5),))], is_chat=True)
    assert found == {
        "content": [
            {
                "token": "bytes:\\xc3",
                "logprob": LEAST_LOGPROB,
                "bytes": [0xC3],
                "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}],
            }
        ],
        "refusal": None,
    }
    json.dumps(found, allow_nan=False)
    assert logprobs_object(None, is_chat=True) is None


def test_token_that_goes_on_with_a_character_begins_where_that_does() -> None:
    split = [TokenLogprob(part, -1.0) for part in (b"a", b"\xe2\x82", b"\xac", b"b")]
    found = logprobs_object(split, is_chat=False)
    assert found is not None
    assert found["text_offset"] == [0, 1, 1, 2]
    assert [token_text(token.token) for token in split[1:3]] == ["bytes:\\xe2\\x82", "bytes:\\xac"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3), max_size=8), st.data())
def test_offsets_of_chunks_are_those_of_the_whole(texts: list[str], data: st.DataObject) -> None:
    every = tokens(*texts)
    whole = logprobs_object(every, is_chat=False)
    assert whole is not None
    assert whole["text_offset"] == [len("".join(texts[:number])) for number in range(len(texts))]

    stream = stream_of(TEXT)
    offsets: list[int] = []
    start = 0
    while start < len(every):
        end = data.draw(st.integers(start + 1, len(every)))
        chunk = stream.delta(Delta(1, "".join(texts[start:end]), every[start:end]))
        offsets += chunk["choices"][0]["logprobs"]["text_offset"]
        start = end
    assert offsets == whole["text_offset"]


# -- chunks -----------------------------------------------------------------------------------------------------------


def test_chunks_of_a_completion() -> None:
    stream = stream_of(TEXT)
    assert stream.opening() == []
    assert stream.delta(Delta(3, "more")) == {
        **HEAD,
        "choices": [{"text": "more", "index": 3, "logprobs": None, "finish_reason": None}],
    }
    assert stream.end(choice(3)) == {
        **HEAD,
        "choices": [{"text": "", "index": 3, "logprobs": None, "finish_reason": "stop"}],
    }


def test_chunks_of_a_chat_begin_with_the_role_of_each_choice() -> None:
    stream = stream_of(CHAT)
    assert stream.opening() == [
        {
            **CHAT_HEAD,
            "choices": [
                {
                    "index": index,
                    "delta": {"role": "assistant", "content": ""},
                    "logprobs": None,
                    "finish_reason": None,
                }
            ],
        }
        for index in range(2)
    ]
    (delta,) = stream.delta(Delta(1, "more", tokens("more")))["choices"]
    assert (delta["index"], delta["delta"], delta["finish_reason"]) == (1, {"content": "more"}, None)
    assert delta["logprobs"]["content"][0]["bytes"] == [109, 111, 114, 101]
    assert stream.end(choice(1))["choices"] == [{"index": 1, "delta": {}, "logprobs": None, "finish_reason": "stop"}]


def test_echo_opens_each_choice_with_its_prompt() -> None:
    stream = stream_of(replace(TEXT, params=SamplingParams(n=2, echo=True)))
    opened = [(chunk["choices"][0]["index"], chunk["choices"][0]["text"]) for chunk in stream.opening()]
    assert opened == [(0, "p"), (1, "p"), (2, "q"), (3, "q")]


@pytest.mark.parametrize("request_", [TEXT, CHAT])
def test_usage_comes_last_and_is_null_before(request_: Request) -> None:
    stream = stream_of(request_, includes_usage=True)
    chunks = [*stream.opening(), stream.delta(Delta(0, "x"))]
    choices = [choice(index) for index in range(request_.num_choices)]
    # They end in any order.
    chunks += [stream.end(one) for one in reversed(choices)]
    assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks)
    last = stream.usage()
    whole = completion_object(Completion(request_, "x", 5, tuple(choices)))
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert "usage" not in stream_of(request_).delta(Delta(0, "x"))


# -- from result rows -------------------------------------------------------------------------------------------------


def test_completion_body_groups_choices_and_adds_up_usage() -> None:
    rows = [result_row(), result_row(index=1, text=" moon", finish_reason="length")]
    assert completion_body(rows) == {
        "id": "cmpl-1f",
        "object": "text_completion",
        "created": 1767312000,
        "model": "m",
        "system_fingerprint": None,
        "choices": [
            {"text": " world", "index": 0, "logprobs": None, "finish_reason": "stop"},
            {"text": " moon", "index": 1, "logprobs": None, "finish_reason": "length"},
        ],
        "usage": usage_of(4, 6, cached=2),
    }


def test_batch_output_line_of_a_completion() -> None:
    line = batch_output_line([result_row()], digits="1f")
    assert json.loads(json.dumps(line)) == {
        "id": "batch_req_1f",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req_1f", "body": completion_body([result_row()])},
        "error": None,
    }


def test_batch_output_line_of_a_chat() -> None:
    row = result_row(id="chatcmpl-1f", object="chat.completion", logprobs='{"content": [], "refusal": null}')
    line = batch_output_line([row], digits="1f")
    assert (line["id"], line["response"]["request_id"]) == ("batch_req_1f", "req_1f")
    body = line["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": " world", "refusal": None},
            "logprobs": {"content": [], "refusal": None},
            "finish_reason": "stop",
        }
    ]


@pytest.mark.parametrize(
    ("code", "status", "param"),
    [("invalid_request", 400, None), ("context_length_exceeded", 400, "prompt"), ("model_not_found", 404, "model")],
)
def test_batch_output_line_of_a_refused_request_has_its_status(code: str, status: int, param: str | None) -> None:
    line = batch_output_line([result_row(status="error", id=None, error_code=code, error_message="why")], digits="2e")
    assert (line["id"], line["error"]) == ("batch_req_2e", None)
    assert line["response"]["status_code"] == status
    expected = {"message": "why", "type": "invalid_request_error", "param": param, "code": code}
    assert line["response"]["body"] == {"error": expected}


@pytest.mark.parametrize(
    ("message", "facts", "param"),
    [
        ("logit_bias has the token 9; the model's go from 0 to 8", RequestFacts(), "logit_bias"),
        ("messages: the model has no chat template", RequestFacts(is_chat=True), "messages"),
        ("the model has no such thing", RequestFacts(), None),
        ("prompt:3: not JSON", RequestFacts(is_refused=True), None),
        ("in.jsonl:3: body.stop[1] is 7", RequestFacts(is_refused=True, error_param="stop[1]"), "stop[1]"),
    ],
)
def test_error_line_names_the_field_that_is_wrong(message: str, facts: RequestFacts, param: str | None) -> None:
    row = result_row(status="error", id=None, error_code="invalid_request", error_message=message)

    error = batch_output_line([row], digits="2e", facts=facts)["response"]["body"]["error"]

    assert (error["param"], error["code"], error["message"]) == (param, "invalid_request", message)


@pytest.mark.parametrize("code", ["engine_error", "worker_crashed", "timeout"])
def test_batch_output_line_of_our_failure_has_no_response(code: str) -> None:
    line = batch_output_line([result_row(status="error", id=None, error_code=code, error_message="why")], digits="2e")
    assert (line["response"], line["error"]) == (None, {"code": code, "message": "why"})


def test_probabilities_of_scored_labels_are_in_each_choice_and_the_last_chunk() -> None:
    params = SamplingParams(constraint=scored_choice(["yes", "no"]))
    choice = Choice(0, "yes", FinishReason.STOP, Usage(3, 1), 1.0, label_logprobs=(-1.0, -1.0))
    request = Request(0, "row-0", "m", ("p",), False, params)
    stream = ChunkStream(request, completion_id="cmpl-1", created=1, includes_usage=False)

    scores = {"yes": 0.5, "no": 0.5}
    whole = completion_object(Completion(request, "cmpl-1", 1, (choice,)))
    assert whole["choices"][0]["scores"] == scores
    assert stream.end(choice)["choices"][0]["scores"] == scores
    row = build_table(
        [Completion(request, "cmpl-1", 1, (choice,))],
        carried=carried_of([0]),
        attempt=1,
        worker="w",
        optional=optional_schema(params),
    ).to_pylist()
    assert completion_body(row)["choices"][0]["scores"] == scores
