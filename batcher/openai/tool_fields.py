"""The functions that a model may call: what a body says of them, and what becomes of that.

A choice that must not call gets no functions: what a model does not know of it can't call.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from batcher import constraints
from batcher.errors import InvalidBodyError
from batcher.openai.body_field import BodyField, Of, Use, array
from batcher.types import Tools

#: Of the documented API.
MAX_TOOLS = 128
#: Characters of all functions together. Each request has them along, and its engine compiles them.
MAX_CHARS = 1_000_000

_NAME = r"^[a-zA-Z0-9_.:/-]{1,64}$"
_NAME_REMEDY = "use 1 to 64 letters, digits and _ . : / -"
_TOOL_REMEDY = 'use objects such as {"type": "function", "function": {"name": "...", "parameters": {...}}}'
_CHOICE_REMEDY = 'use "none", "auto", "required" or {"type": "function", "function": {"name": "..."}}'


class Function(BaseModel):
    """A function that may be called. Calls keep to its schema with `strict` or without."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(pattern=_NAME)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool. All are functions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: Function
    cache_control: Any = None


class ChosenFunction(BaseModel):
    """The name of the function that is to be called."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str


class ChosenTool(BaseModel):
    """The tool that is to be called."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"]
    function: ChosenFunction


TOOL_FIELDS = (
    BodyField(
        "tools",
        Use.HONOURED,
        _TOOL_REMEDY,
        of=Of.CHAT,
        annotation=array(Tool, MAX_TOOLS),
        values=f"array of at most {MAX_TOOLS} functions",
        default="none",
        meaning="functions that the answer may call, each with a JSON schema of its parameters",
    ),
    BodyField(
        "tool_choice",
        Use.HONOURED,
        _CHOICE_REMEDY,
        of=Of.CHAT,
        annotation=Literal["none", "auto", "required"] | ChosenTool,
        values='`"none"`, `"auto"`, `"required"` or an object that names a function',
        default='`"auto"` with `tools`',
        meaning="whether the answer calls a function, and which",
    ),
)

#: Of what lies in these fields, by the names of the field and of what is wrong.
TOOL_REMEDIES: Mapping[str, str] = {
    "tools.name": _NAME_REMEDY,
    "tools.description": "use a string",
    "tools.parameters": "use a JSON schema, an object",
    "tools.strict": "use true or false",
    "tools.type": 'only "function" is supported',
    "tools.function": "use an object with name and parameters",
}


def read_tools(tools: Sequence[Tool] | None, choice: str | ChosenTool | None) -> Tools | None:
    """What the checked fields ask for; None where nothing may be called. Raises InvalidBodyError."""
    names: set[str] = set()
    for number, tool in enumerate(tools or ()):
        if tool.function.name in names:
            raise _wrong(
                f"tools[{number}].function.name", f"is {tool.function.name}, as that of one before; give it once"
            )
        names.add(tool.function.name)
        try:
            constraints.json_schema(tool.function.parameters or {})
        except ValueError as exc:
            raise _wrong(f"tools[{number}].function.parameters", str(exc)) from exc
    if isinstance(choice, ChosenTool) and choice.function.name not in names:
        known = "it is none of tools" if names else "there are no tools"
        raise _wrong("tool_choice.function.name", f"is {choice.function.name[:64]}; {known}, {_CHOICE_REMEDY}")
    if choice == "required" and not names:
        raise _wrong("tool_choice", 'is "required" without tools; give tools too')
    if not tools or choice == "none":
        return None
    try:
        text = json.dumps(
            [_told(tool.function) for tool in tools], ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
    except ValueError as exc:
        raise _wrong("tools", f"holds what is no JSON ({exc}); use finite numbers") from exc
    if len(text) > MAX_CHARS:
        raise _wrong("tools", f"has {len(text):,} characters; use at most {MAX_CHARS:,}")
    name = choice.function.name if isinstance(choice, ChosenTool) else ""
    return Tools(text, is_required=bool(name) or choice == "required", name=name)


def _told(function: Function) -> dict[str, Any]:
    """What the model is told. Some templates can't do without a description or parameters."""
    parameters = function.parameters or {"type": "object", "properties": {}}
    return {"name": function.name, "description": function.description or "", "parameters": parameters}


def _wrong(label: str, problem: str) -> InvalidBodyError:
    return InvalidBodyError(f"{label} {problem}", param=label)
