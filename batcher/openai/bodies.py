"""The completion API at the edge: what rows, bodies and OpenAI batch lines mean. The one place of validation.

A row is either plain, `{"prompt": ..., "max_tokens": ..., ...}`, or a line of an OpenAI batch file,
`{"custom_id", "method": "POST", "url": "/v1/completions", "body": {...}}`; an object `body` beside no prompt tells them
apart. The server gets such bodies alone. `parameters` has the fields with their types and bounds.

What else a row holds: in a plain row it is a column of the user's and goes along to the results, whatever its name,
`n` and `logprobs` included: a plain row takes the documented parameters and `seed`, and others only where the user
asks for it. In a body they are fields, and `fields` says what becomes of each: the same live and in a batch line.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from batcher.errors import InvalidBodyError
from batcher.openai.body_field import Use
from batcher.openai.chat_messages import find_empty, find_unknown, normalize
from batcher.openai.fields import BY_NAME, closest
from batcher.openai.parameters import (
    BODIES,
    CHAT_URL,
    CONTENT_REMEDY,
    Body,
    ChatBody,
    CompletionBody,
    explain,
    label_of,
    shown,
)
from batcher.openai.request_params import check_refused, merge_params, refuse
from batcher.types import DEFAULT_CHAT_MAX_TOKENS, Reasoning, Request, SamplingParams

#: What `ignored` lists at most, and how much of each name.
_MAX_IGNORED = 20
_MAX_NAME_CHARS = 60
_MAX_LISTED_MODELS = 20

#: Objects and arrays of a body or line, at most: each becomes thirty times as large where it is read. Half of it is
#: 2,048 messages with 24 parts each.
MAX_CONTAINERS = 100_000
TOO_MANY_CONTAINERS = f"has more than {MAX_CONTAINERS:,} objects and arrays; split it"
_OPENING = (b"{", b"[")
#: A string without an end is matched to the end of all: to look for the next in it would take for ever.
_STRING_OR_OPENING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[{\[]', re.DOTALL)

_INDEX = re.compile(r"\[\d+\]")
#: An escape of JSON: two surrogates that make a character, one of them without the other, or another.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class ParsedBody:
    """A valid body of the server's. `ignored` names the unknown fields that were left out, in printable ASCII."""

    request: Request
    is_streaming: bool
    includes_usage: bool
    ignored: tuple[str, ...]


def parse_body(
    data: bytes,
    *,
    is_chat: bool,
    models: Collection[str],
    ignores_unknown: bool = False,
    row: int = 0,
    custom_id: str = "",
    max_prompts: int,
) -> ParsedBody:
    """The request in the body of an HTTP request, for one of `models`, of `max_prompts` sequences at most.

    `ignores_unknown`: fields in no table are left out rather than refused.
    Takes time and memory in proportion to `data`, whatever it is. Raises InvalidBodyError, and nothing else.
    """
    values = _read_object(data)
    prompt = None if is_chat else values.get("prompt")
    if isinstance(prompt, list) and len(prompt) > max_prompts and type(prompt[0]) is not int:
        refuse("prompt", f"holds {len(prompt):,} prompts; send at most {max_prompts:,} in a request")
    body = validate_body(values, is_chat=is_chat)
    _refuse_twins(data)
    ignored = check_others(body, ignores_unknown=ignores_unknown)
    defaults = chat_defaults(SamplingParams()) if is_chat else SamplingParams()
    model = _served_model(body.model, models)
    request = build_request(body, row=row, custom_id=custom_id, model=model, defaults=defaults)
    params = request.params
    is_streaming = bool(body.stream)
    if is_streaming and params.num_drawn > params.n:
        refuse("best_of", f"is {params.best_of}, more than n, which a stream can't give; leave out stream or best_of")
    if request.num_sequences > max_prompts:
        name = "n" if params.best_of is None else "best_of"
        refuse(
            name,
            f"is {params.num_drawn}, which makes {request.num_sequences:,} completions in all; ask for at most "
            f"{max_prompts:,} in a request",
        )
    options = body.stream_options
    includes_usage = is_streaming and options is not None and bool(options.include_usage)
    return ParsedBody(request, is_streaming, includes_usage, ignored)


def parse_line_body(values: dict[str, Any], *, url: str) -> Body:
    """The body of a batch line, checked by its url. Raises InvalidBodyError."""
    body = validate_body(values, is_chat=url == CHAT_URL)
    check_others(body)
    return body


