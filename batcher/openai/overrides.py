"""Fields of a request that are given anew for rows that were checked long ago: how they are sampled, and nothing else.

The same table checks them as any body's (see `fields`).
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from batcher.errors import InputError
from batcher.openai.fields import BY_NAME, SAMPLING_FIELDS, closest
from batcher.openai.parameters import explain, row_model
from batcher.openai.request_params import merge_params
from batcher.types import SamplingParams

#: No field has this name, and no row that is checked here an id or a prompt.
_NO_ID = "custom_id"


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """Fields given as `NAME=VALUE`; a value is JSON, else the text that it is. Raises like `check_settings`."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: use NAME=VALUE, such as --set max_tokens=256")
        if name in found:
            raise InputError(f"--set {text}: {name} is given twice; leave out one")
        try:
            found[name] = from_json(value, allow_inf_nan=False)
        except ValueError:
            found[name] = value
    check_settings(found)
    return found


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise InputError for a field that can't be given anew, or a value that none can have."""
    for name, value in settings.items():
        if value is None:
            raise InputError(f"--set {name} is null, which changes nothing; leave it out")
        if name in SAMPLING_FIELDS:
            continue
        known = ", ".join(SAMPLING_FIELDS)
        if any(name in BY_NAME[is_chat] for is_chat in (False, True)):
            raise InputError(
                f"--set {name}: a retry can't change that, only how rows are sampled: {known}; for another {name} "
                "submit the input as a new job"
            )
        meant = closest(name, is_chat=True) or closest(name, is_chat=False)
        hint = f"did you mean {meant}? " if meant in SAMPLING_FIELDS else ""
        raise InputError(f"--set {name}: there is no such field; {hint}a retry can set {known}")
    for is_chat in (False, True):
        try:
            _read(settings, is_chat=is_chat)
        except ValidationError as exc:
            problem = explain(exc, settings, {name: name for name in settings}, is_chat=is_chat)
            raise InputError(f"--set {problem.message}") from exc


def override(params: SamplingParams, settings: Mapping[str, Any], *, is_chat: bool) -> SamplingParams:
    """`params` with these fields, checked before. Raises InvalidBodyError for what contradicts the rest of them."""
    return merge_params(_read(settings, is_chat=is_chat), params, is_chat=is_chat)


def _read(settings: Mapping[str, Any], *, is_chat: bool) -> BaseModel:
    return _model(is_chat).model_validate(dict(settings))


@cache
def _model(is_chat: bool) -> type[BaseModel]:
    return row_model(prompt_column=None, id_column=_NO_ID, fields=SAMPLING_FIELDS, is_chat=is_chat)
