"""The models of rows, bodies and batch lines, made of the fields in `fields`, and how a wrong value is worded.

They are pydantic's, so that parsing and checking are one pass of compiled code, and the JSON schemas of the server's
documentation come from what really checks. They are strict: strings are no numbers, booleans are no integers,
NaN and infinities are refused, null means the default. An exact `16.0` is taken for an integer, because Parquet
writers turn integer columns with gaps into doubles.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
)

from batcher.openai.body_field import integer
from batcher.openai.chat_messages import Message
from batcher.openai.fields import BY_NAME, MAX_MAX_TOKENS, MAX_MESSAGES, PARAM_FIELDS
from batcher.openai.tool_fields import TOOL_REMEDIES

#: llama.cpp's ids have 32 bits, signed. Which of them a model has is known where it is loaded.
MAX_TOKEN_ID = 2**31 - 1

#: The fields of a plain row that make the request; they do not go along to the results.
ROW_FIELDS = ("custom_id", "prompt", "model", "stream", *PARAM_FIELDS)

COMPLETIONS_URL = "/v1/completions"
CHAT_URL = "/v1/chat/completions"

CONTENT_REMEDY = 'use a string, or an array of parts {"type": "text", "text": "..."}'
#: Of what is no field of a body.
_REMEDIES = {
    "custom_id": "use a non-empty string or a finite number",
    "messages.role": 'use "system", "developer", "user", "assistant", "tool" or "function"',
    "messages.content": CONTENT_REMEDY,
    "messages.type": 'only parts of type "text" are supported',
    "messages.text": "use a string",
    "messages.name": "use a string",
    "messages.reasoning_content": "use a string",
    "messages.reasoning": "use a string",
    "messages.thinking": "use a string",
    "messages.tool_call_id": "use a string",
    "messages.tool_calls": 'use an array of calls {"id", "type": "function", "function": {"name", "arguments"}}',
    "messages.function": "use an object with name and arguments",
    "messages.function_call": "use an object with name and arguments",
    "messages.arguments": "use a string of JSON",
    "messages.id": "use a string",
    "messages.audio": "audio is not supported; leave it out",
    "method": 'use "POST"',
    "url": f'use "{COMPLETIONS_URL}" or "{CHAT_URL}"',
    "body": "use an object that holds the parameters of the request",
    **TOOL_REMEDIES,
}
_SHOWN_CHARS = 60
#: Larger floats have no digits for the places that they would be written with.
_END_OF_WHOLE_IDS = 2**63


def float_id(value: float) -> str | None:
    """A float as an id: whole numbers without a fraction, so that 1.0 is "1". NaN, a writer's word for null, is no id.

    Raises ValueError for infinities.
    """
    if value != value:
        return None
    if value - value != 0:
        raise ValueError(f"{value} is no id")
    return str(int(value)) if value.is_integer() and abs(value) < _END_OF_WHOLE_IDS else str(value)


# A float comes last, as integers are floats to it: what it makes of one is asked for no other value.
_FloatId = Annotated[float, Field(allow_inf_nan=True), AfterValidator(float_id)]
_CustomId = Annotated[str, Field(min_length=1)] | int | _FloatId | None
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
_Nothing = Annotated[list[Any], Field(max_length=0, fail_fast=True)]


class Params(BaseModel):
    """What a plain row and a body have in common. Keys that a model does not know are kept in `__pydantic_extra__`.

    The parameters are put in from `fields`: they are attributes of an instance that mypy does not know of.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    model: str | None = None
    stream: bool | None = None


class StreamOptions(BaseModel):
    """What a stream holds beside the completion."""

    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None


class Body(Params):
    """What the bodies of both requests have in common."""

    stream_options: StreamOptions | None = None


class CompletionBody(Body):
    """The body of `POST /v1/completions`, but for its parameters."""

    prompt: _Prompt


#: The fields that what lies in a body can lack.
_FIELDS_OF_PARTS = frozenset({"role", "content", "type", "text", "function", "name", "arguments"})


class ChatBody(Body):
    """The body of `POST /v1/chat/completions`, but for its parameters."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]


def _parameters(names: Iterable[str], *, is_chat: bool) -> dict[str, Any]:
    """The fields of these names as pydantic's `create_model` takes them; those that are not honoured as anything."""
    found = [BY_NAME[is_chat][name] for name in names]
    made = {field.name: (Any if field.annotation is None else field.annotation | None, None) for field in found}
    if "echo" in made and not is_chat:
        # A prompt that is echoed may be all that is wanted.
        made["max_tokens"] = (integer(0, MAX_MAX_TOKENS) | None, None)
    return made


def _body_model(base: type[Body], *, is_chat: bool) -> type[Body]:
    names = [field.name for field in BY_NAME[is_chat].values() if field.annotation is not None]
    return create_model(base.__name__, __base__=base, __doc__=base.__doc__, **_parameters(names, is_chat=is_chat))


#: The models of bodies with all their parameters, by whether the body is a chat's.
BODIES: Mapping[bool, type[Body]] = {
    False: _body_model(CompletionBody, is_chat=False),
    True: _body_model(ChatBody, is_chat=True),
}


class BatchLine(BaseModel):
    """A line of an OpenAI batch input file. The body is checked by what its url says."""

    model_config = ConfigDict(extra="allow", strict=True)

    custom_id: _CustomId = None
    method: Literal["POST"]
    url: Literal["/v1/completions", "/v1/chat/completions"]
    body: dict[str, Any]


def row_model(
    *, prompt_column: str | None, id_column: str, fields: Iterable[str] = PARAM_FIELDS, is_chat: bool = False
) -> type[BaseModel]:
    """The model of a plain row whose prompt and id are under these names; None: a template makes the prompt.

    `fields` are the others that it has.
    """
    columns = _parameters(fields, is_chat=is_chat)
    columns["custom_id"] = (_CustomId, Field(None, validation_alias=id_column))
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
    label = label_of(path)
    names = [part for part in path[1:] if isinstance(part, str)]
    known = BY_NAME[is_chat].get(field)
    remedy = known.remedy if known is not None else _REMEDIES.get(field, "")
    remedy = _REMEDIES.get(f"{field}.{names[-1]}", remedy) if names else remedy
    if errors[0]["type"] == "less_than_equal" and field in ("max_tokens", "max_completion_tokens"):
        remedy = f"use at most {MAX_MAX_TOKENS}"
    if errors[0]["type"] == "extra_forbidden":
        remedy = "it is not known here; remove it"
    value: Any = values
    if field == "prompt" and fields and key not in values:
        remedy += ", or say with --prompt-column or --template where it comes from"
    elif field == "prompt" and fields and isinstance(values[key], list) and any(map(_is_object, values[key])):
        remedy += "; with --chat an array of messages is a chat"
    for part in path:
        if isinstance(value, dict) and part not in value:
            return Problem(label, f"{label} is missing; {remedy}", is_missing=True)
        value = value[part]
    return Problem(label, f"{label} is {shown(value)}; {remedy}")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


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


def label_of(path: Sequence[str | int]) -> str:
    """Where a value is, as messages say it: `messages[0].role`."""
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
