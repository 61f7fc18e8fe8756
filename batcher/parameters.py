"""The fields of rows, bodies and batch lines: their types and bounds, and how a wrong value is worded.

The models are pydantic's, so that parsing and checking are one pass of compiled code, and the JSON schemas of the
server's documentation come from what really checks. They are strict: strings are no numbers, booleans are no integers,
NaN and infinities are refused, null means the default. An exact `16.0` is taken for an integer, because Parquet
writers turn integer columns with gaps into doubles.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, create_model

MAX_STOPS = 16
#: Each completion of a request keeps them as bytes.
MAX_STOP_CHARS = 1024
#: The shard format keeps max_tokens in 32 bits and seeds in 64, signed. Of a seed the lower 32 bits matter.
MAX_MAX_TOKENS = 2**31 - 1
MAX_SEED = 2**63 - 1
#: Of the documented API, as the bounds below.
MAX_CHOICES = 128
MAX_BIASES = 1024
MAX_MESSAGES = 2048
#: llama.cpp's ids have 32 bits, signed. Which of them a model has is known where it is loaded.
MAX_TOKEN_ID = 2**31 - 1

PARAM_FIELDS = ("max_tokens", "temperature", "top_p", "stop", "seed")
#: The fields of a plain row that make the request; they do not go along to the results.
ROW_FIELDS = ("custom_id", "prompt", "model", "stream", *PARAM_FIELDS)

COMPLETIONS_URL = "/v1/completions"
CHAT_URL = "/v1/chat/completions"

_NO_TOOLS = "tools are not supported; leave it out"
_REMEDIES = {
    "custom_id": "use a non-empty string or an integer",
    "prompt": "use a string, or a non-empty array of strings or of token ids",
    "model": "use a string",
    "stream": "use true or false",
    "max_tokens": "use a positive integer",
    "max_completion_tokens": "use a positive integer",
    "temperature": "use a number from 0 to 2",
    "top_p": "use a number above 0 and at most 1",
    "stop": f"use a string of 1 to {MAX_STOP_CHARS} characters, or an array of at most {MAX_STOPS} of them",
    "seed": "use an integer of at most 64 bits",
    "n": f"use an integer from 1 to {MAX_CHOICES}",
    "best_of": f"use an integer from n to {MAX_CHOICES}",
    "echo": "use true or false",
    "suffix": "use a string",
    "presence_penalty": "use a number from -2 to 2",
    "frequency_penalty": "use a number from -2 to 2",
    "logit_bias": f"use an object of at most {MAX_BIASES} token ids, as strings, each with a number from -100 to 100",
    "top_logprobs": "use an integer from 0 to 20",
    "stream_options": 'use an object such as {"include_usage": true}',
    "response_format": 'only {"type": "text"} is supported',
    "modalities": 'only ["text"] is supported',
    "audio": "audio is not supported; leave it out",
    "web_search_options": "there is no web search; leave it out",
    "tools": _NO_TOOLS,
    "tool_choice": _NO_TOOLS,
    "functions": _NO_TOOLS,
    "function_call": _NO_TOOLS,
    "messages": f"use an array of 1 to {MAX_MESSAGES} objects with role and content",
    "messages.role": 'use "system", "developer", "user", "assistant" or "tool"',
    "messages.content": 'use a string, or an array of parts {"type": "text", "text": "..."}',
    "messages.type": 'only parts of type "text" are supported',
    "messages.text": "use a string",
    "messages.name": "use a string",
    "messages.tool_calls": _NO_TOOLS,
    "messages.function_call": _NO_TOOLS,
    "messages.audio": "audio is not supported; leave it out",
    "method": 'use "POST"',
    "url": f'use "{COMPLETIONS_URL}" or "{CHAT_URL}"',
    "body": "use an object that holds the parameters of the request",
}
#: `logprobs` is one thing in a completion and another in a chat.
_LOGPROBS_REMEDIES = {False: "use an integer from 0 to 5", True: "use true or false, and top_logprobs for how many"}
_SHOWN_CHARS = 60
_BIASED_ID = r"^(0|[1-9][0-9]{0,8})$"


def _exact_int(value: Any) -> Any:
    return int(value) if type(value) is float and value.is_integer() else value


def _few_entries(value: Any) -> Any:
    # Before its entries are checked, so that a long object of wrong ones makes no long list of errors.
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise ValueError(f"more than {MAX_BIASES} entries")
    return value


# After the bounds: they are the integer's, and so its JSON schema has them.
_Exact = BeforeValidator(_exact_int)
_Tokens = Annotated[int, Field(ge=1, le=MAX_MAX_TOKENS), _Exact]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]
_CustomId = Annotated[str, Field(min_length=1)] | int | None
# fail_fast: a long array of wrong values must not become a long list of errors.
_Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
_TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]], Field(min_length=1, fail_fast=True)]
_TokenIdLists = Annotated[list[_TokenIds], Field(min_length=1, fail_fast=True)]


def _kind_of_array(prompt: Any) -> str:
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    return "id_lists" if isinstance(first, list) else "ids" if type(first) is int else "texts"


# By the first element, so that a wrong one further on is told as what is wrong with that kind of array. A string alone
# is outside: most prompts are, and for them no Python runs.
_Prompt = (
    str
    | Annotated[
        Annotated[_Texts, Tag("texts")] | Annotated[_TokenIds, Tag("ids")] | Annotated[_TokenIdLists, Tag("id_lists")],
        Discriminator(_kind_of_array),
    ]
)
_Bias = Annotated[
    dict[Annotated[str, Field(pattern=_BIASED_ID)], Annotated[float, Field(ge=-100, le=100)]],
    BeforeValidator(_few_entries),
    Field(json_schema_extra={"maxProperties": MAX_BIASES, "additionalProperties": False}),
]
_Nothing = Annotated[list[Any], Field(max_length=0, fail_fast=True)]


class Params(BaseModel):
    """The parameters of a plain row, all optional. Keys it does not know are kept in `__pydantic_extra__`."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = None
    stream: bool | None = None
    max_tokens: _Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED), _Exact] | None = None


