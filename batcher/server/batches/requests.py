"""What a batch may be asked for with: the documented bounds of its window and metadata, and the errors beyond them."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from batcher.errors import InputError, JobError
from batcher.jobdir.standing import Standing, parse_finish_by, parse_priority
from batcher.openai.parameters import CHAT_URL, COMPLETIONS_URL

#: What a request of a batch may be sent to.
ENDPOINTS = (COMPLETIONS_URL, CHAT_URL)

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512
MAX_WINDOW_DAYS = 365

T = TypeVar("T")

_WINDOW = re.compile(r"^([1-9][0-9]{0,5})([mhd])\Z")
_WINDOW_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}


class BatchRequestError(InputError):
    """What was asked of batches can't be done as it was asked; `param` names what is wrong with it."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class NoSuchThingError(BatchRequestError):
    """It names a file or batch that does not exist."""


class BatchEndedError(JobError):
    """A batch that has ended can't be cancelled."""


def window_s(completion_window: str) -> int:
    """The seconds of a completion window: `24h`, or another number of minutes, hours or days. Raises BatchRequestError.

    OpenAI documents `24h` alone.
    """
    match = _WINDOW.match(completion_window)
    seconds = int(match[1]) * _WINDOW_UNITS_S[match[2]] if match else 0
    if not 0 < seconds <= MAX_WINDOW_DAYS * 86_400:
        raise BatchRequestError(
            f"completion_window is {completion_window[:60]!r}; use '24h', or minutes, hours or days as in '90m', '2h', "
            f"'7d', at most {MAX_WINDOW_DAYS} days",
            param="completion_window",
        )
    return seconds


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise BatchRequestError for metadata outside the documented bounds."""
    if len(metadata) > MAX_METADATA_PAIRS:
        raise BatchRequestError(f"metadata has {len(metadata)} pairs; at most {MAX_METADATA_PAIRS}", param="metadata")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY_CHARS:
            message = f"metadata key {key[:20]!r}... has {len(key)} characters; at most {MAX_METADATA_KEY_CHARS}"
            raise BatchRequestError(message, param="metadata")
        if len(value) > MAX_METADATA_VALUE_CHARS:
            message = f"metadata.{key} has {len(value)} characters; at most {MAX_METADATA_VALUE_CHARS}"
            raise BatchRequestError(message, param="metadata")


def standing_of(priority: int | str | None, finish_by: str | None, metadata: Mapping[str, str]) -> Standing:
    """The place among others that a batch is to have, by its own fields, or by the metadata key `priority`.

    Raises BatchRequestError for a field; what else clients note under that key is their own.
    """
    return Standing(
        _noted_priority(metadata) if priority is None else _parsed("priority", parse_priority, priority),
        None if finish_by is None else _parsed("finish_by", parse_finish_by, finish_by),
    )


def _parsed(param: str, parse: Callable[[Any], T], value: object) -> T:
    try:
        return parse(value)
    except InputError as exc:
        raise BatchRequestError(str(exc), param=param) from exc


def _noted_priority(metadata: Mapping[str, str]) -> int | None:
    try:
        return parse_priority(metadata["priority"])
    except (KeyError, InputError):
        return None


def check_endpoint(endpoint: str) -> None:
    """Raise BatchRequestError for a path that requests of a batch can't be sent to."""
    if endpoint not in ENDPOINTS:
        raise BatchRequestError(f"endpoint is {endpoint[:60]!r}; use one of: {', '.join(ENDPOINTS)}", param="endpoint")
