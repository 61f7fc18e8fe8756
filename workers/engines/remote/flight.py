"""What is under way: callers, their rows, and one request on its way to a server and back."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from batcher.types import Choice, ErrorCode, RowError
from workers.engines.base import OnDelta, OnStart, SequenceRequest, SequenceResult, Sink, Ticket
from workers.engines.remote.answers import choices_of, parse_answer
from workers.engines.remote.bodies import Body, build_body, can_share
from workers.engines.remote.constraints import check_constraint
from workers.engines.remote.failures import BrokenError, CutError, RefusedError
from workers.engines.remote.server import Server
from workers.engines.remote.streams import StreamReader, read_events

#: Prompts that go out in one request, where a server counts the tokens of each.
MOST_SHARED = 8


@dataclass(slots=True, eq=False)
class Call:
    """One `submit`: who hears of its rows, and how many are open. `flights` are those under way."""

    sink: Sink
    on_start: OnStart
    on_delta: OnDelta | None
    ticket: Ticket
    num_open: int = 0
    flights: "set[asyncio.Task[None]]" = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Row:
    """A request that waits or is under way, and what happened to it. Counts are of tries.

    `goes_alone` in its body: with others it failed. With `leaves_length` the server ends it where the context does.
    """

    request: SequenceRequest
    call: Call
    has_begun: bool = False
    num_busy: int = 0
    num_broken: int = 0
    num_cuts: int = 0
    goes_alone: bool = False
    leaves_length: bool = False

    def begin(self) -> None:
        """Tell its caller that it is sent, once."""
        if not self.has_begun:
            self.has_begun = True
            self.call.on_start(self.request)

    def fits(self, other: "Row") -> bool:
        """Whether the two can go out in one request."""
        mine, others = self.request, other.request
        return (
            not other.goes_alone
            and can_share(others)
            and other.call.on_delta is None
            and (mine.params, mine.timeout_s) == (others.params, others.timeout_s)
        )

    @property
    def can_share(self) -> bool:
        return not self.goes_alone and self.call.on_delta is None and can_share(self.request)


@dataclass(slots=True, eq=False)
class Flight:
    """A request for rows on its way to a server. `answer` sends it and gives a result for each."""

    rows: Sequence[Row]
    server: Server
    sent_at: float
    body: Body | None = None
    fingerprint: str | None = None

    async def answer(self) -> list[SequenceResult] | None:
        """A result for each row; None where the server does not say which tokens are whose. Raises RemoteError."""
        first = self.rows[0]
        self.body = build_body(
            [row.request for row in self.rows],
            model=self.server.model,
            dialect=self.server.dialect,
            left_out=self.server.left_out | ({"max_tokens"} if first.leaves_length else set()),
            renamed=self.server.renamed,
            is_streaming=first.call.on_delta is not None,
        )
        timeout_s = first.request.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                choices = await self._choices(self.body, timeout_s)
        except TimeoutError as exc:
            raise RefusedError(
                RowError(ErrorCode.TIMEOUT, f"not complete {timeout_s:g} s after it was sent to {self.server.url}")
            ) from exc
        if choices is None:
            return None
        for row, choice in zip(self.rows, choices, strict=True):
            check_constraint(row.request, choice)
        return [SequenceResult(row.request.key, choice) for row, choice in zip(self.rows, choices, strict=True)]

    async def _choices(self, body: Body, timeout_s: float | None) -> list[Choice] | None:
        began_at = time.monotonic()
        on_delta = self.rows[0].call.on_delta
        if on_delta is not None:
            return [await self._read_stream(body, on_delta, timeout_s, began_at=began_at)]
        answer = parse_answer(await self.server.ask(body, timeout_s=timeout_s))
        self.fingerprint = answer.fingerprint()
        latency_ms = (time.monotonic() - began_at) * 1e3
        return choices_of(answer, [row.request for row in self.rows], latency_ms=latency_ms)

    async def _read_stream(self, body: Body, on_delta: OnDelta, timeout_s: float | None, *, began_at: float) -> Choice:
        reader = StreamReader(self.rows[0].request, on_delta)
        try:
            async with self.server.stream(body, timeout_s=timeout_s) as found:
                if isinstance(found, bytes):
                    return reader.read_whole(found, began_at=began_at)
                async with aclosing(read_events(found)) as events:
                    return await reader.read(events, began_at=began_at)
        except (CutError, BrokenError) as exc:
            if not reader.has_told:
                raise
            # Another try would give another text.
            message = f"{self.server.url}: the answer broke off in the middle ({exc}); send it again"
            raise RefusedError(RowError(ErrorCode.ENGINE_ERROR, message)) from exc
        finally:
            self.fingerprint = reader.fingerprint
