"""The completion API at the edge: rows and OpenAI batch lines in, response objects out. The one place of validation.

A row is either plain, `{"prompt": ..., "max_tokens": ..., ...}`, or a line of an OpenAI batch file,
`{"custom_id", "method": "POST", "url": "/v1/completions", "body": {...}}`; an object `body` beside no prompt tells them
apart. The documented parameters (DESIGN section 2) are checked strictly: strings are no numbers, booleans are no
integers, NaN and infinities are refused, null means the default. An exact `16.0` is taken for an integer, because
Parquet writers turn integer columns with gaps into doubles.

What else a row holds: in a plain row it is a column of the user's and goes along to the results, whatever its name,
`n` and `logprobs` included. In the `body` of a batch line it is a parameter, so one that would change the completion
is refused unless it asks for nothing (`n` 1), and the ones that would not change it (`user`) are ignored.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from batcher.errors import InvalidRowError
from batcher.types import ErrorCode, RowStatus

MAX_STOPS = 16
#: The shard format keeps max_tokens in 32 bits and seeds in 64, signed. Of a seed the lower 32 bits matter.
MAX_MAX_TOKENS = 2**31 - 1
MAX_SEED = 2**63 - 1

PARAM_FIELDS = ("max_tokens", "temperature", "top_p", "stop", "seed")
#: The fields of a plain row that make the request; they do not go along to the results.
ROW_FIELDS = ("custom_id", "prompt", "model", "stream", *PARAM_FIELDS)

#: Parameters of the legacy API that are not implemented, each with the value that asks for nothing.
_NEUTRAL: dict[str, Any] = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "suffix": "",
    "logprobs": None,
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
_IGNORED = frozenset({"user", "stream_options"})

_REMEDIES = {
    "custom_id": "use a non-empty string or an integer",
    "prompt": "use a string or a non-empty array of strings",
    "model": "use a string",
    "stream": "use true or false",
    "max_tokens": "use a positive integer",
    "temperature": "use a number from 0 to 2",
    "top_p": "use a number above 0 and at most 1",
    "stop": f"use a non-empty string, or an array of at most {MAX_STOPS} of them",
    "seed": "use an integer of at most 64 bits",
    "method": 'use "POST"',
    "url": 'use "/v1/completions"',
    "body": "use an object that holds the parameters of the request",
}
_SHOWN_CHARS = 60

#: The HTTP status that the API would give; errors without one are the fault of no request.
_STATUS_CODES = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.MODEL_NOT_FOUND: 404,
}


def _exact_int(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


_Int = Annotated[int, BeforeValidator(_exact_int)]
_Stop = Annotated[str, Field(min_length=1)]
_CustomId = Annotated[str, Field(min_length=1)] | int | None
# fail_fast: a long array of wrong values must not become a long list of errors.
_Prompt = str | Annotated[list[str], Field(min_length=1, fail_fast=True)]


class Params(BaseModel):
    """The parameters of a row or body, all optional. Keys it does not know are kept in `__pydantic_extra__`."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = None
    stream: bool | None = None
    max_tokens: Annotated[_Int, Field(ge=1, le=MAX_MAX_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    seed: Annotated[_Int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None


class Body(Params):
    """The body of `POST /v1/completions`."""

    prompt: _Prompt


class BatchLine(BaseModel):
    """A line of an OpenAI batch input file."""

    model_config = ConfigDict(extra="allow", strict=True)

    custom_id: _CustomId = None
    method: Literal["POST"]
    url: Literal["/v1/completions"]
    body: Body


def row_model(*, prompt_column: str | None, id_column: str) -> type[BaseModel]:
    """The model of a plain row whose prompt and id are under these names; None: a template makes the prompt."""
    columns: dict[str, Any] = {"custom_id": (_CustomId, Field(None, validation_alias=id_column))}
    if prompt_column is not None:
        columns["prompt"] = (_Prompt, Field(validation_alias=prompt_column))
    return create_model("Row", __base__=Params, **columns)


def batch_line_model(*, id_column: str) -> type[BatchLine]:
    """`BatchLine` with its custom_id under another name."""
    custom_id: Any = (_CustomId, Field(None, validation_alias=id_column))
    return create_model("BatchLine", __base__=BatchLine, custom_id=custom_id)


def check_unsupported(extras: Mapping[str, Any]) -> None:
    """Refuse the keys of a body that `Body` does not know, if they ask for anything. Raises InvalidRowError."""
    for key, given in extras.items():
        if given is None or key in _IGNORED:
            continue
        if key not in _NEUTRAL:
            raise InvalidRowError(f"body.{key} is not supported; remove it")
        neutral = _NEUTRAL[key]
        if given != neutral or isinstance(given, bool) != isinstance(neutral, bool):
            raise InvalidRowError(f"body.{key} is {shown(given)}; only {shown(neutral)} is supported")


def explain(exc: ValidationError, values: Mapping[str, Any], fields: Mapping[str, str]) -> str:
    """What is wrong with a row, as `max_tokens is 0; use a positive integer`: the first error, its value, the remedy.

    `values` is what was validated, `fields` maps its keys to the fields they are read into.
    """
    errors = exc.errors(include_url=False, include_input=False)
    path = errors[0]["loc"]
    key = label = str(path[0])
    depth = 1
    if fields.get(key, key) == "body" and len(path) > 1:
        key, values, depth = str(path[1]), values["body"], 2
        label = f"body.{key}"
    field = fields.get(key, key)
    remedy = _REMEDIES[field]
    if key not in values:
        if field == "prompt" and depth == 1:
            remedy += ", or say with --prompt-column or --template where it comes from"
        return f"{label} is missing; {remedy}"
    value = values[key]
    # A union reports the errors of each of its branches; an index tells which element of an array is wrong.
    ends = (error["loc"][-1] for error in errors if error["loc"][:depth] == path[:depth])
    index = next((end for end in ends if isinstance(end, int)), None)
    if index is not None and isinstance(value, list):
        label, value = f"{label}[{index}]", value[index]
    if errors[0]["type"] == "less_than_equal" and field == "max_tokens":
        remedy = f"use at most {MAX_MAX_TOKENS}"
    return f"{label} is {shown(value)}; {remedy}"


def shown(value: Any) -> str:
    """A value as JSON for an error message, cut where it is long."""
    if isinstance(value, str):
        value = value[: _SHOWN_CHARS + 1]
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def completion_body(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The documented response object of one request; `rows` are its result rows in order of index.

    For a request that failed it is the documented error object, `{"error": {...}}`.
    """
    first = rows[0]
    if first["status"] == RowStatus.ERROR.value:
        code = ErrorCode(first["error_code"])
        kind = "invalid_request_error" if code in _STATUS_CODES else "server_error"
        return {"error": {"message": first["error_message"], "type": kind, "param": None, "code": code.value}}
    choices = [
        {"text": row["text"], "index": row["index"], "logprobs": None, "finish_reason": row["finish_reason"]}
        for row in rows
    ]
    created = first["created"]
    return {
        "id": first["id"],
        "object": "text_completion",
        "created": int(created.timestamp()) if isinstance(created, datetime) else created,
        "model": first["model"],
        "choices": choices,
        "usage": {
            name: sum(row[name] for row in rows) for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        },
    }


def batch_output_line(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The line of an OpenAI batch output file for one request; `rows` are its result rows in order of index.

    As in OpenAI's files, an error the API answers with an HTTP status has a `response` with that status, and an error
    for which no request is to blame (engine, crash, timeout) has `response` null and `error` set.
    """
    first = rows[0]
    name = str(first["id"]).removeprefix("cmpl-") if first["id"] else f"row-{first['row']}"
    line: dict[str, Any] = {
        "id": f"batch_req_{name}",
        "custom_id": first["custom_id"],
        "response": None,
        "error": None,
    }
    status = 200
    if first["status"] == RowStatus.ERROR.value:
        code = ErrorCode(first["error_code"])
        if code not in _STATUS_CODES:
            line["error"] = {"code": code.value, "message": first["error_message"]}
            return line
        status = _STATUS_CODES[code]
    line["response"] = {"status_code": status, "request_id": f"req_{name}", "body": completion_body(rows)}
    return line
