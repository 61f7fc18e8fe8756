"""The fields of a body that say what every completion must be, by the names of OpenAI, vLLM and llama.cpp.

A part of the table in `fields`. The functions make a constraint of a field's value, whose type is checked, or None
where it asks for none. They raise InvalidBodyError, which names the part of the value that is wrong.
"""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import Field

from batcher import constraints
from batcher.constraints import MAX_CHARS, MAX_CHOICES, MAX_GRAMMAR_CHARS, MAX_PATTERN_CHARS
from batcher.errors import InvalidBodyError
from batcher.openai.body_field import BodyField, Use, array
from batcher.types import Constraint

_Text = Annotated[str, Field(max_length=MAX_CHARS)]

_FORMATS = 'use {"type": "json_schema", "json_schema": {"schema": ...}}, {"type": "json_object"} or {"type": "text"}'
_STRUCTURED = "use one of json, regex, choice, grammar and json_object"


def _response_format(value: Mapping[str, Any]) -> Constraint | None:
    """Of OpenAI's `response_format`. With llama.cpp a `json_object` may have a schema, too."""
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        given = value.get("schema")
        return constraints.JSON_OBJECT if given is None else _made("response_format.schema", given)
    if kind != "json_schema":
        problem = "missing" if kind is None else json.dumps(kind, default=str)[:60]
        raise _wrong("response_format.type", f"is {problem}; {_FORMATS}")
    inner = value.get("json_schema")
    if not isinstance(inner, dict) or inner.get("schema") is None:
        label = "response_format.json_schema" + (".schema" if isinstance(inner, dict) else "")
        raise _wrong(label, f"is missing; {_FORMATS}")
    return _made("response_format.json_schema.schema", inner["schema"])


def _structured_outputs(value: Mapping[str, Any]) -> Constraint | None:
    """Of vLLM's `structured_outputs`: one of its constraints, or none. `scores` beside a choice is ours."""
    given = {name: item for name, item in value.items() if item is not None and item is not False}
    if (scores := given.pop("scores", None)) is not None:
        if scores is not True:
            raise _wrong("structured_outputs.scores", "is neither true nor false; use true for labels that are scored")
        if "choice" not in given:
            raise _wrong("structured_outputs.scores", "is true without choice; give the labels that are to be scored")
    for name in given:
        if name not in (*_MAKERS, "json_object"):
            raise _wrong(f"structured_outputs.{name}", f"is not supported; {_STRUCTURED}")
    if len(given) > 1:
        raise _wrong("structured_outputs", f"has {' and '.join(given)}; give one of them")
    for name, item in given.items():
        label = f"structured_outputs.{name}"
        if name != "json_object":
            return _made(label, item, _scored_choice if scores and name == "choice" else _MAKERS[name])
        if item is not True:
            raise _wrong(label, "is neither true nor false; use true for any JSON object")
        return constraints.JSON_OBJECT
    return None


def _any_object(is_wanted: bool) -> Constraint | None:
    """Of the older `guided_json_object`."""
    return constraints.JSON_OBJECT if is_wanted else None


def _choice(value: Any) -> Constraint:
    if not isinstance(value, list):
        raise ValueError("is no array; use an array of strings")
    return constraints.choice(value)


def _scored_choice(value: Any) -> Constraint:
    return constraints.scored_choice(_choice(value).labels)


_MAKERS: Mapping[str, Callable[[Any], Constraint]] = {
    "json": constraints.json_schema,
    "regex": constraints.regex,
    "choice": _choice,
    "grammar": constraints.grammar,
}


def _made(label: str, value: Any, make: Callable[[Any], Constraint] = constraints.json_schema) -> Constraint:
    try:
        return make(value)
    except ValueError as exc:
        raise _wrong(label, str(exc)) from exc


def _wrong(label: str, problem: str) -> InvalidBodyError:
    return InvalidBodyError(f"{label} {problem}", param=label)


def _field(
    name: str, annotation: Any, convert: Callable[[Any], Constraint | None], remedy: str, **more: Any
) -> BodyField:
    more = {"default": "none", **more}
    return BodyField(name, Use.HONOURED, remedy, annotation=annotation, param="constraint", convert=convert, **more)


def _one_of(name: str, kind: str) -> BodyField:
    """The field `name`, which is what `structured_outputs` has under `kind`."""
    make, (annotation, remedy, values) = _MAKERS[kind], _KINDS[kind]
    return _field(
        name,
        annotation,
        # llama.cpp takes an empty grammar for none.
        lambda value: None if value == "" else _made(name, value, make),
        remedy,
        values=values,
        meaning=f"the same as `structured_outputs.{kind}`",
    )


_KINDS = {
    "json": (
        dict[str, Any] | bool | str,
        "use a JSON schema, as an object or as its JSON text",
        "JSON schema, or its text",
    ),
    "regex": (
        _Text,
        f"use a regular expression of at most {MAX_PATTERN_CHARS:,} characters that the whole text must match",
        "regular expression",
    ),
    "choice": (
        array(_Text, MAX_CHOICES),
        f"use an array of at most {MAX_CHOICES:,} strings that are not empty",
        f"array of at most {MAX_CHOICES:,} strings",
    ),
    "grammar": (
        _Text,
        f"use a grammar of Lark or GBNF, of at most {MAX_GRAMMAR_CHARS:,} characters",
        "grammar of Lark or GBNF",
    ),
}

CONSTRAINTS = (
    _field(
        "response_format",
        dict[str, Any],
        _response_format,
        'use an object such as {"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}',
        values='object with the type `"json_schema"`, `"json_object"` or `"text"`',
        meaning="the text is JSON that keeps to the schema, with `strict` or without; or any JSON object",
    ),
    _field(
        "structured_outputs",
        dict[str, Any],
        _structured_outputs,
        'use an object with one of json, regex, choice, grammar and json_object, such as {"choice": ["a", "b"]}',
        values="object with `json`, `regex`, `choice`, `grammar` or `json_object`; `scores` beside `choice`",
        meaning="what the text must be, by vLLM's names; with `scores` true the likeliest, and the probability of each",
    ),
    _one_of("json_schema", "json"),
    _one_of("grammar", "grammar"),
    _one_of("guided_json", "json"),
    _one_of("guided_regex", "regex"),
    _one_of("guided_choice", "choice"),
    _one_of("guided_grammar", "grammar"),
    _field(
        "guided_json_object",
        bool,
        _any_object,
        "use true or false",
        values="boolean",
        default="false",
        meaning="the same as `structured_outputs.json_object`",
    ),
)
