"""What the fields of a request say together: the parameters that it is sampled with."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NoReturn

from pydantic import BaseModel

from batcher.constraints import find_unscorable
from batcher.errors import InvalidBodyError
from batcher.openai.body_field import BodyField
from batcher.openai.fields import MAX_STOPS, PARAMETERS, variables_text
from batcher.openai.parameters import shown
from batcher.openai.tool_fields import read_tools
from batcher.openai.unsupported_fields import TEMPLATE_FIELDS
from batcher.types import Constraint, ConstraintKind, SamplingParams, Tools

#: Of a constraint in parameters that are kept.
_MAX_KEPT_CHARS = 16_384

#: What the template gets from the request itself: `chat_template_kwargs` must not say otherwise.
_VARIABLES_OF_THE_REQUEST = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token", "chat_template"}
)


def refuse(param: str, problem: str) -> NoReturn:
    """Raise InvalidBodyError for a field."""
    raise InvalidBodyError(f"{param} {problem}", param=param)


def merge_params(found: BaseModel, defaults: SamplingParams, *, is_chat: bool) -> SamplingParams:
    """`defaults` with what a checked body or row says; a row has only some of the fields.

    Raises InvalidBodyError for what contradicts itself.
    """
    given = _given(found, is_chat=is_chat)
    if is_chat:
        given |= _of_chat(found.__dict__, given, defaults)
    if "max_tokens" in given:
        given["clips_max_tokens"] = False
    if not given:
        return defaults
    # Most requests are sampled like others before them, and to look that up takes a third of the time.
    return (_look_up if all(map(_is_small, given.values())) else _replace)(defaults, *given.items())


def _replace(defaults: SamplingParams, *given: tuple[str, Any]) -> SamplingParams:
    params = replace(defaults, **dict(given))
    if params.best_of is not None and params.best_of < params.n:
        refuse("best_of", f"is {params.best_of}; use at least n, which is {params.n}")
    if not params.max_tokens and not params.echo:
        refuse("max_tokens", "is 0; use a positive integer, or give echo true as well")
    if params.echo and params.logprobs is not None and params.suffix:
        refuse("suffix", "is not supported together with echo and logprobs; leave out one of them")
    if params.min_tokens > params.max_tokens:
        refuse("min_tokens", f"is {params.min_tokens}; use at most max_tokens, which is {params.max_tokens}")
    if name := find_unscorable(params):
        refuse(name, "has no effect where labels are scored, as nothing is drawn; leave it out, or scores")
    return params


_look_up = lru_cache(maxsize=256)(_replace)


def _is_small(value: Any) -> bool:
    """Whether a parameter may be kept: what clients send can be large."""
    if isinstance(value, Constraint):
        return len(value.text) <= _MAX_KEPT_CHARS
    if isinstance(value, Tools):
        return len(value.functions) <= _MAX_KEPT_CHARS
    return not isinstance(value, str | tuple) or len(value) <= MAX_STOPS


def check_refused(field: BodyField, value: Any) -> None:
    """Raises InvalidBodyError for a refused field that asks for something."""
    if not field.asks_for_nothing(value):
        refuse(field.name, f"is {shown(value)}; {field.remedy}")


def _given(found: BaseModel, *, is_chat: bool) -> dict[str, Any]:
    """The parameters that a body or row gives, as `SamplingParams` has them."""
    values, known = found.__dict__, PARAMETERS[is_chat]
    given: dict[str, Any] = {}
    said_by: dict[str, str] = {}
    # Few of the many are given. In the order of their names, so that a message is always the same.
    for name in sorted(known.keys() & found.__pydantic_fields_set__, reverse=True):
        # A row has columns of its own by these names: those are not among its values.
        if (value := values.get(name)) is None:
            continue
        field = known[name]
        assert field.param is not None
        value = field.convert(value) if field.convert is not None else value
        if given.get(field.param) is None:
            # None is what a field asks for that wants no constraint: another may want one.
            given[field.param] = value
        elif value is not None and given[field.param] != value:
            refuse(field.name, _contradiction(value, said_by[field.param], given[field.param]))
        said_by[field.param] = field.name
    return given


def _contradiction(value: Any, other: str, other_value: Any) -> str:
    if isinstance(value, Constraint):
        return f"and {other} say both what the text must be; give one of them"
    return f"is {shown(value)} and {other} {shown(other_value)}; give one of them"


def template_variables(variables: Mapping[str, Any]) -> str:
    """`SamplingParams.chat_template_kwargs` of what somebody gives. Raises InvalidBodyError."""
    for name in variables:
        if name in _VARIABLES_OF_THE_REQUEST:
            label = f"chat_template_kwargs.{name}"
            refuse(label, f"is {shown(variables[name])}; the request itself says that, remove it")
    try:
        return variables_text(variables)
    except ValueError:
        refuse("chat_template_kwargs", "holds a number that is not finite; use one that is")


def _of_chat(values: Mapping[str, Any], given: Mapping[str, Any], defaults: SamplingParams) -> dict[str, Any]:
    """What fields of a chat say together."""
    found: dict[str, Any] = {}
    top_logprobs = values.get("top_logprobs")
    if values.get("logprobs"):
        found["logprobs"] = top_logprobs or 0
    elif top_logprobs:
        refuse("top_logprobs", f"is {top_logprobs} without logprobs; give logprobs true too")
    if given.get("continue_final_message"):
        if given.get("add_generation_prompt"):
            refuse("continue_final_message", "is true and add_generation_prompt true; give one of them")
        found["add_generation_prompt"] = False
    if (tools := read_tools(values.get("tools"), values.get("tool_choice"))) is not None:
        found["tools"] = _check_tools(tools, given, defaults)
    variables = _template_variables(values)
    if variables:
        # Over those of the job.
        of_job = json.loads(defaults.chat_template_kwargs or "{}")
        found["chat_template_kwargs"] = template_variables(of_job | variables)
    return found


def _check_tools(tools: Tools, given: Mapping[str, Any], defaults: SamplingParams) -> Tools:
    """Refuse what has no meaning beside tools."""
    constraint = given.get("constraint", defaults.constraint)
    if constraint is not None and constraint.kind not in (ConstraintKind.JSON_SCHEMA, ConstraintKind.JSON_OBJECT):
        refuse("tools", f"can't be given with a {constraint.kind} that texts must keep to; give one of them")
    for name in ("continue_final_message", "ignore_eos"):
        if given.get(name):
            refuse("tools", f"can't be given with {name}; give one of them")
    return tools


def _template_variables(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template gets beside messages. `reasoning_effort` says `enable_thinking`, too, as in vLLM."""
    variables = {name: values[name] for name in TEMPLATE_FIELDS if values.get(name) is not None}
    if "reasoning_effort" in variables:
        variables["enable_thinking"] = variables["reasoning_effort"] != "none"
    return variables | (values.get("chat_template_kwargs") or {})
