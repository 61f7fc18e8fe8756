"""How much the server takes on: of a request, and of all of them together.

`Gate` counts requests before their bodies are read and bounds the body while it is read, so that nobody can fill the
memory, or hold a place by sending nothing.
"""

import asyncio
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batcher.api.answers import ClientGoneError
from batcher.api.auth import PUBLIC_PATHS
from batcher.api.errors import ApiError

#: Seconds after which a request that was refused for want of room should come again.
RETRY_BUSY_S = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server bears.

    `max_body_bytes` is for JSON bodies; `max_file_bytes` for uploads. `max_sequences` is for one request (its prompts
    times `best_of`), `max_queued` for all live requests together. `request_timeout_s` runs from the body to the last
    token. `body_idle_s` may pass between two pieces of a body, `write_idle_s` without a client reading anything.
    """

    max_body_bytes: int = 10 << 20
    max_file_bytes: int = 1 << 30
    max_sequences: int = 2048
    max_queued: int = 16384
    max_concurrent: int = 1024
    request_timeout_s: float = 600.0
    body_idle_s: float = 30.0
    write_idle_s: float = 60.0
    head_timeout_s: float = 30.0


def busy_error(message: str) -> ApiError:
    """There is no room now. The SDK waits and sends the request again."""
    return ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": str(RETRY_BUSY_S)})


class Gate:
    """Bounds the number of requests at a time, and each one's body."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Health and metrics must be seen just when there is too much to do.
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS or scope["path"] == "/metrics":
            await self._app(scope, receive, send)
            return
        if self._num_open >= self._limits.max_concurrent:
            raise busy_error(f"{self._num_open} requests are being answered, as many as this server takes; try later")
        max_bytes = _max_bytes(scope, self._limits)
        _check_announced(scope, max_bytes)
        self._num_open += 1
        try:
            await self._app(scope, _Body(receive, max_bytes=max_bytes, idle_s=self._limits.body_idle_s).receive, send)
        finally:
            self._num_open -= 1


class _Body:
    """A request's body on its way in. After its end only the client's leaving can come."""

    def __init__(self, receive: Receive, *, max_bytes: int, idle_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._idle_s = idle_s
        self._num_bytes = 0
        self._is_complete = False

    async def receive(self) -> Message:
        if self._is_complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._idle_s):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(
                408,
                f"the rest of the request's body did not come within {self._idle_s:g} s",
                headers={"connection": "close"},
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        self._num_bytes += len(message.get("body", b""))
        self._is_complete = not message.get("more_body", False)
        if self._num_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        return message


def _max_bytes(scope: Scope, limits: Limits) -> int:
    if scope["path"].rstrip("/") == "/v1/files" and scope["method"] == "POST":
        # The form around the file; the file itself is measured by who stores it.
        return limits.max_file_bytes + limits.max_body_bytes
    return limits.max_body_bytes


def _check_announced(scope: Scope, max_bytes: int) -> None:
    """Refuse a body before it is sent, where its length is announced."""
    headers = Headers(scope=scope)
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length[:19]) > max_bytes:
        # Who waits for our word before sending (Expect) may or may not send after this, so the connection must end.
        raise _too_large(max_bytes, headers={"connection": "close"} if "expect" in headers else {})


def _too_large(max_bytes: int, *, headers: dict[str, str] | None = None) -> ApiError:
    return ApiError(
        413,
        f"the request's body is larger than {max_bytes:,} bytes; split it, or start the server with a larger limit",
        code="request_too_large",
        headers=headers or {},
    )
