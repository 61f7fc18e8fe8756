"""How much the server takes on: of a request, and of all of them together.

`Admission` counts requests before their bodies are read and bounds the body while it is read, so that nobody can fill
the memory, or hold a place by sending nothing.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batcher.server.guard.answers import ClientGoneError
from batcher.server.guard.auth import PUBLIC_PATHS
from batcher.server.guard.errors import ApiError

#: Bytes that boundaries, headers and fields of a form may add to its file.
FORM_BYTES = 1 << 20
#: Bytes of a body that asks for a batch: its longest metadata takes a twentieth.
MAX_BATCH_BODY_BYTES = 1 << 20

#: Seconds after which a request that was refused for want of room should come again.
RETRY_BUSY_S = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server bears.

    `max_body_bytes` is for one JSON body, `max_held_bytes` for all together; `max_file_bytes` for uploads, which go to
    the disk. `max_sequences` is for one request (its prompts times `best_of`), `max_queued` for all live requests
    together. `max_connections` are open at a time, idle ones too. `request_timeout_s` runs from the body to the last
    token. `body_idle_s` may pass between two pieces of a body, `write_idle_s` without a client reading anything.
    """

    max_body_bytes: int = 10 << 20
    max_held_bytes: int = 256 << 20
    max_file_bytes: int = 1 << 30
    max_sequences: int = 2048
    max_queued: int = 16384
    max_concurrent: int = 1024
    max_connections: int = 8192
    request_timeout_s: float = 600.0
    body_idle_s: float = 30.0
    write_idle_s: float = 60.0
    head_timeout_s: float = 30.0

    def max_bytes(self, scope: Scope) -> int:
        """Of the body of a request. Of an upload's it is the form's; the file in it is measured where it is stored."""
        if _is_upload(scope):
            return self.max_file_bytes + FORM_BYTES
        return min(self.max_body_bytes, MAX_BATCH_BODY_BYTES) if _is_of_batches(scope) else self.max_body_bytes


def busy_error(message: str) -> ApiError:
    """There is no room now. The SDK waits and sends the request again."""
    return ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": str(RETRY_BUSY_S)})


class Admission:
    """Bounds the number of requests at a time, and each one's body."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._num_open = 0
        self._num_held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Health and metrics must be seen just when there is too much to do.
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS or scope["path"] == "/metrics":
            await self._app(scope, receive, send)
            return
        if self._num_open >= self._limits.max_concurrent:
            raise busy_error(f"{self._num_open} requests are being answered, as many as this server takes; try later")
        is_upload = _is_upload(scope)
        max_bytes = self._limits.max_bytes(scope)
        _check_announced(scope, max_bytes)
        hold = _ignore if is_upload else self._hold
        body = _Body(receive, max_bytes=max_bytes, idle_s=self._limits.body_idle_s, hold=hold)
        self._num_open += 1
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._num_open -= 1
            self._num_held_bytes -= 0 if is_upload else body.num_bytes

    def _hold(self, num_bytes: int) -> None:
        """Count a piece of a body, which lasts as long as its request. Raises ApiError where there are too many."""
        self._num_held_bytes += num_bytes
        # The largest body must have a chance.
        if self._num_held_bytes > max(self._limits.max_held_bytes, self._limits.max_body_bytes):
            raise busy_error("the requests being answered are as large together as this server takes; try later")


class _Body:
    """A request's body on its way in. After its end only the client's leaving can come."""

    def __init__(self, receive: Receive, *, max_bytes: int, idle_s: float, hold: Callable[[int], None]) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._idle_s = idle_s
        self._hold = hold
        self.num_bytes = 0
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
        num_bytes = len(message.get("body", b""))
        self.num_bytes += num_bytes
        self._hold(num_bytes)
        self._is_complete = not message.get("more_body", False)
        if self.num_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        return message


def _is_upload(scope: Scope) -> bool:
    return bool(scope["path"] == "/v1/files" and scope["method"] == "POST")


def _is_of_batches(scope: Scope) -> bool:
    return bool(scope["path"].startswith("/v1/batches"))


def _ignore(num_bytes: int) -> None:
    """Not held: it goes to the disk as it comes."""


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
