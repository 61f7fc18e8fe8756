"""The messages of a chat: what a body may hold, and the form in which a model's template gets them.

A conversation in which tools were called is history like any other: the assistant's calls and the tools' answers go to
the template, which knows how its model writes them. What is older is told in today's words: `function_call` becomes
`tool_calls`, the role `function` becomes `tool`, and a developer is a `system`, as templates have it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TOOL_CALLS = 128

_NO_CONTENT_ROLE = "assistant"
#: What servers and templates call the thoughts before an answer.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_ROLES = {"developer": "system", "function": "tool"}
#: What a message, a part of one, a call and its function may hold that no template asks for. Most of it clients were
#: answered, and send back.
IGNORED: Mapping[str, frozenset[str]] = {
    "message": frozenset({"refusal", "annotations", "provider_specific_fields", "cache_control"}),
    "part": frozenset({"annotations", "prompt_cache_breakpoint", "cache_control"}),
    "call": frozenset({"index", "provider_specific_fields", "extra_content", "cache_control"}),
    "function": frozenset({"parsed_arguments", "provider_specific_fields"}),
}


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["text"]
    text: str


class FunctionCall(BaseModel):
    """A function that the assistant called; its arguments as JSON text, or as the object itself."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str
    arguments: str | dict[str, Any]


class ToolCall(BaseModel):
    """A tool that the assistant called."""

    model_config = ConfigDict(extra="allow", strict=True)

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


_ToolCalls = Annotated[list[ToolCall], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)]
#: Content may be missing only where something else was said.
_CONTENT_OR_CALLS: dict[str, Any] = {
    "anyOf": [
        {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
        {
            "required": ["tool_calls"],
            "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}},
        },
        {
            "required": ["function_call"],
            "properties": {"role": {"const": "assistant"}, "function_call": {"type": "object"}},
        },
    ]
}


class Message(BaseModel):
    """A message of a chat."""

    model_config = ConfigDict(extra="allow", strict=True, json_schema_extra=_CONTENT_OR_CALLS)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: _ToolCalls | None = None
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    audio: None = None

    @property
    def has_calls(self) -> bool:
        return bool(self.tool_calls) or self.function_call is not None


def find_empty(messages: Sequence[Message]) -> int | None:
    """The index of the first message without content, but for an assistant's with calls; None if all have it."""
    for index, message in enumerate(messages):
        if message.content is None and not (message.role == _NO_CONTENT_ROLE and message.has_calls):
            return index
    return None


def find_unknown(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """The fields in messages that are not known: where each is (`messages[3].tool_calls[0]`), and its name."""
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        yield from _unknown(message, place, "message")
        if isinstance(message.content, list):
            for number, part in enumerate(message.content):
                yield from _unknown(part, f"{place}.content[{number}]", "part")
        for number, call in enumerate(message.tool_calls or ()):
            yield from _unknown(call, f"{place}.tool_calls[{number}]", "call")
            yield from _unknown(call.function, f"{place}.tool_calls[{number}].function", "function")
        if message.function_call is not None:
            yield from _unknown(message.function_call, f"{place}.function_call", "function")


def _unknown(model: BaseModel, place: str, kind: str) -> Iterator[tuple[str, str]]:
    for name, value in (model.__pydantic_extra__ or {}).items():
        if value is not None and name not in IGNORED[kind]:
            yield place, name


def normalize(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as the prompt of a chat has them: role, content (null beside calls), and what else is given."""
    return [_normalize(message) for message in messages]


def _normalize(message: Message) -> dict[str, Any]:
    content = message.content
    found: dict[str, Any] = {
        "role": _ROLES.get(message.role, message.role),
        "content": [{"type": "text", "text": part.text} for part in content] if isinstance(content, list) else content,
    }
    if message.name is not None:
        found["name"] = message.name
    if message.has_calls:
        found["tool_calls"] = [_call(call.function, call.id) for call in message.tool_calls or ()]
        if not message.tool_calls and message.function_call is not None:
            found["tool_calls"] = [_call(message.function_call, None)]
    if message.tool_call_id is not None:
        found["tool_call_id"] = message.tool_call_id
    found |= {name: value for name in _THOUGHTS if (value := getattr(message, name)) is not None}
    return found


def _call(function: FunctionCall, call_id: str | None) -> Mapping[str, Any]:
    named = {} if call_id is None else {"id": call_id}
    return {**named, "type": "function", "function": {"name": function.name, "arguments": function.arguments}}
