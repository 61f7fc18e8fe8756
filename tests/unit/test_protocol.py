"""Response objects, batch output lines, and how errors are worded."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from batcher.errors import InvalidRowError
from batcher.protocol import (
    MAX_STOPS,
    ROW_FIELDS,
    Body,
    batch_output_line,
    check_unsupported,
    completion_body,
    explain,
    row_model,
    shown,
)

FIELDS = {name: name for name in ROW_FIELDS}


def result_row(**changes: Any) -> dict[str, Any]:
    return {
        "row": 3,
        "custom_id": "a",
        "index": 0,
        "status": "ok",
        "id": "cmpl-1f",
        "created": datetime(2026, 1, 2, tzinfo=UTC),
        "model": "m",
        "text": " world",
        "finish_reason": "stop",
        "prompt_tokens": 2,
        "completion_tokens": 3,
        "total_tokens": 5,
        "error_code": None,
        "error_message": None,
    } | changes


def problem(values: dict[str, Any]) -> str:
    model = row_model(prompt_column="prompt", id_column="custom_id")
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"prompt": "x"} | values)
    return explain(caught.value, {"prompt": "x"} | values, FIELDS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; use a positive integer"),
        ({"max_tokens": -1}, "max_tokens is -1; use a positive integer"),
        ({"max_tokens": "5"}, 'max_tokens is "5"; use a positive integer'),
        ({"max_tokens": True}, "max_tokens is true; use a positive integer"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5; use a positive integer"),
        ({"max_tokens": 2**31}, "max_tokens is 2147483648; use at most 2147483647"),
        ({"temperature": 2.1}, "temperature is 2.1; use a number from 0 to 2"),
        ({"temperature": "0"}, 'temperature is "0"; use a number from 0 to 2'),
        ({"temperature": True}, "temperature is true; use a number from 0 to 2"),
        ({"temperature": float("nan")}, "temperature is NaN; use a number from 0 to 2"),
        ({"top_p": 0}, "top_p is 0; use a number above 0 and at most 1"),
        ({"top_p": float("inf")}, "top_p is Infinity; use a number above 0 and at most 1"),
        ({"stop": ""}, f'stop is ""; use a non-empty string, or an array of at most {MAX_STOPS} of them'),
        ({"stop": ["a", ""]}, f'stop[1] is ""; use a non-empty string, or an array of at most {MAX_STOPS} of them'),
        ({"stop": 5}, f"stop is 5; use a non-empty string, or an array of at most {MAX_STOPS} of them"),
        ({"seed": 2**63}, "seed is 9223372036854775808; use an integer of at most 64 bits"),
        ({"stream": "yes"}, 'stream is "yes"; use true or false'),
        ({"model": 5}, "model is 5; use a string"),
        ({"prompt": []}, "prompt is []; use a string or a non-empty array of strings"),
        ({"prompt": None}, "prompt is null; use a string or a non-empty array of strings"),
        ({"prompt": ["a", 5, 6]}, "prompt[1] is 5; use a string or a non-empty array of strings"),
        ({"prompt": {"a": 1}}, 'prompt is {"a": 1}; use a string or a non-empty array of strings'),
        ({"custom_id": ""}, 'custom_id is ""; use a non-empty string or an integer'),
        ({"custom_id": 1.5}, "custom_id is 1.5; use a non-empty string or an integer"),
    ],
)
def test_wrong_value_is_named_with_its_remedy(values: dict[str, Any], message: str) -> None:
    assert problem(values) == message


def test_too_many_stops_are_refused() -> None:
    assert problem({"stop": ["a"] * (MAX_STOPS + 1)}).startswith('stop is ["a", "a"')


def test_long_array_of_wrong_values_makes_one_short_message() -> None:
    message = problem({"prompt": list(range(100_000))})
    assert message == "prompt[0] is 0; use a string or a non-empty array of strings"


def test_exact_float_and_null_are_taken() -> None:
    body = Body.model_validate({"prompt": "x", "max_tokens": 16.0, "seed": -(2**63), "top_p": 1, "stop": None})
    assert (body.max_tokens, body.seed, body.top_p, body.stop) == (16, -(2**63), 1.0, None)


@pytest.mark.parametrize("value", ["x" * 1000, ["y" * 1000], {"k": "z" * 1000}])
def test_long_values_are_cut_in_messages(value: Any) -> None:
    assert len(shown(value)) == 60
    assert shown(value).endswith("...")


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert shown("a\x1b[31m\n") == '"a\\u001b[31m\\n"'


@pytest.mark.parametrize(
    "extras",
    [
        {
            "n": 1,
            "best_of": 1,
            "echo": False,
            "suffix": "",
            "logprobs": None,
            "logit_bias": {},
            "presence_penalty": 0.0,
        },
        {"user": "someone", "stream_options": {"include_usage": True}},
        {"whatever": None},
    ],
)
def test_parameters_that_ask_for_nothing_are_taken(extras: dict[str, Any]) -> None:
    check_unsupported(extras)


@pytest.mark.parametrize(
    ("extras", "message"),
    [
        ({"n": 2}, "body.n is 2; only 1 is supported"),
        ({"n": True}, "body.n is true; only 1 is supported"),
        ({"echo": 0}, "body.echo is 0; only false is supported"),
        ({"logprobs": 0}, "body.logprobs is 0; only null is supported"),
        ({"frequency_penalty": 0.5}, "body.frequency_penalty is 0.5; only 0 is supported"),
        ({"top_k": 40}, "body.top_k is not supported; remove it"),
    ],
)
def test_parameters_that_would_change_the_completion_are_refused(extras: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRowError, match=f"^{message}$"):
        check_unsupported(extras)


def test_completion_body_groups_choices_and_adds_up_usage() -> None:
    rows = [result_row(), result_row(index=1, text=" moon", finish_reason="length")]
    assert completion_body(rows) == {
        "id": "cmpl-1f",
        "object": "text_completion",
        "created": 1767312000,
        "model": "m",
        "choices": [
            {"text": " world", "index": 0, "logprobs": None, "finish_reason": "stop"},
            {"text": " moon", "index": 1, "logprobs": None, "finish_reason": "length"},
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 6, "total_tokens": 10},
    }


def test_batch_output_line_of_a_completion() -> None:
    line = batch_output_line([result_row()])
    assert json.loads(json.dumps(line)) == {
        "id": "batch_req_1f",
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req_1f", "body": completion_body([result_row()])},
        "error": None,
    }


@pytest.mark.parametrize(
    ("code", "status"), [("invalid_request", 400), ("context_length_exceeded", 400), ("model_not_found", 404)]
)
def test_batch_output_line_of_a_refused_request_has_its_status(code: str, status: int) -> None:
    line = batch_output_line([result_row(status="error", id=None, error_code=code, error_message="why")])
    assert (line["id"], line["error"]) == ("batch_req_row-3", None)
    assert line["response"]["status_code"] == status
    expected = {"message": "why", "type": "invalid_request_error", "param": None, "code": code}
    assert line["response"]["body"] == {"error": expected}


@pytest.mark.parametrize("code", ["engine_error", "worker_crashed", "timeout"])
def test_batch_output_line_of_our_failure_has_no_response(code: str) -> None:
    line = batch_output_line([result_row(status="error", id=None, error_code=code, error_message="why")])
    assert (line["response"], line["error"]) == (None, {"code": code, "message": "why"})
