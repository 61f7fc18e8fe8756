"""One server behind a URL: its connections, whether it is there, and what was learned of it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx

from workers.engines.remote import dialects
from workers.engines.remote.bodies import Body
from workers.engines.remote.catalog import CONNECT_TIMEOUT_S, look, open_client, refusal, tls_context, words_of
from workers.engines.remote.failures import (
    AwayError,
    BrokenError,
    CutError,
    DeniedError,
    RemoteError,
    failure_of,
)
from workers.engines.remote.streams import MOST_BYTES
from workers.engines.remote.window import Window

logger = logging.getLogger(f"batcher.{__name__}")

#: Seconds without a byte of an answer after which the connection counts as cut, where the row has no time limit.
ANSWER_TIMEOUT_S = 1800.0
#: Seconds between two looks at a server that is away: at first, and at most.
_FIRST_LOOK_S, _MAX_LOOK_S = 0.1, 5.0
#: Seconds between two lines of the log about the same.
_LOG_INTERVAL_S = 60.0


class Server:
    """For the engine's loop, but for `url`. `model` is what it calls the model.

    `is_up`: rows may be sent. `left_out`, `refused` and `renamed` were learned from its refusals: fields that are not
    sent where nobody asks for them, fields that nobody may ask for, and fields that it calls otherwise.
    """

    def __init__(self, url: str, *, key: str, model: str, window: Window, clock: Callable[[], float]) -> None:
        self.url = url
        self.model = model
        self.window = window
        self.dialect = dialects.GENERIC
        self.counts_each = False
        self.is_up = False
        self.is_alone = False
        self.num_in_flight = self.num_live = 0
        self.pause_until = float("-inf")
        self.left_out: set[str] = set()
        self.refused: set[str] = set()
        self.renamed: dict[str, str] = {}
        self._key = key
        self._tls = tls_context(url)
        #: Each of one connection: a client of many looks at all of them for each request.
        self._clients: set[httpx.AsyncClient] = set()
        self._idle: list[httpx.AsyncClient] = []
        self._clock = clock
        self._logged_at: dict[str, float] = {}

    @property
    def is_open(self) -> bool:
        """Whether anything may be sent now."""
        return self.is_up and not self.is_alone and self._clock() >= self.pause_until

    @property
    def room(self) -> int:
        """How many more rows may be sent."""
        return self.window.size - self.num_in_flight if self.is_open else 0

    async def look(self) -> None:
        """Ask what it is and note it. Raises RemoteError, also where it has no such model."""
        with self._connection() as client:
            catalog = await look(client)
        if catalog.find(self.model) is None:
            raise catalog.missing(self.model)
        if catalog.dialect is not self.dialect:
            self.dialect = catalog.dialect
            self.counts_each = catalog.dialect.counts_each

    async def wait_until_up(self, *, is_first: bool) -> None:
        """Ask again and again until it is there. Raises ModelError for what waiting does not help against.

        What is not there when it `is_first` asked never will be; a model or a route that is gone later may come back.
        """
        self.is_up = False
        delay_s, began_at, is_told = _FIRST_LOOK_S, self._clock(), False
        while True:
            try:
                await self.look()
                break
            except RemoteError as exc:
                never = refusal(self.url, exc)
                if never is not None and (is_first or isinstance(exc, DeniedError)):
                    raise never from exc
                if is_first or self._clock() - began_at > _MAX_LOOK_S:
                    is_told = True
                    self.warn("away", f"{self.url}: it does not answer ({exc}); rows wait for it")
            await asyncio.sleep(delay_s)
            delay_s = min(_MAX_LOOK_S, delay_s * 2)
        self.is_up = True
        if is_told:
            logger.info("%s: it answers, after %.0f s", self.url, self._clock() - began_at)

    def warn(self, topic: str, message: str) -> None:
        """Log a warning, about the same topic once a minute."""
        now = time.monotonic()
        if now - self._logged_at.get(topic, float("-inf")) >= _LOG_INTERVAL_S:
            self._logged_at[topic] = now
            logger.warning("%s", message)

    def learn(self, field: str, words: str, *, is_neutral: bool) -> None:
        """Note that the server takes no such field, and say so once."""
        (self.left_out if is_neutral else self.refused).add(field)
        what = "it is left out" if is_neutral else "rows that ask for it become error rows"
        self.warn(f"field {field}", f"{self.url}: it refuses the field {field} ({words}); {what}")

    @contextmanager
    def _connection(self) -> Iterator[httpx.AsyncClient]:
        """One that is not in use."""
        if self._idle:
            client = self._idle.pop()
        else:
            client = open_client(self.url, self._key, tls=self._tls)
            self._clients.add(client)
        try:
            yield client
        finally:
            self._idle.append(client)

    @asynccontextmanager
    async def _open(self, body: Body, timeout_s: float | None) -> AsyncIterator[httpx.Response]:
        wait_s = max(ANSWER_TIMEOUT_S, timeout_s or 0.0)
        timeout = httpx.Timeout(wait_s, connect=CONNECT_TIMEOUT_S, pool=None)
        headers = {"content-type": "application/json"}
        try:
            with self._connection() as client:
                request = client.stream("POST", body.route, content=body.content, headers=headers, timeout=timeout)
                async with request as response:
                    if not response.is_success:
                        found = await self._read(response)
                        raise failure_of(response.status_code, response.headers, found, sent=body.names)
                    yield response
        except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
            raise AwayError(words_of(exc)) from exc
        except httpx.TransportError as exc:
            raise CutError(words_of(exc)) from exc
        except httpx.HTTPError as exc:
            raise BrokenError(words_of(exc)) from exc

    async def ask(self, body: Body, *, timeout_s: float | None) -> bytes:
        """Send a request and read its answer. Raises RemoteError."""
        async with self._open(body, timeout_s) as response:
            return await self._read(response)

    @asynccontextmanager
    async def stream(self, body: Body, *, timeout_s: float | None) -> AsyncIterator[AsyncIterator[bytes] | bytes]:
        """Send a request and read its answer as it comes; as a whole from a server that does not stream.

        Raises RemoteError.
        """
        async with self._open(body, timeout_s) as response:
            if response.headers.get("content-type", "").startswith("text/event-stream"):
                yield response.aiter_bytes()
            else:
                yield await self._read(response)

    async def _read(self, response: httpx.Response) -> bytes:
        pieces, num_bytes = [], 0
        async for piece in response.aiter_bytes():
            num_bytes += len(piece)
            if num_bytes > MOST_BYTES:
                raise BrokenError(f"an answer of more than {MOST_BYTES:,} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()