def validate_body(values: dict[str, Any], *, is_chat: bool) -> Body:
    """Check the types and bounds of a body's honoured fields. Raises InvalidBodyError."""
    try:
        body = BODIES[is_chat].model_validate(values)
    except ValidationError as exc:
        problem = explain(exc, values, {}, is_chat=is_chat)
        raise InvalidBodyError(problem.message, param=problem.label) from exc
    if body.stream_options is not None and not body.stream:
        refuse("stream_options", "is for streams only; give stream true too, or leave it out")
    if isinstance(body, ChatBody) and (index := find_empty(body.messages)) is not None:
        problem_is = "null" if "content" in body.messages[index].model_fields_set else "missing"
        refuse(f"messages[{index}].content", f"is {problem_is}; {CONTENT_REMEDY}")
    return body


def chat_defaults(
    params: SamplingParams, *, max_tokens: int | None = None, reasoning: str = Reasoning.SPLIT.value
) -> SamplingParams:
    """The defaults of chats where those of completions are `params`.

    `max_tokens` None: nobody has said how many, so that in a small context they are fewer rather than refused.
    """
    if max_tokens is None:
        return replace(params, max_tokens=DEFAULT_CHAT_MAX_TOKENS, clips_max_tokens=True, reasoning=reasoning)
    return replace(params, max_tokens=max_tokens, reasoning=reasoning)


def build_request(body: Body, *, row: int, custom_id: str, model: str, defaults: SamplingParams) -> Request:
    """The request in a checked body, `defaults` for what it does not say.

    The prompt of a chat is the compact JSON text of its messages, normalized (see `chat_messages`).
    Raises InvalidBodyError for parameters that contradict each other.
    """
    params = merge_params(body, defaults, is_chat=isinstance(body, ChatBody))
    if isinstance(body, ChatBody):
        return Request(row, custom_id, model, (compact_json(normalize(body.messages)),), False, params, is_chat=True)
    assert isinstance(body, CompletionBody)
    prompts, is_array, is_token_ids = split_prompt(body.prompt)
    return Request(row, custom_id, model, prompts, is_array, params, is_token_ids=is_token_ids)


def split_prompt(prompt: Any) -> tuple[tuple[str, ...], bool, bool]:
    """The `prompts`, `is_array` and `is_token_ids` of a request whose checked prompt this is."""
    if type(prompt) is not list:
        return (prompt,), False, False
    if type(prompt[0]) is str:
        return tuple(prompt), True, False
    if type(prompt[0]) is int:
        return (_ids_text(prompt),), False, True
    return tuple(map(_ids_text, prompt)), True, True


def is_prompt(value: Any) -> bool:
    """Whether a value that was not checked could be a prompt for `split_prompt`."""
    if not isinstance(value, list):
        return isinstance(value, str)
    kinds = {type(item) for item in value}
    if kinds == {list}:
        return all(item and {type(one) for one in item} == {int} for item in value)
    return kinds in ({str}, {int})


def chat_prompt(messages: Any, *, system: str | None = None) -> str:
    """The prompt of a chat with these messages, which are checked like those of a batch line. Raises InvalidBodyError.

    `system` is the text of a system message that goes before them, unless one of them is a system message.
    """
    body = parse_line_body({"messages": messages}, url=CHAT_URL)
    assert isinstance(body, ChatBody)
    normal = normalize(body.messages)
    if system is not None and all(message["role"] != "system" for message in normal):
        normal.insert(0, {"role": "system", "content": system})
    return compact_json(normal)


def check_others(body: Body, *, ignores_unknown: bool = False) -> tuple[str, ...]:
    """Check what a body holds beside honoured fields. Raises InvalidBodyError for what is refused, and what is unknown.

    With `ignores_unknown` it returns the names of unknown ones instead, those in any message as `messages[].field`,
    in ASCII.
    """
    is_chat = isinstance(body, ChatBody)
    if not body.__pydantic_extra__ and not is_chat:
        return ()
    known = BY_NAME[is_chat]
    unknown = []
    for name, value in (body.__pydantic_extra__ or {}).items():
        field = known.get(name)
        if value is None or (field is not None and field.use is Use.HARMLESS):
            continue
        if field is None:
            unknown.append(name)
        else:
            check_refused(field, value)
    if unknown and not ignores_unknown:
        meant = closest(unknown[0], is_chat=is_chat)
        remedy = f"did you mean {meant}?" if meant is not None else "remove it"
        refuse(_ascii(unknown[0]), f"is not a field of this request; {remedy}")
    found = dict.fromkeys(map(_ascii, unknown[:_MAX_IGNORED]))
    if isinstance(body, ChatBody):
        for place, name in islice(find_unknown(body.messages), _MAX_IGNORED):
            if not ignores_unknown:
                refuse(f"{place}.{_ascii(name)}", "is not known here; remove it")
            found[f"{_INDEX.sub('[]', place)}.{_ascii(name)}"] = None
    return tuple(found)[:_MAX_IGNORED]


