"""Connections that can't be held open for nothing: what uvicorn's protocol leaves without a limit, by uvicorn 0.54.

- The head of a request may come a byte a minute and have any length. Here it has a deadline and a size, and so has
  what else is no body: the extensions and trailers of a chunked one.
- A client that reads nothing holds up whoever writes to it, for ever: `send` waits until the transport has room. Here
  a connection is cut when nothing was taken from it for a while; the app sees that as a client that hung up.
- A request that is refused before its body was read is answered at once, and the rest of the body is thrown away as
  it comes, so that a client that sends first and reads then finds the answer. That has the deadline of a head, as it
  stands in the way of the next one. So is that of a client that wants the connection to end after the answer: to close
  it while the client sends would have it find a broken connection instead.
- Requests that come before the answer to an earlier one wait in any number, and that earlier one is not told when the
  client hangs up. Here they are few, and it is.
- What is no HTTP is answered in plain text. Here it is the documented error object.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from batcher.server.guard.errors import ApiError
from batcher.server.guard.limits import Limits

#: Bytes of a request's line and headers together. The server has no use for more than some hundred.
MAX_HEAD_BYTES = 64 << 10

#: Requests that may wait behind one that is being answered. No client of note sends any.
MAX_PIPELINED = 16


class _LeftUnreadError(Exception):
    """Raised into the parser, which then reads no further. It takes it for bad HTTP, and the client is told so."""


class _Farewell:
    """The transport for the last request of a connection: closed when all was read that the client sends with it."""

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle, on_early: Callable[[], None]) -> None:
        self._transport = transport
        self._cycle = cycle
        self._on_early = on_early
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        if self._cycle.response_complete and self._cycle.more_body:
            self._on_early()
        else:
            self._transport.close()


class Connection(HttpToolsProtocol):
    """uvicorn's connection with deadlines; see above. Set up by `connection_class`."""

    limits = Limits()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._is_in_head = True
        #: Bytes since a head began or a piece of a body came.
        self._num_head_bytes = 0
        self._has_moved_on = False
        self._is_closing_after_body = False
        self._num_unread = 0
        #: The request that is being answered. `cycle` is the one that came last.
        self._answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm_head()
        self._disarm_write()
        super().connection_lost(exc)
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._has_moved_on = False
        super().data_received(data)
        if self.transport.is_closing():
            self._await_reading()
            return
        self._num_head_bytes = 0 if self._has_moved_on else self._num_head_bytes + len(data)
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(ApiError(431, f"the request's head is larger than {MAX_HEAD_BYTES:,} bytes"))
        elif not self._is_in_head and self.cycle is not None and self.cycle.response_complete:
            # The rest of a body that nobody wants, or empty lines before the next request.
            self._arm_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._num_head_bytes = 0
        self._arm_head()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._has_moved_on = True
        self._disarm_head()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _LeftUnreadError
        # To HTTP/2, which some clients make with their first request. The parser reads nothing that comes after it.
        is_offer = self.parser.should_upgrade()
        if is_offer and any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
            self._refuse(ApiError(400, "this server speaks HTTP/1.1 alone; send the body without the header Upgrade"))
            raise _LeftUnreadError
        super().on_headers_complete()
        if is_offer:
            self.cycle.keep_alive = False
        elif not self.cycle.keep_alive:
            self.cycle.transport = _Farewell(self.transport, self.cycle, self._close_after_body)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._has_moved_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._is_closing_after_body:
            self.transport.close()

    def _close_after_body(self) -> None:
        self._is_closing_after_body = True
        self._arm_head()

    def _unsupported_upgrade_warning(self) -> None:
        """An offer that is declined is nothing to warn of."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._await_reading()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_reading()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._await_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._disarm_write()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, f"{msg.rstrip('.')}; this is an HTTP/1.1 server"))

    def _refuse(self, error: ApiError) -> None:
        """Answer without the app, and close."""
        if self.transport.is_closing():
            return
        content = to_json(error.body())
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(content)
        # An answer that has begun can't be taken back: the connection ends in the middle of it.
        answered = self._answered
        if answered is None or answered.response_complete or not answered.response_started:
            self.transport.write(STATUS_LINE[error.status] + head + content)
        self.transport.close()
        self._await_reading()

    def _arm_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_timeout_s, self._give_up_head)

    def _give_up_head(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
            self._await_reading()

    def _disarm_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _await_reading(self) -> None:
        """Cut the connection unless the client takes something of what waits for it, again and again."""
        if self._write_timer is None:
            self._num_unread = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self.limits.write_idle_s, self._check_reading)

    def _check_reading(self) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() >= self._num_unread:
            self.transport.abort()
        else:
            self._await_reading()

    def _disarm_write(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def connection_class(limits: Limits) -> type[Connection]:
    """`Connection` with these limits, for uvicorn, which makes connections itself."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
