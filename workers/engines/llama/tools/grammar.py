"""The grammar of an answer that may or must call a function, in the notation of Lark that llguidance takes.

A call is written in the model's format, its arguments are JSON that keeps to the function's schema. Where the model may
choose, the answer is text until the mark with which a call begins, and the call from there on: before the mark nothing
is forbidden that is allowed without tools. Special tokens, which are no text to llguidance, are named by their ids.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from batcher.types import Constraint, ConstraintKind, Tools
from workers.engines.llama.schemas import as_written, narrow
from workers.engines.llama.tools.format import CallFormat, Slot

#: What says that a function has parameters.
_PARAMETERS = frozenset(
    {"properties", "additionalProperties", "patternProperties", "allOf", "anyOf", "oneOf", "$ref", "enum", "const"}
)
_ID = "/[a-zA-Z0-9]{9}/"
_ANY = r"/(.|\n)*/"
#: Text that is not the beginning of a call where that begins as JSON does.
_NO_JSON = r"/([^\s{\[](.|\n)*)?/"


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The tokens of a vocabulary that stand for no text, by how they are written; `ends` are those that end a text."""

    ids: Mapping[str, int]
    ends: Collection[int]

    def split(self, text: str) -> list[str]:
        """A text in pieces: each special token that is written in it is one."""
        names = sorted((name for name in self.ids if name in text), key=len, reverse=True)
        return [piece for piece in re.split(f"({'|'.join(map(re.escape, names))})", text) if piece] if names else [text]

    def term(self, text: str) -> str:
        """What stands for a text in a grammar."""
        return " ".join(
            f"<[{self.ids[piece]}]>" if piece in self.ids else json.dumps(piece, ensure_ascii=False)
            for piece in self.split(text)
            if piece
        )


def constraint_of(
    tools: Tools, found: CallFormat, special: SpecialTokens, *, text: Constraint | None = None
) -> Constraint:
    """What holds an answer to the tools. `text` is the JSON that it must be where it is no call; None: any text."""
    functions = [each for each in tools.list_functions() if tools.name in ("", each["name"])]
    head = str(found.parts[0])
    lines = ["%llguidance {}"]
    if tools.is_required:
        lines += ["start: call", f"call: {special.term(head)} call_rest"]
    else:
        lines += _choice_lines(found, head, special, text)
    lines.append(
        "call_rest: " + " | ".join(_rest(found, each["name"], at, special) for at, each in enumerate(functions))
    )
    for at, function in enumerate(functions):
        schema = _schema(function, is_compact=found.is_compact)
        lines.append(f"arguments_{at}: %json {json.dumps(schema, ensure_ascii=False)}")
    return Constraint(ConstraintKind.TOOLS, "\n".join(lines))


def _choice_lines(found: CallFormat, head: str, special: SpecialTokens, text: Constraint | None) -> Iterator[str]:
    """The rules of an answer that is text, a call, or a call behind text."""
    first, *others = special.split(found.mark) if found.mark else ("",)
    allowed = sorted({*special.ids.values()} - {*special.ends} - {special.ids.get(first, -1)})
    token = f"<[{','.join(map(str, allowed))}]>" if allowed else ""
    yield f"ANY: {_ANY}"
    if not found.mark:
        yield "start: text | call"
        yield f"call: {special.term(head)} call_rest"
    else:
        rest = special.term("".join(others) + head.partition(found.mark)[2])
        yield "start: text | opening call"
        yield f"call: {rest} call_rest"
        before = f"(ANY {token})* " if token else ""
        if text is not None:
            yield f"opening: {special.term(first)}"
        elif first in special.ids:
            yield f"opening: {before}ANY {special.term(first)}"
        else:
            yield f"opening: {before}mark"
            yield f"mark[lazy]: ANY {special.term(first)}"
    if text is not None:
        schema = as_written(text.text) if text.kind is ConstraintKind.JSON_SCHEMA else '{"type": "object"}'
        yield f"text: %json {json.dumps(_with_form(json.loads(schema), is_compact=False), ensure_ascii=False)}"
    else:
        more = f" ({token} ANY)*" if token else ""
        yield f"text: {'ANY' if found.mark else 'PLAIN'}{more}"
        yield f"PLAIN: {_NO_JSON}"


def _rest(found: CallFormat, name: str, at: int, special: SpecialTokens) -> str:
    """A call of one function behind the first part of the format."""
    terms: list[str] = []
    literal = ""
    for part in found.parts[1:]:
        if part is Slot.NAME:
            literal += name
        elif isinstance(part, str):
            literal += part
        else:
            terms += [special.term(literal), f"arguments_{at}" if part is Slot.ARGUMENTS else _ID]
            literal = ""
    return " ".join(term for term in (*terms, special.term(literal)) if term not in ("", '""'))


def _schema(function: Mapping[str, Any], *, is_compact: bool) -> Any:
    """The schema of the arguments of a function: none, where it does not say which."""
    parameters = {"type": "object", **json.loads(json.dumps(function.get("parameters") or {}))}
    if not _PARAMETERS & parameters.keys():
        parameters["properties"] = {}
    narrow(parameters)
    return _with_form(parameters, is_compact=is_compact)


def _with_form(schema: Any, *, is_compact: bool) -> Any:
    """The schema with where blanks are in its JSON: as models' templates write it, and nowhere else."""
    if not isinstance(schema, dict):
        return schema
    comma, colon = (",", ":") if is_compact else (", ", ": ")
    form = {"whitespace_flexible": False, "item_separator": comma, "key_separator": colon}
    return {"x-guidance": form, **schema}
