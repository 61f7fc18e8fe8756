"""Limits of a connection, where uvicorn's protocol (0.54) has none.

- Head: uvicorn waits for ever for a head of any length. Here a head has a deadline and a size, and so have the
  extensions and trailers of a chunked body.
- Writing: uvicorn waits for ever for a client that reads nothing. Here its connection is aborted when it has read
  nothing for a while; the app sees a client that hung up.
- Refused bodies: a request that is refused before its body was read is answered at once, and the rest of the body is
  read and thrown away within the deadline of a head. Clients that send first and read then find the answer; if the
  connection were closed while they send, they would find it broken. This holds for the last request of a connection
  too (lingering close).
- Pipelining: uvicorn queues any number of requests, and does not tell the one that is being answered when the client
  hangs up. Here the queue is short, and it is told.
- Hosts and transfer codings that RFC 9112 has a server refuse are refused (`heads`).
- Connections are bounded in number: `pool` says which is closed for a new one.
- Bad HTTP is answered with the documented error object, not with plain text.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from batcher.server.guard.auth import ON_ADMITTED
from batcher.server.guard.clients import busy_error
from batcher.server.guard.errors import ApiError
from batcher.server.guard.heads import check_head
from batcher.server.guard.limits import Limits
from batcher.server.guard.pool import ConnectionPool

#: For what uvicorn logs of a connection. It warns of bad HTTP, of which a stranger could send enough to fill a disk.
_errors_only = logging.getLogger("uvicorn.error.connections")
_errors_only.setLevel(logging.ERROR)

#: Bytes of a request's line and headers together. The server has no use for more than some hundred.
MAX_HEAD_BYTES = 64 << 10

#: Requests that may wait behind one that is being answered. No client of note sends any.
MAX_PIPELINED = 16


class _StopParsingError(Exception):
    """Raised into the parser to stop it, which takes it for bad HTTP: `send_400_response` answers the client."""


class _LingeringTransport:
    """The transport of a connection's last request: it stays open until the body of that request was read."""

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle, linger: Callable[[], None]) -> None:
        self._transport = transport
        self._cycle = cycle
        self._linger = linger
        self.write = transport.write
        self.is_closing = transport.is_closing

    def close(self) -> None:
        if self._cycle.response_complete and self._cycle.more_body:
            self._linger()
        else:
            self._transport.close()


class Connection(HttpToolsProtocol):
    """uvicorn's connection with deadlines; see above. Set up by `connection_class`."""

    limits = Limits()
    pool = ConnectionPool(limits.max_connections)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _errors_only
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._is_in_head = True
        #: Bytes since a head began or a piece of a body came.
        self._num_head_bytes = 0
        self._has_progressed = False
        self._is_lingering = False
        self._num_unread = 0
        #: The request that is being answered. `cycle` is the one that came last.
        self._answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if not self.pool.add(self):
            self._refuse(busy_error("the server has as many connections as it can hold, or as you may have; try later"))
            return
        self._start_head_timer()

    @property
    def address(self) -> str:
        """Where it comes from, without the port."""
        return self.client[0] if self.client else ""

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered: it waits for one, reads its head, or throws a refused body away."""
        return self._answered is None or self._answered.response_complete

    def abort(self) -> None:
        """Close the connection at once, whatever waits for the client."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.pool.discard(self)
        self._stop_head_timer()
        self._stop_write_timer()
        super().connection_lost(exc)
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._has_progressed = False
        super().data_received(data)
        if self.transport.is_closing():
            self._start_write_timer()
            return
        self._num_head_bytes = 0 if self._has_progressed else self._num_head_bytes + len(data)
        if self._num_head_bytes > MAX_HEAD_BYTES:
            self._refuse(ApiError(431, f"the request's head is larger than {MAX_HEAD_BYTES:,} bytes"))
        elif not self._is_in_head and self.cycle is not None and self.cycle.response_complete:
            # The rest of a body that nobody wants, or empty lines before the next request.
            self._start_head_timer()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._num_head_bytes = 0
        self._start_head_timer()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._has_progressed = True
        self._stop_head_timer()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise _StopParsingError
        try:
            check_head(self.headers, http_version=self.parser.get_http_version())
        except ApiError as exc:
            self._refuse(exc)
            raise _StopParsingError from exc
        # To HTTP/2, which some clients make with their first request. The parser reads nothing that comes after it.
        is_offer = self.parser.should_upgrade()
        if is_offer and any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
            self._refuse(ApiError(400, "this server speaks HTTP/1.1 alone; send the body without the header Upgrade"))
            raise _StopParsingError
        self.scope[ON_ADMITTED] = partial(self.pool.admit, self)  # type: ignore[literal-required]
        super().on_headers_complete()
        if is_offer:
            self.cycle.keep_alive = False
        elif not self.cycle.keep_alive:
            self.cycle.transport = _LingeringTransport(self.transport, self.cycle, self._linger)  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        self._has_progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._is_lingering:
            self.transport.close()

    def _linger(self) -> None:
        self._is_lingering = True
        self._start_head_timer()

    def _unsupported_upgrade_warning(self) -> None:
        """Nothing: to decline an offer needs no warning."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._start_write_timer()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._start_write_timer()

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self._start_write_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_write_timer()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, f"{msg.rstrip('.')}; this is an HTTP/1.1 server"))

    def _refuse(self, error: ApiError) -> None:
        """Answer without the app, and close."""
        if self.transport.is_closing():
            return
        content = to_json(error.body())
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(content)
        head += b"".join(f"{name}: {value}\r\n".encode() for name, value in error.headers.items()) + b"\r\n"
        # An answer that has begun can't be taken back: the connection ends in the middle of it.
        answered = self._answered
        if answered is None or answered.response_complete or not answered.response_started:
            self.transport.write(STATUS_LINE[error.status] + head + content)
        self.transport.close()
        self._start_write_timer()

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_timeout_s, self._on_head_timeout)

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.close()
            self._start_write_timer()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _start_write_timer(self) -> None:
        """Cut the connection unless the client takes something of what waits for it, again and again."""
        if self._write_timer is None:
            self._num_unread = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self.limits.write_idle_s, self._on_write_timeout)

    def _on_write_timeout(self) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() >= self._num_unread:
            self.transport.abort()
        else:
            self._start_write_timer()

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def connection_class(limits: Limits) -> type[Connection]:
    """`Connection` with these limits, for uvicorn, which makes connections itself."""
    pool = ConnectionPool(limits.max_connections, max_per_address=limits.max_connections_per_address)
    return type("LimitedConnection", (Connection,), {"limits": limits, "pool": pool})
