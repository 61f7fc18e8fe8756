"""The JSON schemas of bodies, for OpenAPI: made of the models that check them, so that they can't drift apart."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from batcher.openai.body_field import Use
from batcher.openai.chat_messages import IGNORED
from batcher.openai.fields import BY_NAME
from batcher.openai.parameters import BODIES


def body_schema(is_chat: bool, *, ignores_unknown: bool = False, models: Collection[str] = ()) -> dict[str, Any]:
    """The JSON schema of a body, self-contained and without references, for OpenAPI.

    `models` are the names that `model` can have, if they are known. What fields may not be together (`max_tokens` 0
    without `echo`, `best_of` below `n`) can't be said in it.
    """
    schema: dict[str, Any] = BODIES[is_chat].model_json_schema()
    definitions = schema.pop("$defs", {})
    schema = _inline(schema, definitions)
    properties = schema["properties"]
    properties["model"] = {"type": "string", "enum": sorted(models)} if models else {"type": "string"}
    for field in BY_NAME[is_chat].values():
        if field.use is Use.HARMLESS:
            properties[field.name] = {}
        elif field.use is Use.REFUSED:
            properties[field.name] = {"enum": [None, *field.nothing]}
    schema["required"] = ["model", *schema["required"]]
    if not ignores_unknown:
        _close(schema)
        if is_chat:
            _close_message(properties["messages"]["items"])
    return schema


def _inline(value: Any, definitions: Mapping[str, Any]) -> Any:
    """A schema with what its references stand for in their place."""
    if isinstance(value, list):
        return [_inline(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return _inline(definitions[re.sub(r"^#/\$defs/", "", value["$ref"])], definitions)
    return {key: _inline(item, definitions) for key, item in value.items()}


def _close(schema: dict[str, Any], ignored: Collection[str] = ()) -> None:
    """Let an object have no other fields than those it names and the ignored ones, but null ones."""
    schema["properties"] |= {name: {} for name in sorted(ignored)}
    schema["additionalProperties"] = {"type": "null"}


def _close_message(message: dict[str, Any]) -> None:
    of = message["properties"]
    _, parts, _ = of["content"]["anyOf"]
    calls, call = of["tool_calls"]["anyOf"][0]["items"], of["function_call"]["anyOf"][0]
    _close(message, IGNORED["message"])
    _close(parts["items"], IGNORED["part"])
    _close(calls, IGNORED["call"])
    for function in (calls["properties"]["function"], call):
        _close(function, IGNORED["function"])
