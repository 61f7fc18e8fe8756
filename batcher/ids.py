"""Identifiers: what the ids of jobs and workers and the names of models may look like, and the ids of responses.

An id becomes a part of paths and keys. A model's name is an identifier of the API (`gemma3:27b`, `Qwen/Qwen3-0.6B`), so
it may hold whatever prints, and is encoded where it becomes a part of a key.
"""

import hashlib
import re
import secrets
from datetime import UTC, datetime
from urllib.parse import quote

from batcher.errors import InputError

#: What a job id, and any other id that becomes part of a path or a key, may look like. `$` would let a newline end it.
ID_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")

MAX_MODEL_NAME_CHARS = 256
MODEL_NAME_REMEDY = f"use 1 to {MAX_MODEL_NAME_CHARS} printable characters without blanks"

#: Those of ids that we draw: no vowels, so no words, and no l, which looks like a 1.
_ID_LETTERS = "bcdfghjkmnpqrstvwxyz"
_NUM_ID_LETTERS = 4

#: A name in a message; a bad one can be of any length.
_SHOWN_CHARS = 60


def check_id(value: str, *, what: str) -> str:
    """Return `value` if it is safe as a file name and a Redis key, else raise InputError."""
    if not ID_PATTERN.match(value):
        raise InputError(
            f"{what} {value!r} is not usable: letters, digits, '_', '.', '-', at most 128, "
            "and the first one a letter or digit"
        )
    return value


def new_job_id() -> str:
    """A job id that is short enough to be typed: the day, and letters that make no words, as `20261130-qxkv`.

    Two can be the same: whoever makes a job of it draws until its folder is new (`jobdir.root.place_job`).
    """
    return f"{datetime.now(UTC):%Y%m%d}-{''.join(secrets.choice(_ID_LETTERS) for _ in range(_NUM_ID_LETTERS))}"


def is_model_name(value: str) -> bool:
    """Whether `value` can name a model: printable characters, no blank of any kind, not too many."""
    # Of all blanks only the space is printable to Python.
    return 0 < len(value) <= MAX_MODEL_NAME_CHARS and value.isprintable() and " " not in value


def check_model_name(value: str) -> str:
    """Return `value` if it can name a model, else raise InputError."""
    if not is_model_name(value):
        shown = repr(value if len(value) <= _SHOWN_CHARS else value[: _SHOWN_CHARS - 3] + "...")
        raise InputError(f"model name {shown} is not usable: {MODEL_NAME_REMEDY}")
    return value


def encode_name(name: str) -> str:
    """A model's name as a part of a Redis key or a Celery queue: in ASCII without separators, and an id as it is."""
    return quote(name, safe="")


def response_digits(uid: str, row: int) -> str:
    """24 hexadecimal digits for the response to a row, from the uid of its job: the same on every attempt, and never
    those of another row or job."""
    return hashlib.blake2b(f"{uid} {row}".encode(), digest_size=12).hexdigest()


def call_id(response_id: str, index: int) -> str:
    """The id of the call that choice `index` of a response has: "call_" and 24 hexadecimal digits."""
    return f"call_{hashlib.blake2b(f'{response_id} {index}'.encode(), digest_size=12).hexdigest()}"


def completion_id(digits: str, *, is_chat: bool) -> str:
    """The id of a response, as the API has them: "cmpl-" or, of a chat, "chatcmpl-", and 24 hexadecimal digits."""
    return f"{'chatcmpl' if is_chat else 'cmpl'}-{digits}"
