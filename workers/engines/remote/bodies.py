"""A sequence becomes the body of an HTTP request: what it asks for, and what a server must be told to ask for nothing.

Servers have defaults of their own, of which a model's publisher may have set some (vLLM's generation_config), and
llama-server narrows sampling unless told otherwise. So what narrows it is always said. A field at a value that asks for
nothing is *neutral*: it is left out for a server that refuses it.
"""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from batcher.types import ErrorCode, Reasoning, RowError, SamplingParams
from workers.engines.base import SequenceRequest
from workers.engines.remote.constraints import constraint_fields
from workers.engines.remote.dialects import Dialect

COMPLETIONS = "/completions"
CHATS = "/chat/completions"


@dataclass(frozen=True, slots=True)
class Asked:
    """A field of a body. `is_neutral`: no answer that was asked for depends on it."""

    name: str
    value: Any
    is_neutral: bool = False


@dataclass(frozen=True, slots=True)
class Body:
    """What is sent, by route; `names` are our names of its fields, and `neutral` those that may be left out."""

    route: str
    content: bytes
    names: frozenset[str]
    neutral: frozenset[str]


def asked_of(request: SequenceRequest, dialect: Dialect) -> list[Asked]:
    """The fields of a request by our names, but for its prompt and those of several requests in one."""
    params = request.params
    asked = [
        *_length(params, is_chat=request.is_chat),
        Asked("temperature", params.temperature, params.temperature == 1),
        Asked("repetition_penalty", params.repetition_penalty, params.repetition_penalty == 1),
    ]
    drawing = [
        Asked("top_p", params.top_p, params.top_p == 1),
        Asked("top_k", params.top_k or dialect.every_token, not params.top_k),
        Asked("min_p", params.min_p, not params.min_p),
        Asked("seed", request.seed, params.seed is None),
    ]
    # Where nothing is drawn none of them matters, and servers may take the longer for it: llama-server to look at all
    # tokens rather than at its 40 likeliest, vLLM to draw by seeds.
    asked += [field for field in drawing if params.temperature or not field.is_neutral]
    asked += [Asked(name, value) for name, value in _others(params).items()]
    if params.logprobs is not None:
        asked += _logprobs(params.logprobs, is_chat=request.is_chat)
    if request.is_echoing:
        asked.append(Asked("echo", True))
    if request.is_chat:
        asked += _of_chat(params)
    return asked


def _length(params: SamplingParams, *, is_chat: bool) -> list[Asked]:
    # A chat that may be as long as the context allows can do without where the server finds the two too long.
    return [Asked("max_tokens", params.max_tokens, params.clips_max_tokens and is_chat)]


def _others(params: SamplingParams) -> dict[str, Any]:
    """What is said only where it is asked for: no server has it by default."""
    found: dict[str, Any] = {
        "stop": list(params.stop),
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "logit_bias": {str(token): bias for token, bias in params.logit_bias},
        "suffix": params.suffix,
        "min_tokens": params.min_tokens,
        "ignore_eos": params.ignore_eos,
        "stop_token_ids": list(params.stop_token_ids),
        "include_stop_str_in_output": params.include_stop_str_in_output,
        "bad_words": list(params.bad_words),
    }
    return {name: value for name, value in found.items() if value}


def _logprobs(number: int, *, is_chat: bool) -> list[Asked]:
    # At least one: llama-server takes 0 for none at all.
    if is_chat:
        return [Asked("logprobs", True), Asked("top_logprobs", max(1, number))]
    return [Asked("logprobs", max(1, number))]


def _of_chat(params: SamplingParams) -> list[Asked]:
    found = []
    if params.chat_template_kwargs:
        found.append(Asked("chat_template_kwargs", json.loads(params.chat_template_kwargs)))
    if params.continue_final_message:
        found.append(Asked("continue_final_message", True))
    if not params.add_generation_prompt or params.continue_final_message:
        found.append(Asked("add_generation_prompt", params.add_generation_prompt and not params.continue_final_message))
    return found


def find_dropped(request: SequenceRequest, dialect: Dialect, refused: Set[str], *, where: str) -> RowError | None:
    """Why a server can't be asked for this: it would drop a field in silence, or has refused it before."""
    for field in asked_of(request, dialect):
        if field.is_neutral:
            continue
        is_dropped = dialect.drops(field.name, is_chat=request.is_chat)
        if is_dropped or field.name in refused:
            who = f"{dialect.name} at {where}" if is_dropped else f"the server at {where}"
            return RowError(ErrorCode.INVALID_REQUEST, f"{field.name}: {who} can't do it; leave it out", field.name)
    if request.is_chat and request.params.reasoning == Reasoning.OFF:
        message = f"reasoning: the server at {where} can't be told to leave thoughts out; leave the field out"
        return RowError(ErrorCode.INVALID_REQUEST, message, "reasoning")
    constraint = request.params.constraint
    if constraint is not None and constraint_fields(constraint, dialect, is_chat=request.is_chat) is None:
        name = constraint.name
        message = f"{name}: {dialect.name} at {where} can't be held to it; leave it out"
        return RowError(ErrorCode.INVALID_REQUEST, message, name)
    return None


def build_body(
    requests: Sequence[SequenceRequest],
    *,
    model: str,
    dialect: Dialect,
    left_out: Set[str],
    renamed: Mapping[str, str],
    is_streaming: bool = False,
) -> Body:
    """One body for `requests`, which ask for the same but for their prompts. `left_out` and `renamed` were learned."""
    first = requests[0]
    asked = [field for field in asked_of(first, dialect) if not (field.is_neutral and field.name in left_out)]
    names = {**dialect.names, **renamed}
    content: dict[str, Any] = {"model": model, **_prompt(requests)}
    for field in asked:
        if field.is_neutral and dialect.drops(field.name, is_chat=first.is_chat):
            continue
        content[names.get(field.name, field.name)] = field.value
        if not field.is_neutral and field.name in dialect.extras:
            name, value = dialect.extras[field.name]
            content[name] = value
    if first.params.constraint is not None:
        content |= constraint_fields(first.params.constraint, dialect, is_chat=first.is_chat) or {}
    if len(requests) > 1:
        content["return_token_ids"] = True
    if is_streaming:
        content["stream"] = True
        content["stream_options"] = {"include_usage": True}
    return Body(
        CHATS if first.is_chat else COMPLETIONS,
        json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace"),
        frozenset(field.name for field in asked),
        frozenset(field.name for field in asked if field.is_neutral),
    )


def _prompt(requests: Sequence[SequenceRequest]) -> dict[str, Any]:
    if requests[0].is_chat:
        return {"messages": json.loads(requests[0].prompt)}
    prompts = [json.loads(each.prompt) if each.is_token_ids else each.prompt for each in requests]
    return {"prompt": prompts if len(prompts) > 1 else prompts[0]}


def can_share(request: SequenceRequest) -> bool:
    """Whether it can go out in one body with others: nobody waits for it, and its seed does not matter."""
    params = request.params
    is_plain = not (request.is_chat or request.is_echoing or request.is_token_ids or request.is_live)
    return is_plain and not params.temperature and params.seed is None and params.logprobs is None
