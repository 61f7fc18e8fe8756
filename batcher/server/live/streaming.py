"""A completion as server-sent events: a `data:` line for each piece, and `data: [DONE]` at the end."""

import time
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from batcher.openai.answers import ChunkStream
from batcher.server.guard.answers import ClientGoneError, as_api_error
from batcher.server.guard.clients import client_of
from batcher.server.live.exchange import Exchange, Exchanges
from batcher.server.metrics import Metrics
from batcher.types import Choice, Delta, Request

_DONE = b"data: [DONE]\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class EventStream(Response):
    """Begins when there is something to say: a request that fails before has a status of its own.

    All that is ready goes out in one write. Once the answer has begun, a failure is an event, `{"error": {...}}`, and
    the last one.
    """

    def __init__(
        self,
        exchanges: Exchanges,
        request: Request,
        chunks: ChunkStream,
        *,
        includes_usage: bool,
        metrics: Metrics,
        headers: Mapping[str, str],
    ) -> None:
        # As starlette's StreamingResponse does: without a body there is no content-length.
        self.status_code = 200
        self.media_type = "text/event-stream"
        self.background = None
        self.init_headers({**_HEADERS, **headers})
        self._exchanges = exchanges
        self._request = request
        self._chunks = chunks
        self._includes_usage = includes_usage
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began_at = time.perf_counter()
        async with self._exchanges.begin(
            self._request, receive, client=client_of(scope), is_streaming=True
        ) as exchange:
            items = await exchange.take()
            self._metrics.first_token(self._request.model, seconds=time.perf_counter() - began_at)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                await self._write(exchange, items, send)
            except ClientGoneError:
                raise
            except Exception as exc:
                last = _event(as_api_error(exc, scope).body())
                await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _write(self, exchange: Exchange, items: list[Delta | Choice], send: Send) -> None:
        events = [_event(chunk) for chunk in self._chunks.opening()]
        while True:
            events += [_event(self._chunk(item)) for item in items]
            is_last = exchange.is_done
            if is_last:
                if self._includes_usage:
                    events.append(_event(self._chunks.usage()))
                events.append(_DONE)
            await send({"type": "http.response.body", "body": b"".join(events), "more_body": not is_last})
            if is_last:
                return
            items = await exchange.take()
            events = []

    def _chunk(self, item: Delta | Choice) -> dict[str, Any]:
        return self._chunks.delta(item) if isinstance(item, Delta) else self._chunks.end(item)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + to_json(content, inf_nan_mode="null") + b"\n\n"
