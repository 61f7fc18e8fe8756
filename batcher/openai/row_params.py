"""The parameters of plain rows: those that each row has over the defaults of the job, and those that it opts in to.

A plain row has `max_tokens`, `temperature`, `top_p`, `stop` and `seed`; a column of any other name is the user's own,
unless `--fields` says that it is the field of that name. What such a field means is what it means in a body.
"""

from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json

from batcher.errors import InputError
from batcher.openai.body_field import Use
from batcher.openai.fields import BY_NAME, OPTIONAL_ROW_FIELDS, PARAM_FIELDS, closest
from batcher.openai.request_params import check_refused, merge_params
from batcher.types import SamplingParams

#: Parameters that are kept to be shared by rows. Where each row has a seed of its own, none of them would be.
_MAX_MERGED = 1024
_FURTHER = tuple(field.name for field in fields(SamplingParams))[len(PARAM_FIELDS) :]
_CLIPS = _FURTHER.index("clips_max_tokens")


def check_fields(names: Collection[str]) -> tuple[str, ...]:
    """The fields that rows opt in to, in the order of the table. Raises InputError for a name that none can have."""
    for name in names:
        if name in OPTIONAL_ROW_FIELDS or name in PARAM_FIELDS:
            continue
        known = ", ".join(OPTIONAL_ROW_FIELDS)
        if any(name in BY_NAME[is_chat] for is_chat in (False, True)):
            raise InputError(f"--fields {name}: rows can't have that field; they can have {known}")
        meant = closest(name, is_chat=True) or closest(name, is_chat=False)
        hint = f"did you mean {meant}? " if meant in OPTIONAL_ROW_FIELDS else ""
        raise InputError(f"--fields {name}: there is no such field; {hint}rows can have {known}")
    return tuple(name for name in OPTIONAL_ROW_FIELDS if name in names)


class RowParams:
    """Merges the parameters of rows with the defaults: `params` those of completions, `chat_params` those of chats.

    `names` are all the columns that are parameters, the `opted` ones among them.
    """

    def __init__(self, *, params: SamplingParams, chat_params: SamplingParams, opted: Sequence[str]) -> None:
        self.opted = tuple(opted)
        self.names = frozenset((*PARAM_FIELDS, *opted))
        self._defaults = {False: params, True: chat_params}
        self._further = {
            is_chat: tuple(getattr(default, name) for name in _FURTHER) for is_chat, default in self._defaults.items()
        }
        self._merged: dict[tuple[Any, ...], SamplingParams] = {}

    def merge(self, found: BaseModel, *, is_chat: bool) -> SamplingParams:
        """The parameters of a checked row. Raises InvalidBodyError for those that contradict each other."""
        if self.opted:
            return self._merge_opted(found, is_chat)
        if self.names.isdisjoint(found.__pydantic_fields_set__):
            return self._defaults[is_chat]
        given = found.__dict__
        max_tokens, temperature, top_p, stop, seed = [given[name] for name in PARAM_FIELDS]
        if type(stop) is list:
            stop = tuple(stop)
        key = (is_chat, max_tokens, temperature, top_p, stop, seed)
        # Most rows are sampled like others before them, and to look that up is faster than to build it.
        merged = self._merged.get(key)
        if merged is None:
            merged = self._merge_usual(is_chat, max_tokens, temperature, top_p, stop, seed)
            if len(self._merged) >= _MAX_MERGED:
                self._merged.clear()
            self._merged[key] = merged
        return merged

    def _merge_opted(self, found: BaseModel, is_chat: bool) -> SamplingParams:
        for name in self.opted:
            field, value = BY_NAME[is_chat][name], found.__dict__[name]
            if field.use is Use.REFUSED and value is not None:
                check_refused(field, value)
        return merge_params(found, self._defaults[is_chat], is_chat=is_chat)

    def _merge_usual(
        self,
        is_chat: bool,
        max_tokens: int | None,
        temperature: float | None,
        top_p: float | None,
        stop: str | tuple[str, ...] | None,
        seed: int | None,
    ) -> SamplingParams:
        # Not by `dataclasses.replace`, which takes three times as long.
        default, further = self._defaults[is_chat], self._further[is_chat]
        if max_tokens is not None and default.clips_max_tokens:
            further = (*further[:_CLIPS], False, *further[_CLIPS + 1 :])
        return SamplingParams(
            default.max_tokens if max_tokens is None else max_tokens,
            default.temperature if temperature is None else temperature,
            default.top_p if top_p is None else top_p,
            default.stop if stop is None else (stop,) if isinstance(stop, str) else stop,
            default.seed if seed is None else seed,
            *further,
        )


def table_values(name: str, values: list[Any]) -> list[Any]:
    """The values of an opted column of a table, as JSON would have them.

    A table has objects as structs, whose fields are all there, or as maps; CSV has objects and arrays as JSON text.
    """
    kinds = [BY_NAME[is_chat][name] for is_chat in (False, True)]
    if not any(field.use is Use.HONOURED and field.is_compound for field in kinds):
        return values
    return [_json_value(value) for value in values]


def _json_value(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return from_json(value)
        except ValueError:
            return value
    return _without_nulls(value)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
