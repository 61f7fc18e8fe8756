"""A live request between its engine and its client: what is ready is kept until the client takes it.

A request is over when the engine has given its last choice, when it failed, when it took too long, when the client has
hung up, or when the server stops. Whatever comes first ends it, and the engine is left at once. For the event loop's
thread.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import chain
from types import TracebackType
from typing import Self

from starlette.types import Receive

from batcher.live import LiveEngine
from batcher.server.guard.answers import RETRY_AWAY_S, ClientGoneError, timeout_error
from batcher.server.guard.clients import Usage
from batcher.server.guard.errors import ApiError
from batcher.server.guard.limits import Limits
from batcher.types import Choice, Delta, FunctionCall, Request

#: Deltas that may wait for the client one by one. Beyond, those of a choice become one: a client that reads slowly
#: gets larger pieces, and holds no more memory than its text takes.
MAX_WAITING = 16


@dataclass(frozen=True, slots=True)
class _DeltaGroup:
    """Deltas of one choice that are sent as one."""

    deltas: list[Delta]

    def merged(self) -> Delta:
        first = self.deltas[0]
        if len(self.deltas) == 1:
            return first
        logprobs = None
        # Thoughts have none.
        if any(delta.logprobs is not None for delta in self.deltas):
            logprobs = tuple(chain.from_iterable(delta.logprobs or () for delta in self.deltas))
        text = "".join(delta.text for delta in self.deltas)
        reasoning = "".join(delta.reasoning for delta in self.deltas)
        calls = [delta.call for delta in self.deltas if delta.call is not None]
        call = FunctionCall(calls[0].name, "".join(call.arguments for call in calls)) if calls else None
        return Delta(first.index, text, logprobs, reasoning, call)


class Exchange:
    """One live request. An async context: inside it the engine works on it."""

    def __init__(
        self, items: AsyncIterator[Delta | Choice], receive: Receive, *, num_choices: int, timeout_s: float
    ) -> None:
        self._source = items
        self._receive = receive
        self._num_left = num_choices
        self._timeout_s = timeout_s
        self._waiting: list[_DeltaGroup | Choice] = []
        self._last_group: dict[int, _DeltaGroup] = {}
        self._error: Exception | None = None
        self._is_finished = False
        self._changed = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._pulling = asyncio.create_task(self._pull())
        self._watching = asyncio.create_task(self._watch())
        late = timeout_error(f"the completion took longer than the {self._timeout_s:g} s that this server allows")
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self.fail, late)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._timer.cancel()
        self._pulling.cancel()
        self._watching.cancel()
        # What they raise is told by `take`; here they only have to be over.
        await asyncio.gather(self._pulling, self._watching, return_exceptions=True)

    @property
    def is_done(self) -> bool:
        """Whether all choices were taken."""
        return self._num_left == 0 and not self._waiting

    async def take(self) -> list[Delta | Choice]:
        """What is ready, in order; waits for it. Raises what ended the request before its last choice."""
        while not (self._waiting or self._error or self._is_finished):
            self._changed.clear()
            await self._changed.wait()
        if isinstance(self._error, ClientGoneError) or (self._error is not None and not self._waiting):
            raise self._error
        assert self._waiting, "the engine ended without all choices"
        items = [item if isinstance(item, Choice) else item.merged() for item in self._waiting]
        self._waiting.clear()
        self._last_group.clear()
        return items

    def fail(self, error: Exception) -> None:
        """End the request, unless it is over. What is ready can still be taken."""
        if self._error is None and not self._is_finished:
            self._error = error
            self._pulling.cancel()
            self._changed.set()

    async def _pull(self) -> None:
        try:
            async for item in self._source:
                self._keep(item)
        except Exception as exc:
            self.fail(exc)
        else:
            self._is_finished = True
            self._changed.set()

    def _keep(self, item: Delta | Choice) -> None:
        if isinstance(item, Choice):
            self._num_left -= 1
            self._last_group.pop(item.index, None)
            self._waiting.append(item)
        elif len(self._waiting) >= MAX_WAITING and item.index in self._last_group:
            self._last_group[item.index].deltas.append(item)
        else:
            group = self._last_group[item.index] = _DeltaGroup([item])
            self._waiting.append(group)
        self._changed.set()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.fail(ClientGoneError())


class Exchanges:
    """All live requests of the server: how many sequences they have together, and their end when it stops."""

    def __init__(self, engine: LiveEngine | None, *, limits: Limits, usage: Usage) -> None:
        self._engine = engine
        self._limits = limits
        self._usage = usage
        self._open: set[Exchange] = set()
        self._is_ended = False

    @property
    def models(self) -> tuple[str, ...]:
        return self._engine.models if self._engine is not None else ()

    def system_fingerprint(self, model: str) -> str | None:
        return self._engine.system_fingerprint(model) if self._engine is not None else None

    @contextlib.asynccontextmanager
    async def begin(
        self, request: Request, receive: Receive, *, client: str, is_streaming: bool
    ) -> AsyncIterator[Exchange]:
        """The exchange of `request`, as a context. Raises ApiError for want of room, and once the server stops."""
        assert self._engine is not None, "a request for a model that is not served"
        if self._is_ended:
            raise _stopping_error()
        # A single request is taken whatever its size: `max_sequences` has bounded that.
        self._usage.completions.take(client, request.num_sequences, is_first_free=True)
        try:
            timeout_s = self._limits.request_timeout_s
            items = self._engine.complete(request, is_streaming=is_streaming, timeout_s=timeout_s, client=client)
            exchange = Exchange(items, receive, num_choices=request.num_choices, timeout_s=timeout_s)
            self._open.add(exchange)
            try:
                async with exchange:
                    yield exchange
            finally:
                self._open.discard(exchange)
        finally:
            self._usage.completions.give(client, request.num_sequences)

    def end_all(self) -> None:
        """End all that are open with an error, and let none begin any more."""
        self._is_ended = True
        for exchange in list(self._open):
            exchange.fail(_stopping_error())


def _stopping_error() -> ApiError:
    headers = {"retry-after": str(RETRY_AWAY_S)}
    return ApiError(503, "the server is stopping; send the request again", code="stopping", headers=headers)
