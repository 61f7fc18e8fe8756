"""A proxy between an engine and its server that answers a share of the requests itself: badly."""

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator

from tests.support.openai_server import read_requests

#: What is answered instead, with equal chances. None: the connection ends.
FAULTS = {
    "429": b"HTTP/1.1 429 X\r\nretry-after: 0\r\ncontent-length: 2\r\n\r\n{}",
    "500": b"HTTP/1.1 500 X\r\ncontent-length: 4\r\n\r\nboom",
    "cut": None,
}


class FaultProxy:
    """Passes requests on to `upstream`, a port of this machine, which may change. `share` of the completions get a
    fault, by turns of `seed`; half of the cut ones are computed first. `num_faults` counts them by kind.
    """

    def __init__(self, upstream: int, *, share: float, seed: int) -> None:
        self.upstream = upstream
        self.num_faults: Counter[str] = Counter()
        self.num_passed = 0
        self.port = 0
        self._share = share
        self._random = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @contextlib.contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        """Listen, in a thread; afterwards all connections are gone."""
        is_ready = threading.Event()
        ending: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

        async def serve() -> None:
            end = asyncio.Event()
            ending.append((asyncio.get_running_loop(), end))
            server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            is_ready.set()
            await end.wait()
            server.close()
            for writer in list(self._writers):
                writer.transport.abort()

        thread = threading.Thread(target=lambda: asyncio.run(serve()), name="fault-proxy")
        thread.start()
        is_ready.wait()
        try:
            yield self
        finally:
            loop, end = ending[0]
            loop.call_soon_threadsafe(end.set)
            thread.join()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            async for request in read_requests(reader):
                fault = self._choose_fault() if request.method == "POST" else None
                if fault is not None:
                    self.num_faults[fault] += 1
                answer = FAULTS[fault] if fault is not None else None
                if fault is None or (fault == "cut" and self._random.random() < 0.5):
                    passed = await self._pass_on(request.raw)
                    answer = passed if fault is None else None
                if answer is None:
                    break
                self.num_passed += fault is None
                writer.write(answer)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # as an end of the server: so ends the connection
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    def _choose_fault(self) -> str | None:
        return self._random.choice(list(FAULTS)) if self._random.random() < self._share else None

    async def _pass_on(self, raw: bytes) -> bytes:
        """The whole answer of the server. Raises OSError."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        try:
            head, end, body = raw.partition(b"\r\n")
            writer.write(head + end + b"connection: close\r\n" + body)
            answer = await reader.read(-1)
            if not answer:
                raise ConnectionResetError
            return answer.replace(b"\r\nconnection: close", b"", 1)
        finally:
            writer.transport.abort()
