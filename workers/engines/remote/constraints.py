"""What every text must be, in each server's words: which fields hold a completion to a schema, a choice, a grammar.

A server that is told in another's words may compute without a word and without the constraint. So what a dialect has no
words for is refused, and a choice is looked for among its texts in every answer.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from batcher.types import Choice, Constraint, ConstraintKind, ErrorCode, FinishReason, RowError
from workers.engines.base import SequenceRequest
from workers.engines.remote import dialects
from workers.engines.remote.dialects import Dialect
from workers.engines.remote.failures import RefusedError

Fields = Mapping[str, Any]
#: The fields for a constraint, of a chat or not; None where there are none.
_Write = Callable[[Constraint, bool], Fields | None]


def constraint_fields(constraint: Constraint, dialect: Dialect, *, is_chat: bool) -> Fields | None:
    """What a body says of the constraint; None where the server can't be held to it."""
    return _WRITERS.get(dialect, _openai)(constraint, is_chat)


def check_constraint(request: SequenceRequest, choice: Choice) -> None:
    """Raise RefusedError for a text that is none of the choices."""
    constraint = request.params.constraint
    if (
        constraint is None
        or constraint.kind is not ConstraintKind.CHOICE
        or choice.finish_reason is FinishReason.LENGTH
    ):
        return
    if choice.text not in json.loads(constraint.text):
        message = "choice: the server's text is none of them; it does not know the field, or its model ended early"
        raise RefusedError(RowError(ErrorCode.ENGINE_ERROR, message, "choice"))


def _openai(constraint: Constraint, _is_chat: bool) -> Fields | None:
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT:
            return {"response_format": {"type": "json_object"}}
        case ConstraintKind.JSON_SCHEMA:
            schema = {"name": "output", "strict": True, "schema": json.loads(constraint.text)}
            return {"response_format": {"type": "json_schema", "json_schema": schema}}
        case _:
            return None


def _vllm(constraint: Constraint, is_chat: bool) -> Fields | None:
    match constraint.kind:
        case ConstraintKind.CHOICE:
            return {"structured_outputs": {"choice": json.loads(constraint.text)}}
        case ConstraintKind.REGEX:
            return {"structured_outputs": {"regex": constraint.text}}
        case ConstraintKind.LARK | ConstraintKind.GBNF:
            return {"structured_outputs": {"grammar": constraint.text}}
        case _:
            return _openai(constraint, is_chat)


def _sglang(constraint: Constraint, is_chat: bool) -> Fields | None:
    match constraint.kind:
        case ConstraintKind.CHOICE:
            return {"regex": f"({'|'.join(map(re.escape, json.loads(constraint.text)))})"}
        case ConstraintKind.REGEX:
            return {"regex": constraint.text}
        case ConstraintKind.GBNF:
            return {"ebnf": constraint.text}
        case ConstraintKind.JSON_SCHEMA if not is_chat:
            return {"json_schema": constraint.text}
        case ConstraintKind.LARK:
            return None
        case _:
            return _openai(constraint, is_chat) if is_chat else None


def _llama_server(constraint: Constraint, _is_chat: bool) -> Fields | None:
    match constraint.kind:
        case ConstraintKind.JSON_OBJECT:
            return {"json_schema": {"type": "object"}}
        case ConstraintKind.JSON_SCHEMA:
            return {"json_schema": json.loads(constraint.text)}
        case ConstraintKind.GBNF:
            return {"grammar": constraint.text}
        case ConstraintKind.CHOICE:
            return {"grammar": f"root ::= {' | '.join(map(_gbnf_text, json.loads(constraint.text)))}"}
        case _:
            return None


def _gbnf_text(text: str) -> str:
    escaped = "".join(f"\\x{ord(char):02X}" if char in '"\\\n\r\t' else char for char in text)
    return f'"{escaped}"'


def _ollama(constraint: Constraint, is_chat: bool) -> Fields | None:
    return _openai(constraint, is_chat) if is_chat else None


_WRITERS: Mapping[Dialect, _Write] = {
    dialects.VLLM: _vllm,
    dialects.BATCHER: _vllm,
    dialects.SGLANG: _sglang,
    dialects.LLAMA_SERVER: _llama_server,
    dialects.OLLAMA: _ollama,
}