def compact_json(messages: list[Any]) -> str:
    """The JSON text of messages, as the prompt of a chat has it."""
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))


def not_json(data: bytes, exc: ValueError) -> str:
    """Why these bytes are no JSON: `not UTF-8 (byte 0xff at position 3)`, `not JSON (...)`."""
    try:
        data.decode()
    except UnicodeDecodeError as bad:
        return f"not UTF-8 (byte 0x{data[bad.start]:02x} at position {bad.start + 1})"
    if "hex escape" in str(exc) and (half := _half_of_a_pair(data)):
        # What JavaScript writes of a text that it cut in the middle of an emoji.
        place = f"{half[0].decode()} at position {half.start() + 1}"
        return f"not JSON ({place} is half of a character; cut texts between whole ones)"
    return f"not JSON ({exc})"


def _half_of_a_pair(data: bytes) -> re.Match[bytes] | None:
    """The first escape of a surrogate that has not its other half beside it."""
    return next((escape for escape in _ESCAPE.finditer(data) if escape["half"]), None)


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        values, is_json = read_json(data)
    except ValueError as exc:
        raise InvalidBodyError(f"the body is {not_json(data, exc)}; send one JSON object in UTF-8") from exc
    if not isinstance(values, dict):
        raise InvalidBodyError(f"the body is not a JSON object but {shown(values)}; send one JSON object")
    if not is_json:
        refuse_non_numbers(values)
    return values


def has_too_many_containers(data: bytes) -> bool:
    """Whether a text, as far as it is JSON, has more objects and arrays than any request has a use for."""
    # Text can have as many brackets as it likes, but most has few, and to count them takes no time.
    if len(data) <= MAX_CONTAINERS or sum(map(data.count, _OPENING)) <= MAX_CONTAINERS:
        return False
    # String by string, so that other threads have their turn meanwhile.
    opened = (found for found in _STRING_OR_OPENING.finditer(data) if found[0] in _OPENING)
    return next(islice(opened, MAX_CONTAINERS, None), None) is not None


def read_json(data: bytes) -> tuple[Any, bool]:
    """The value of a JSON text, and whether that is JSON: it is not where it has NaN or Infinity. Raises ValueError."""
    try:
        # Unlike json, it bounds the depth, and it refuses integers that would take long.
        return from_json(data, allow_inf_nan=False), True
    except ValueError:
        return from_json(data), False


def _refuse_twins(data: bytes) -> None:
    """Refuse a key that an object has twice: which of them counts would be a guess. Bytes are known to be JSON."""

    def build(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs):
            twin = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise InvalidBodyError(f"{shown(twin)} is given twice in one object; give it once", param=_ascii(twin))

    # Numbers as text: their values do not matter here.
    json.loads(data.decode(), object_pairs_hook=build, parse_int=str, parse_float=str)


def refuse_non_numbers(values: dict[str, Any]) -> None:
    """Refuse NaN and infinities, which are no JSON. Raises InvalidBodyError."""
    if found := _non_number(values, ()):
        path, value = found
        label = label_of(path)
        raise InvalidBodyError(f"{label} is {shown(value)}, which is no JSON; use a number, or null", param=label)


def _non_number(value: Any, path: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], float] | None:
    """The first NaN or infinity in a value, and where it is."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, value)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, item in items if (found := _non_number(item, (*path, key)))), None)


def _ids_text(ids: list[int]) -> str:
    return to_json(ids).decode()


def _served_model(model: str | None, models: Collection[str]) -> str:
    names = sorted(models)
    known = ", ".join(names[:_MAX_LISTED_MODELS]) + (", ..." if len(names) > _MAX_LISTED_MODELS else "")
    if model is None:
        refuse("model", f"is missing; use one of: {known}")
    if model not in models:
        message = f"model {shown(model)} does not exist here; use one of: {known}"
        raise InvalidBodyError(message, param="model", code="model_not_found")
    return model


def _ascii(name: str) -> str:
    """A name from outside that can stand in a header and on a terminal."""
    return json.dumps(name[:_MAX_NAME_CHARS])[1:-1]
