"""The engine behind a URL: what waits goes to whichever server has room, and what fails there is judged.

One thread runs an event loop with a task for each request under way; callers only add to its queue. A row is answered,
becomes an error of its own, or waits for a better time: nothing that happens to a server loses it or is its fault
(`failures`). Only a row that is cut off again and again, at last with nothing else under way at its server, is taken
for the cause.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any

from batcher.errors import EngineError, ModelError
from batcher.rounds import Rounds
from batcher.types import EngineStats, ErrorCode, RemoteServers, RowError
from workers.engines.base import (
    ALL_ABILITIES,
    Ability,
    OnDelta,
    OnStart,
    SequenceRequest,
    SequenceResult,
    Sink,
    Ticket,
    find_missing,
    ignore_start,
)
from workers.engines.remote.bodies import find_dropped
from workers.engines.remote.failures import (
    AwayError,
    BrokenError,
    BusyError,
    CutError,
    DeniedError,
    MissingError,
    RefusedError,
    RemoteError,
)
from workers.engines.remote.flight import MOST_SHARED, Call, Flight, Row
from workers.engines.remote.server import Server
from workers.engines.remote.window import MOST, Window

logger = logging.getLogger(f"batcher.{__name__}")

#: Answers of a server that failed (500), or made no sense, before that is the row's error.
MAX_BROKEN = 8
#: Connections that ended in the middle of a row: after so many it is sent alone, and after so many more it is at fault.
MAX_CUTS = 3
MAX_CUTS_ALONE = 3
#: Seconds before a row is sent again; doubles with every further time, to the most.
_FIRST_DELAY_S, _MAX_DELAY_S = 0.25, 30.0
#: Seconds between two signs that the loop lives.
_PULSE_S = 1.0


class RemoteEngine:
    """A model of servers. `served_name` is what they call it. `num_slots`: how many prompts are in flight at each,
    fixed; None: as many as pay.
    """

    def __init__(
        self,
        name: str,
        served_name: str,
        servers: RemoteServers,
        *,
        num_slots: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.system_fingerprint: str | None = None
        self.num_slots = (num_slots or MOST) * len(servers.urls)
        self.num_steps = 0
        #: Nothing is computed here, so nothing takes long.
        self.longest_step_s = 0.0
        self.failure: EngineError | None = None
        self.servers: list[Server] = []
        self._served_name = served_name
        self._where = servers
        self._fixed_size = num_slots
        self._clock = clock
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls: set[Call] = set()
        self._live: Rounds[Row] = Rounds()
        self._num_live_waiting = 0
        self._rows: deque[Row] = deque()
        #: Rows that were cut off often, and are sent with nothing else under way.
        self._suspects: deque[Row] = deque()
        #: Rows that wait for their next try.
        self._num_delayed = 0
        self._num_prompt_tokens = self._num_cached_tokens = self._num_completion_tokens = 0

    # -- any thread -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Wait until one of the servers answers and has the model. Raises ModelError where one never will."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    @property
    def abilities(self) -> Ability:
        """What all of its servers can."""
        found = ALL_ABILITIES & ~(Ability.DEDUPLICATION | Ability.PREFIX_SHARING | Ability.TOOLS)
        for server in self.servers:
            found &= server.dialect.abilities
        return found

    @property
    def is_busy(self) -> bool:
        """Whether anything is open: also while it waits for a server, as the loop shows that it lives."""
        return bool(self._calls)

    def submit(
        self,
        requests: Iterable[SequenceRequest],
        sink: Sink,
        *,
        on_start: OnStart = ignore_start,
        on_delta: OnDelta | None = None,
        is_alone: bool = False,
    ) -> Ticket:
        """Queue requests. `is_alone` changes nothing: they are computed in no process of ours."""
        call = Call(sink, on_start, on_delta, Ticket(self._on_cancel))
        rows, abilities = [], self.abilities
        for request in requests:
            self._check_alive()
            if (missing := find_missing(request, abilities)) is not None:
                sink(SequenceResult(request.key, error=missing))
            else:
                rows.append(Row(request, call))
        with self._lock:
            self._check_alive()
            if rows:
                call.num_open = len(rows)
                self._calls.add(call)
                self._loop.call_soon_threadsafe(self._add, rows)
        return call.ticket

    def stats(self) -> EngineStats:
        """The engine at about this moment. It knows nothing of the cells of its servers."""
        num_running = sum(server.num_in_flight for server in self.servers)
        num_open = sum(call.num_open for call in tuple(self._calls))
        return EngineStats(
            num_slots=self.num_slots,
            num_running=num_running,
            num_waiting=max(0, num_open - num_running),
            num_live_running=sum(server.num_live for server in self.servers),
            num_live_waiting=self._num_live_waiting,
            num_cells=0,
            num_cells_used=0,
            num_steps=self.num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_completion_tokens=self._num_completion_tokens,
            num_preempted=0,
            longest_step_s=self.longest_step_s,
        )

    def close(self) -> None:
        """Hang up, and end the thread. What is unfinished gets an EngineError."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._fail, EngineError(f"the engine of {self.name} was closed"))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        else:
            self._loop.close()

    def _check_alive(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _on_cancel(self) -> None:
        with self._lock:
            if self.failure is None:
                self._loop.call_soon_threadsafe(self._drop_cancelled)

    # -- the loop's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._end())
            self._loop.close()

    async def _end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self.servers:
            await server.close()

    async def _open(self) -> None:
        """Return when one server is up; the others are waited for beside it."""
        self._start(self._beat())
        self.servers = [self._make_server(url) for url in self._where.urls]
        watches = {self._start(server.wait_until_up(is_first=True)) for server in self.servers}
        done, _ = await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        for watch in done:
            watch.result()
        for watch in watches - done:
            watch.add_done_callback(self._note_watched)

    def _make_server(self, url: str) -> Server:
        window = Window(fixed=self._fixed_size, clock=self._clock)
        return Server(url, key=self._where.key, model=self._served_name, window=window, clock=self._clock)

    def _start(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _note_flown(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._fail(EngineError(f"the engine of {self.name} failed: {exc!r}"))

    async def _beat(self) -> None:
        while True:
            self.num_steps += 1
            self._pump()
            await asyncio.sleep(_PULSE_S)

    def _add(self, rows: list[Row]) -> None:
        for row in rows:
            self._put(row)
        self._pump()

    def _put(self, row: Row, *, is_first: bool = False) -> None:
        if row.request.is_live:
            self._live.put(row.request.client, row)
            self._num_live_waiting += 1
        elif is_first:
            self._rows.appendleft(row)
        else:
            self._rows.append(row)

    def _drop_cancelled(self) -> None:
        for call in [call for call in tuple(self._calls) if call.ticket.is_cancelled]:
            self._calls.discard(call)
            for flight in call.flights:
                flight.cancel()
        self._rows = deque(row for row in self._rows if not row.call.ticket.is_cancelled)
        self._suspects = deque(row for row in self._suspects if not row.call.ticket.is_cancelled)
        self._pump()

    def _pump(self) -> None:
        """Send what there is room for: live requests first, then rows that must be alone, then the others."""
        if self.failure is not None:
            return
        while self._live and (server := self._roomiest(is_live=True)) is not None:
            row = self._live.pop()
            self._num_live_waiting -= 1
            if not row.call.ticket.is_cancelled:
                self._send([row], server)
        if self._suspects and (server := next((each for each in self.servers if each.is_up), None)) is not None:
            # It takes nothing more until what is under way there has ended.
            if not server.num_in_flight and not server.is_alone:
                server.is_alone = True
                self._send([self._suspects.popleft()], server)
            return
        while self._rows and (server := self._roomiest(is_live=False)) is not None:
            rows = list(self._take(server))
            if rows:
                self._send(rows, server)

    def _roomiest(self, *, is_live: bool) -> Server | None:
        """The server with most room. Live requests go beyond the window where rows fill it, as many again."""
        rooms = [
            (server.room + (server.num_in_flight - server.num_live) * is_live, server)
            for server in self.servers
            if server.is_open
        ]
        room, server = max(rooms, key=lambda pair: pair[0], default=(0, None))
        return server if room > 0 else None

    def _take(self, server: Server) -> Iterator[Row]:
        """The next row, and with it those that can go out in the same request."""
        first = self._next_row(server)
        if first is None:
            return
        yield first
        if not (server.counts_each and first.can_share):
            return
        # Some requests at a time, however few prompts are in flight: one that is slow holds up those beside it.
        for _ in range(min(MOST_SHARED, server.window.size // 4, server.room) - 1):
            if not self._rows or not first.fits(self._rows[0]):
                return
            row = self._next_row(server)
            if row is not None:
                yield row

    def _next_row(self, server: Server) -> Row | None:
        row = self._rows.popleft()
        return None if row.call.ticket.is_cancelled or self._refuse_dropped(row, server) else row

    def _refuse_dropped(self, row: Row, server: Server) -> bool:
        error = find_dropped(row.request, server.dialect, server.refused, where=server.url)
        if error is not None:
            self._finish(row, SequenceResult(row.request.key, error=error))
        return error is not None

    def _send(self, rows: list[Row], server: Server) -> None:
        if rows[0].request.is_live and self._refuse_dropped(rows[0], server):
            return
        for row in rows:
            row.begin()
        server.num_in_flight += len(rows)
        server.num_live += rows[0].request.is_live
        task = self._start(self._fly(Flight(rows, server, self._clock())))
        task.add_done_callback(self._note_flown)
        for call in {row.call for row in rows}:
            # Of several callers' rows none is hung up for one of them.
            if len({row.call for row in rows}) == 1:
                call.flights.add(task)
                task.add_done_callback(call.flights.discard)

    async def _fly(self, flight: Flight) -> None:
        server = flight.server
        try:
            results = await flight.answer()
        except RemoteError as exc:
            self._land(flight)
            await self._judge(flight, exc)
        except BaseException:
            self._land(flight)
            raise
        else:
            self._land(flight)
            if results is None:
                # It takes arrays, and does not say what each of them took.
                server.counts_each = False
                self._again(flight, apart=True)
            else:
                self._accept(flight, results)
        self._pump()

    def _land(self, flight: Flight) -> None:
        server = flight.server
        server.num_in_flight -= len(flight.rows)
        server.num_live -= flight.rows[0].request.is_live
        server.is_alone = False

    def _accept(self, flight: Flight, results: list[SequenceResult]) -> None:
        self.system_fingerprint = flight.fingerprint or self.system_fingerprint
        window = flight.server.window
        for row, result in zip(flight.rows, results, strict=True):
            assert result.choice is not None
            usage = result.choice.usage
            self._num_prompt_tokens += usage.prompt_tokens - usage.cached_tokens
            self._num_cached_tokens += usage.cached_tokens
            self._num_completion_tokens += usage.completion_tokens
            window.note_answer(usage.total_tokens, sent_at=flight.sent_at, is_full=bool(self._rows))
            self._finish(row, result)

    def _finish(self, row: Row, result: SequenceResult) -> None:
        self.num_steps += 1
        call = row.call
        call.num_open -= 1
        if not call.num_open:
            self._calls.discard(call)
        if not call.ticket.is_cancelled:
            call.sink(result)

    # -- what went wrong ------------------------------------------------------------------------------------------

    async def _judge(self, flight: Flight, exc: RemoteError) -> None:
        """What becomes of the rows of a request that has no answer. Who is to blame for what: see `failures`."""
        server = flight.server
        match exc:
            case BusyError():
                server.window.note_busy(sent_at=flight.sent_at)
                server.warn("busy", f"{server.url}: {exc}; less is sent")
                if exc.retry_after_s is not None:
                    server.pause_until = max(server.pause_until, self._clock() + exc.retry_after_s)
                    self._loop.call_later(exc.retry_after_s, self._pump)
                for row in flight.rows:
                    row.num_busy += 1
                    self._delay(row, row.num_busy)
            case AwayError():
                self._again(flight)
                self._watch(server)
            case _ if len(flight.rows) > 1:
                self._again(flight, apart=True)
                if isinstance(exc, CutError):
                    self._watch(server)
            case CutError():
                self._note_cut(flight.rows[0], server, exc)
                self._watch(server)
            case BrokenError():
                self._note_broken(flight.rows[0], server, exc)
            case DeniedError() | MissingError():
                await self._look_why(flight, exc)
            case RefusedError():
                self._note_refused(flight, exc)

    def _again(self, flight: Flight, *, apart: bool = False) -> None:
        """Send the rows once more, before all others; `apart`: each for itself."""
        for row in reversed(flight.rows):
            row.goes_alone |= apart
            self._put(row, is_first=True)

    def _delay(self, row: Row, num_times: int) -> None:
        self._num_delayed += 1
        self._loop.call_later(min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** min(num_times - 1, 10)), self._end_delay, row)

    def _end_delay(self, row: Row) -> None:
        self._num_delayed -= 1
        self._put(row, is_first=True)
        self._pump()

    def _watch(self, server: Server) -> None:
        """Send nothing more there until it answers a look."""
        if server.is_up:
            server.is_up = False
            self._start(server.wait_until_up(is_first=False)).add_done_callback(self._note_watched)

    def _note_watched(self, watch: "asyncio.Task[None]") -> None:
        if watch.cancelled():
            return
        if (exc := watch.exception()) is not None:
            self._fail(EngineError(str(exc) if isinstance(exc, ModelError) else repr(exc)))
        self._pump()

    def _note_cut(self, row: Row, server: Server, exc: RemoteError) -> None:
        row.num_cuts += 1
        if row.num_cuts < MAX_CUTS:
            self._put(row, is_first=True)
        elif row.num_cuts < MAX_CUTS + MAX_CUTS_ALONE:
            self._suspects.append(row)
        else:
            self._fail_row(
                row,
                f"{server.url}: the connection ended {row.num_cuts} times in the middle of this row, the last "
                f"{MAX_CUTS_ALONE} with nothing else under way ({exc})",
            )

    def _note_broken(self, row: Row, server: Server, exc: RemoteError) -> None:
        row.num_broken += 1
        if row.num_broken < MAX_BROKEN:
            self._delay(row, row.num_broken)
        else:
            self._fail_row(row, f"{server.url}: {exc} ({row.num_broken} times)")

    async def _look_why(self, flight: Flight, exc: RemoteError) -> None:
        """Whether the server as a whole denies us, or lacks the model: then rows wait; else it is this row."""
        server, row = flight.server, flight.rows[0]
        try:
            await server.look()
        except RemoteError:
            self._put(row, is_first=True)
            self._watch(server)
            return
        code = ErrorCode.MODEL_NOT_FOUND if isinstance(exc, MissingError) else ErrorCode.ENGINE_ERROR
        self._finish(row, SequenceResult(row.request.key, error=RowError(code, f"{server.url}: {exc}")))

    def _note_refused(self, flight: Flight, exc: RefusedError) -> None:
        server, row, body = flight.server, flight.rows[0], flight.body
        assert body is not None
        if exc.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED and "max_tokens" in body.neutral:
            # Prompt and length together are too long, and the length is only a bound: the server ends it instead.
            row.leaves_length = True
            self._put(row, is_first=True)
            return
        if exc.field == "max_tokens" and exc.is_unknown and "max_tokens" not in server.renamed:
            server.renamed["max_tokens"] = "max_completion_tokens"
            self._put(row, is_first=True)
            return
        if exc.field is not None and exc.field in body.neutral:
            server.learn(exc.field, str(exc), is_neutral=True)
            self._put(row, is_first=True)
            return
        if exc.field is not None and exc.is_unknown:
            server.learn(exc.field, str(exc), is_neutral=False)
        self._finish(row, SequenceResult(row.request.key, error=exc.error))

    def _fail_row(self, row: Row, message: str) -> None:
        self._finish(row, SequenceResult(row.request.key, error=RowError(ErrorCode.ENGINE_ERROR, message)))

    def _fail(self, exc: EngineError) -> None:
        """End all that is open; nothing more is taken."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = exc
            calls = [call for call in self._calls if not call.ticket.is_cancelled]
            self._calls.clear()
        for call in calls:
            for flight in list(call.flights):
                flight.cancel()
            call.sink(exc)
