"""The app behind a real web server on a free port, in a thread: what can't be seen without sockets."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import uvicorn

from batcher.server.app import Api, make_api
from batcher.server.guard.auth import ApiKeys
from batcher.server.guard.connections import connection_class
from batcher.server.guard.limits import Limits
from batcher.server.serve import bind, loop_factory
from tests.support.scripted_engine import ScriptedEngine
from tests.support.waiting import PATIENCE_S, wait_for


@dataclass(frozen=True, slots=True)
class LiveServer:
    """A server that is running. `uvicorn.server_state` has its connections."""

    port: int
    engine: ScriptedEngine
    api: Api
    uvicorn: uvicorn.Server
    loop: asyncio.AbstractEventLoop
    #: Of the clients; they are closed before the server is stopped.
    sockets: list[socket.socket]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def num_connections(self) -> int:
        return len(self.uvicorn.server_state.connections)

    def client(self, *, key: str | None = None) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, timeout=PATIENCE_S, headers=headers)

    def connect(self, data: bytes = b"", *, receive_buffer: int | None = None) -> socket.socket:
        """A raw connection that has sent `data`."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE_S)
        sock.connect(("127.0.0.1", self.port))
        sock.sendall(data)
        self.sockets.append(sock)
        return sock


def post(path: str, body: bytes, *, length: int | None = None) -> bytes:
    """A request as it goes over the wire; `length` is what its head claims."""
    size = len(body) if length is None else length
    return b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (path.encode(), size, body)


def read_all(sock: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(65536):
            data += piece
    return data


@contextlib.contextmanager
def running(api: Api, *, limits: Limits) -> Iterator[tuple[int, uvicorn.Server, asyncio.AbstractEventLoop]]:
    """Serve the app: its port, the server and the loop of its thread."""
    [listener] = bind("127.0.0.1", 0)
    config = uvicorn.Config(
        api.app,
        http=connection_class(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    server = uvicorn.Server(config)
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve([listener])

    def run() -> None:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="live-server")
    thread.start()
    try:
        wait_for(lambda: server.started, what="the server listens")
        yield listener.getsockname()[1], server, loops[0]
    finally:
        loops[0].call_soon_threadsafe(api.exchanges.end_all)
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def live_server(
    engine: ScriptedEngine, *, limits: Limits | None = None, keys: ApiKeys | None = None
) -> Iterator[LiveServer]:
    limits = limits or Limits()
    api = make_api(engine, keys=keys, limits=limits)
    sockets: list[socket.socket] = []
    with running(api, limits=limits) as (port, server, loop):
        try:
            yield LiveServer(port, engine, api, server, loop, sockets)
        finally:
            for sock in sockets:
                sock.close()
