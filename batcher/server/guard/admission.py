"""Admission of requests: counted before their bodies are read, and each body bounded while it is read.

So nobody can fill the memory, or hold a place by sending nothing.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from batcher.server.guard.answers import ClientGoneError
from batcher.server.guard.auth import PUBLIC_PATHS
from batcher.server.guard.clients import Usage, client_of
from batcher.server.guard.errors import ApiError
from batcher.server.guard.limits import Limits, is_upload


class Admission:
    """Bounds the number of requests at a time, and each one's body."""

    def __init__(self, app: ASGIApp, *, limits: Limits, usage: Usage) -> None:
        self._app = app
        self._limits = limits
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Health and metrics must be seen just when there is too much to do.
        if scope["type"] != "http" or scope["path"] in PUBLIC_PATHS or scope["path"] == "/metrics":
            await self._app(scope, receive, send)
            return
        client, usage = client_of(scope), self._usage
        usage.requests.take(client, 1)
        try:
            max_bytes = self._limits.max_bytes(scope)
            _check_announced(scope, max_bytes)
            # An upload goes to the disk as it comes; any other body lasts as long as its request.
            hold = _ignore if is_upload(scope) else partial(usage.body_bytes.take, client)
            body = _Body(receive, max_bytes=max_bytes, idle_s=self._limits.body_idle_s, hold=hold)
            try:
                await self._app(scope, body.receive, send)
            finally:
                if not is_upload(scope):
                    usage.body_bytes.give(client, body.num_bytes)
        finally:
            usage.requests.give(client, 1)


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
        self._hold(num_bytes)
        self.num_bytes += num_bytes
        self._is_complete = not message.get("more_body", False)
        if self.num_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        return message


def _ignore(num_bytes: int) -> None:
    """Not held."""


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