class StreamOptions(BaseModel):
    """What a stream holds beside the completion."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None


class Body(Params):
    """What the bodies of both requests take beyond a plain row."""

    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), _Exact] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: _Bias | None = None
    stream_options: StreamOptions | None = None


class CompletionBody(Body):
    """The body of `POST /v1/completions`."""

    prompt: _Prompt
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES), _Exact] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Field(ge=0, le=5), _Exact] | None = None


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="allow", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: str | None = None
    tool_calls: _Nothing | None = None
    function_call: None = None
    audio: None = None


#: The fields that what lies in a body can lack.
_FIELDS_OF_PARTS = frozenset({"role", "content", "type", "text"})


class TextFormat(BaseModel):
    """The format of a chat's answer: free text."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["text"]


class ChatBody(Body):
    """The body of `POST /v1/chat/completions`. What asks for other than text is declared with what asks for nothing."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: _Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), _Exact] | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None
    audio: None = None
    web_search_options: None = None
    tools: _Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: _Nothing | None = None
    function_call: Literal["none", "auto"] | None = None


class BatchLine(BaseModel):
    """A line of an OpenAI batch input file. The body is checked by what its url says."""

    model_config = ConfigDict(extra="allow", strict=True)

    custom_id: _CustomId = None
    method: Literal["POST"]
    url: Literal["/v1/completions", "/v1/chat/completions"]
    body: dict[str, Any]


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


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a value: where it is (`messages[0].role`), and the message, which begins with that."""

    label: str
    message: str
    is_missing: bool = False


def explain(
    exc: ValidationError, values: Mapping[str, Any], fields: Mapping[str, str], *, is_chat: bool = False
) -> Problem:
    """What is wrong with a row or body, as `max_tokens is 0; use a positive integer`: the first error and its remedy.

    `values` is what was validated. `fields` maps the keys of a plain row to the fields they are read into; of a body
    it is empty.
    """
    errors = exc.errors(include_url=False, include_input=False)
    key = str(errors[0]["loc"][0])
    field = fields.get(key, key)
    # A union reports the errors of each of its branches; the deepest tells which element of an array is wrong.
    paths = [_path_in(values, error["loc"]) for error in errors if error["loc"][0] == key]
    path = max(paths, key=len)
    label = _label(path)
    names = [part for part in path[1:] if isinstance(part, str)]
    remedy = _REMEDIES.get(f"{field}.{names[-1]}" if names else field, _REMEDIES.get(field, ""))
    if field == "logprobs":
        remedy = _LOGPROBS_REMEDIES[is_chat]
    if errors[0]["type"] == "less_than_equal" and field in ("max_tokens", "max_completion_tokens"):
        remedy = f"use at most {MAX_MAX_TOKENS}"
    value: Any = values
    if field == "prompt" and fields and key not in values:
        remedy += ", or say with --prompt-column or --template where it comes from"
    for part in path:
        if isinstance(value, dict) and part not in value:
            return Problem(label, f"{label} is missing; {remedy}", is_missing=True)
        value = value[part]
    return Problem(label, f"{label} is {shown(value)}; {remedy}")


def _path_in(values: Mapping[str, Any], loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """The part of an error's location that leads into `values`; without the names of a union's branches."""
    path: list[str | int] = [loc[0]]
    value: Any = values.get(str(loc[0]))
    for position, part in enumerate(loc[1:], start=2):
        is_index = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_index or (isinstance(value, dict) and part in value):
            value = value[part]
        elif isinstance(value, dict) and position == len(loc) and part in _FIELDS_OF_PARTS:
            value = None  # It is missing.
        else:
            continue
        path.append(part)
    return tuple(path)


def _label(path: Sequence[str | int]) -> str:
    label = str(path[0])
    for part in path[1:]:
        is_name = isinstance(part, str) and part.isidentifier() and len(part) <= _SHOWN_CHARS
        label += f".{part}" if is_name else f"[{shown(part)}]"
    return label


def shown(value: Any) -> str:
    """A value as JSON for an error message, cut where it is long."""
    if isinstance(value, str):
        value = value[: _SHOWN_CHARS + 1]
    text = ""
    # Piece by piece: of a long array no more is written than is shown.
    for piece in json.JSONEncoder(ensure_ascii=False, default=str).iterencode(value):
        text += piece
        if len(text) > _SHOWN_CHARS:
            return text[: _SHOWN_CHARS - 3] + "..."
    return text
