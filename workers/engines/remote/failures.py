"""Why there is no answer, by who is to blame: the closed set of what can become of a request behind a URL.

    RemoteError
      BusyError       the server takes no more now: 429, 503; the row waits, and less is sent
      AwayError       nobody answers at the URL: no connection, 502; all rows wait
      CutError        the connection ended before the answer did; the row is sent again
      BrokenError     the server failed (500 and its like), or its answer can't be read; sent again, not forever
      DeniedError     401, 403: the key
      MissingError    404: the model, or the route
      RefusedError    the row itself: it becomes its error

Which one it is follows from the status alone; the words of a server are only looked at for the field that it means.
"""

import json
import re
from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from batcher.types import ErrorCode, RowError

#: Characters of a server's words in a message.
_SHOWN_CHARS = 300
#: Seconds that a server may ask us to wait; it may mean days.
MAX_RETRY_AFTER_S = 300.0

_CONTEXT = re.compile(
    r"context[ _](?:length|size|window)|maximum context|exceed_context_size|max_model_len|longer than the model", re.I
)
#: What a server says of a field that it does not know, whatever its value.
_UNKNOWN = re.compile(
    r"unrecognized|unknown|unsupported|not (?:currently |yet )?(?:supported|permitted|allowed|implemented)"
    r"|extra(?:_forbidden| inputs| fields)|unexpected",
    re.I,
)
_TAG = re.compile(r"<[^>]*>")


class RemoteError(Exception):
    """What went wrong, in the server's words or those of the connection."""


class BusyError(RemoteError):
    """`retry_after_s`: when the server wants to be asked again; None: it does not say."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class AwayError(RemoteError):
    """Nobody answers at the URL."""


class CutError(RemoteError):
    """The connection ended before the answer did."""


class BrokenError(RemoteError):
    """The server failed, or its answer can't be read."""


class DeniedError(RemoteError):
    """The key is wrong, or may not do this."""


class MissingError(RemoteError):
    """The model or the route is not there."""


class RefusedError(RemoteError):
    """The row is wrong for this server. `field` is one of those sent that it complains about.

    With `is_unknown` it takes no value of the field.
    """

    def __init__(self, error: RowError, *, field: str | None = None, is_unknown: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.field = field
        self.is_unknown = is_unknown


def failure_of(status: int, headers: Mapping[str, str], body: bytes, *, sent: Iterable[str]) -> RemoteError:
    """What an answer that is no success means. `sent` are the names of the fields of the request."""
    words = describe(body)
    message = f"status {status}: {words}" if words else f"status {status}"
    if status in (429, 503):
        return BusyError(message, retry_after_s=_retry_after_s(headers.get("retry-after")))
    if status == 502:
        return AwayError(message)
    if status >= 500 or status == 408:
        return BrokenError(message)
    if status in (401, 403):
        return DeniedError(message)
    if status == 404:
        return MissingError(message)
    if 300 <= status < 400:
        return MissingError(f"status {status}: it sends us to {headers.get('location', 'nowhere')[:_SHOWN_CHARS]}")
    return _refusal(words or message, body, sent)


def _refusal(words: str, body: bytes, sent: Iterable[str]) -> RefusedError:
    if _CONTEXT.search(body.decode(errors="replace")):
        return RefusedError(RowError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, words, "prompt"))
    field = _field_of(body, sent)
    message = words if field is None or words.startswith(f"{field}: ") else f"{field}: {words}"
    is_unknown = field is not None and _UNKNOWN.search(words) is not None
    return RefusedError(RowError(ErrorCode.INVALID_REQUEST, message, field), field=field, is_unknown=is_unknown)


def describe(body: bytes) -> str:
    """What the body of an error says, in a line, without the rest of it: JSON of any of the servers', HTML, text."""
    text = body.decode(errors="replace")
    try:
        found = _message(json.loads(text))
    except (ValueError, RecursionError):
        found = _TAG.sub(" ", text) if "<" in text else text
    line = " ".join(found.split())
    return line if len(line) <= _SHOWN_CHARS else line[:_SHOWN_CHARS] + "..."


def _message(body: Any) -> str:
    """OpenAI's {"error": {"message"}}, vLLM's of before {"message"}, FastAPI's {"detail"}, Ollama's {"error"}."""
    if isinstance(body, dict):
        for name in ("error", "message", "detail"):
            if body.get(name):
                return _message(body[name])
    return body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)


def _field_of(body: bytes, sent: Iterable[str]) -> str | None:
    """The field that a server complains about: by `param`, by the places of FastAPI, else by its quoted name."""
    names = sorted(sent, key=len, reverse=True)
    text = body.decode(errors="replace")
    for pattern in (
        r'"param"\s*:\s*"(?:body\.)?{}"',
        r"['\"]body['\"]\s*,\s*\\?['\"]{}\\?['\"]",
        r"(?:['`\"]|\\\"){}(?:['`\"]|\\\")",
        r"\b{}\b(?=.{{0,40}}(?:support|permit|allow|recogni|unknown))|(?:argument|param\w*|field)s?\b[^.]{{0,40}}\b{}\b",
    ):
        for name in names:
            if re.search(pattern.replace("{}", re.escape(name)).replace("{{", "{").replace("}}", "}"), text, re.I):
                return name
    return None


def _retry_after_s(value: str | None) -> float | None:
    """Seconds, or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time()
        except (ValueError, OverflowError):
            return None
    # A NaN is no number of seconds either.
    return min(max(0.0, seconds), MAX_RETRY_AFTER_S) if seconds == seconds else None
