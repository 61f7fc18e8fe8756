"""How a model writes a call of a function: found in its chat template, which writes calls of the past.

A conversation in which a known function was called is rendered, and looked at: what stands around the name and around
the arguments is how this model writes every call. So no list of models is needed: `<tool_call>{...}</tool_call>` of
Hermes and Qwen, the bare object of Llama 3, `[TOOL_CALLS][...]` of Mistral, or whatever comes next. What is not found
this way (a template that knows no tools, or writes arguments otherwise than as JSON) is written as `PLAIN`, which
`plain` explains to the model.
"""

import json
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from workers.engines.llama.chat_frames import Chat, ChatTemplateError


class Slot(Enum):
    """What differs from call to call."""

    NAME = auto()
    #: A JSON object.
    ARGUMENTS = auto()
    #: Of the call: nine letters and digits.
    ID = auto()


@dataclass(frozen=True, slots=True)
class CallFormat:
    """A call as text: `parts` are what is always the same, and slots. The first is not a slot; NAME and ARGUMENTS are
    there once.

    Behind `mark`, with which a call begins, no text of the model's can go on as text. It is "" where a call begins like
    any JSON; then it is the whole answer. With `is_compact` the JSON has no blanks.
    """

    parts: tuple[str | Slot, ...]
    mark: str
    is_compact: bool = False
    is_of_template: bool = True


PLAIN = CallFormat(
    ('<tool_call>\n{"name": "', Slot.NAME, '", "arguments": ', Slot.ARGUMENTS, "}\n</tool_call>"),
    mark="<tool_call>",
    is_of_template=False,
)

_NAME, _ID, _TEXT = "probed_function", "call00001", "Probed text."
_ARGUMENTS = {"probed_key": "probed_value", "probed_number": 7}
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": _NAME,
            "description": "Probed.",
            "parameters": {
                "type": "object",
                "properties": {
                    "probed_key": {"type": "string", "description": "Probed."},
                    "probed_number": {"type": "integer", "description": "Probed."},
                },
                "required": ["probed_key", "probed_number"],
            },
        },
    }
]
_USER = {"role": "user", "content": "Probed question."}
_CALL = {"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": json.dumps(_ARGUMENTS)}}

#: Writes a chat by the template. Raises ChatTemplateError.
Write = Callable[[Chat], str]


def find_format(write: Write, *, ends: Collection[str]) -> CallFormat | None:
    """The format of the template that `write` writes by; None where it has none that can be followed.

    `ends` are the tokens that end a text of the model's, as they are written.
    """
    try:
        called = write(_chat({"role": "assistant", "content": "", "tool_calls": [_CALL]}))
        answered = write(_chat({"role": "assistant", "content": _TEXT}))
        asked = write(_chat())
    except ChatTemplateError:
        return None
    if _ignores_tools(write, asked):
        return None
    before, _, after = answered.partition(_TEXT)
    starts = (start for start in (before, asked, _common(called, asked)) if called.startswith(start))
    return _read(_cut(called[len(next(starts)) :], after, ends))


def _chat(*messages: dict[str, Any], has_tools: bool = True) -> Chat:
    return Chat(json.dumps([_USER, *messages]), not messages, False, json.dumps({"tools": _TOOLS}) if has_tools else "")


def _ignores_tools(write: Write, asked: str) -> bool:
    """Whether the template does not tell the model what there is to call."""
    try:
        return write(_chat(has_tools=False)) == asked
    except ChatTemplateError:
        # It insists on tools.
        return False


def _common(one: str, other: str) -> str:
    """What both begin with, up to the end of a mark or a line."""
    length = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[: 1 + max(one.rfind(end, 0, length) for end in ">]\n")]


def _cut(text: str, after: str, ends: Collection[str]) -> str:
    """The text of a call without what ends it. `after` ends other texts."""
    if after.strip() and text.endswith(after):
        text = text.removesuffix(after)
    places = [place for end in ends if end and (place := text.find(end, text.rfind("}") + 1)) >= 0]
    return text[: min(places)] if places else text


def _read(text: str) -> CallFormat | None:
    """The format of which `text` is the call that was asked for."""
    objects = list(_objects(text))
    arguments = next(((start, end) for start, end, found in objects if found == _ARGUMENTS), None)
    if arguments is None or text.count(_NAME) != 1 or text.count(_ID) > 1:
        return None
    start, end = arguments
    name = text.find(_NAME)
    slots = [(name, name + len(_NAME), Slot.NAME), (start, end, Slot.ARGUMENTS)]
    if (call_id := text.find(_ID)) >= 0:
        slots.append((call_id, call_id + len(_ID), Slot.ID))
    slots.sort(key=lambda slot: slot[0])
    parts: list[str | Slot] = []
    done = 0
    for at, until, slot in slots:
        parts += [text[done:at], slot]
        done = at + (until - at)
    parts.append(text[done:].rstrip())
    if "" in parts[2:-1]:
        # Nothing says where a name ends.
        return None
    # JSON around the name has begun before it.
    first = min(slots[0][0], *(at for at, until, _ in objects if at <= name < until), start)
    mark = text[:first].rstrip(" \n[").lstrip()
    if not mark and text.lstrip()[:1] not in ("{", "["):
        # It begins like any text.
        return None
    return CallFormat(tuple(parts), mark=mark, is_compact=": " not in text[start:end])


def _objects(text: str) -> Iterator[tuple[int, int, Any]]:
    """The JSON objects in a text, with where they begin and end."""
    decoder = json.JSONDecoder()
    for at, character in enumerate(text):
        if character == "{":
            try:
                found, end = decoder.raw_decode(text, at)
            except ValueError:
                continue
            yield at, end, found
