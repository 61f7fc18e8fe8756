"""The server's process: sockets, engines, broker, app, and the order in which they come and go.

Start:
1. the sockets are bound, so that a taken port is reported before a model of gigabytes is loaded;
2. the broker, which the engines need;
3. the process of the engines. Requests are answered at once, by 503 until the models are loaded.

Shutdown, in the reverse order:
1. no new connections. Live requests may finish within the grace period; then `Exchanges.end_all` ends them with an
   error, and what is still connected a second later is aborted. Before the engines, so that they can finish;
2. the keeper of batches, which must not enqueue for a broker that is gone;
3. the engines, which save the rows that they have and give their shards back by the broker;
4. the broker.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

from batcher.broker.client import connect
from batcher.broker.embedded import embedded_broker
from batcher.errors import BatcherError, BrokerBusyError, BrokerError, InputError
from batcher.heap import GIVE_BACK_INTERVAL_S, give_memory_back
from batcher.jobdir.sending import Send
from batcher.live import LiveEngine
from batcher.server.app import Api, make_api
from batcher.server.batches.keeper import BatchKeeper
from batcher.server.batches.service import Batches
from batcher.server.batches.states import BatchReader
from batcher.server.batches.uploads import FileStore
from batcher.server.census import CensusTaker
from batcher.server.guard.auth import ApiKeys
from batcher.server.guard.connections import connection_class
from batcher.server.guard.limits import Limits
from batcher.server.guard.log_budget import bounded_log
from batcher.server.guard.pool import connections_for, raise_open_files_limit
from batcher.server.routes.batches import batches_router
from batcher.server.routes.files import files_router
from batcher.submission.readers.bounds import MAX_LINE_BYTES, Bounds, UnpackLimits
from batcher.thoughts import model_reasons

if TYPE_CHECKING:
    from fastapi import FastAPI

    from workers.process.events import WorkerConfig

logger = logging.getLogger(__name__)

#: Seconds in which clients may read the error that ended their streams.
_FLUSH_S = 1.0
#: Seconds between two checks whether the models are loaded.
_READY_INTERVAL_S = 0.05

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What to serve and where. `engines` None: files and batches only, worked by others at `broker_url`.

    `broker_url` None: an embedded broker. `is_working`: the engines also take shards. `keys` None: no key is asked for.
    """

    host: str
    port: int
    jobs_root: Path
    engines: "WorkerConfig | None"
    broker_url: str | None
    is_working: bool
    keys: ApiKeys | None
    grace_s: float
    ignores_unknown: bool = False
    cors_origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)


def serve(config: ServerConfig, *, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `on_ready` gets the server's URL once it listens and has its models.

    Blocks; for the main thread. Raises BatcherError where it can't begin, and where its engines can't go on.
    """
    room = connections_for(raise_open_files_limit())
    limits = replace(config.limits, max_connections=min(config.limits.max_connections, room))
    config = replace(config, limits=limits)
    with contextlib.ExitStack() as stack:
        stack.enter_context(bounded_log())
        sockets = [stack.enter_context(sock) for sock in bind(config.host, config.port)]
        stack.enter_context(_signals_restored())
        broker_url = _enter_broker(config, stack)
        runner = asyncio.Runner(loop_factory=loop_factory())
        stack.enter_context(runner).run(_Server(config, sockets, broker_url, on_ready).run())


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen at each address of `host`. Port 0: a free one, the same for all. Raises InputError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise InputError(f"--host {host}: no such address: {exc}") from exc
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = sockets[0].getsockname()[1] if len(sockets) > 1 else port
            sock.bind((address[0], taken, *address[2:]))
            sock.set_inheritable(False)
    except OSError as exc:
        for sock in sockets:
            sock.close()
        raise InputError(
            f"cannot listen at {host}:{port}: {exc.strerror or exc}; give another --port (0: any that is free)"
        ) from exc
    return sockets


def base_url(host: str, port: int) -> str:
    """How clients of this machine, or of the network, call the server."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _enter_broker(config: ServerConfig, stack: contextlib.ExitStack) -> str:
    """The URL of the broker, which lives as long as `stack`."""
    if config.broker_url is not None:
        connect(config.broker_url).close()
        return config.broker_url
    try:
        return stack.enter_context(embedded_broker(config.jobs_root))
    except BrokerBusyError as exc:
        raise BrokerError(
            f"{config.jobs_root}: another server of this machine runs the embedded broker of this jobs folder ({exc}); "
            "to share the folder give both --broker URL, else give this one another --jobs-dir"
        ) from exc


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop, where it is installed: it takes less time for each of many small writes."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


class _Uvicorn(uvicorn.Server):
    """uvicorn, but signals are ours: it would raise them again at its end, in the middle of our cleaning up."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Server:
    """One run of the server, inside the event loop."""

    def __init__(
        self, config: ServerConfig, sockets: list[socket.socket], broker_url: str, on_ready: Callable[[str], None]
    ) -> None:
        self._config = config
        self._sockets = sockets
        self._broker_url = broker_url
        self._on_ready = on_ready
        self._url = base_url(config.host, sockets[0].getsockname()[1])
        self._failure: BatcherError | None = None
        self._num_signals = 0
        self._api: Api | None = None
        self._uvicorn: uvicorn.Server | None = None
        self._timers: list[asyncio.TimerHandle] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            async with self._engines() as engine:
                await self._serve(engine)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
                # What is left, ending the broker, takes a moment and should not be cut short.
                signal.signal(number, signal.SIG_IGN)
        if self._failure is not None:
            raise self._failure

    async def _serve(self, engine: LiveEngine | None) -> None:
        config = self._config
        models = engine.models if engine is not None else ()
        # Workers of our own broker are ours, so a batch for another model would wait for ever.
        known = frozenset(models) if config.broker_url is None else None
        files = FileStore(config.jobs_root)
        reader = BatchReader(config.jobs_root)
        keeper = BatchKeeper(
            reader,
            files,
            send=_sender(self._broker_url),
            known_models=lambda: known,
            models_reason=known is None or _reasons(config),
            bounds=_bounds(config.limits),
        )
        batches = Batches(config.jobs_root, files, reader=reader, wake=keeper.wake)
        self._api = make_api(
            engine,
            keys=config.keys,
            limits=config.limits,
            ignores_unknown=config.ignores_unknown,
            census=CensusTaker(config.jobs_root),
            cors_origins=config.cors_origins,
            routers=(files_router(files, batches, max_bytes=config.limits.max_file_bytes), batches_router(batches)),
        )
        self._uvicorn = _Uvicorn(_uvicorn_config(self._api.app, config))
        # A signal, or the engines' failure, may have come before there was something to stop.
        self._uvicorn.should_exit = self._failure is not None or self._num_signals > 0
        with keeper:
            tasks = [
                asyncio.create_task(self._announce(self._uvicorn, engine)),
                asyncio.create_task(_give_memory_back()),
            ]
            await self._uvicorn.serve(self._sockets)
            for task in tasks:
                task.cancel()
        for timer in self._timers:
            timer.cancel()

    @contextlib.asynccontextmanager
    async def _engines(self) -> AsyncIterator[LiveEngine | None]:
        if self._config.engines is None:
            yield None
            return
        from workers.live.server_end import open_engines

        config = replace(self._config.engines, broker_url=self._broker_url)
        async with open_engines(
            config,
            is_working=self._config.is_working,
            # How the models were set up: their own process logs it.
            on_loaded=lambda message: None,
            on_failure=self._on_failure,
            on_drained=self._on_drained,
            is_urgent=lambda: self._num_signals > 1,
        ) as engine:
            yield engine

    async def _announce(self, server: uvicorn.Server, engine: LiveEngine | None) -> None:
        """Say that the server is ready, once it is."""
        while not (server.started and (engine is None or engine.is_ready)):
            await asyncio.sleep(_READY_INTERVAL_S)
        self._on_ready(self._url)

    def _on_failure(self, failure: BatcherError) -> None:
        self._failure = failure
        self._stop()

    def _on_drained(self) -> None:
        grace_s = self._config.grace_s
        logger.info("drained: no shard is left; requests may finish within %g s", grace_s)
        self._stop(grace_s)

    def _on_signal(self) -> None:
        self._num_signals += 1
        if self._num_signals == 1:
            grace_s = self._config.grace_s
            logger.info("stopping: requests may finish within %g s; a second signal ends them now", grace_s)
            self._stop(grace_s)
        else:
            self._stop()

    def _stop(self, grace_s: float = 0.0) -> None:
        """Take no more requests, and end those that are open `grace_s` from now."""
        if self._uvicorn is None:
            return
        self._uvicorn.should_exit = True
        loop = asyncio.get_running_loop()
        self._timers += [
            loop.call_later(grace_s, self._end_exchanges),
            loop.call_later(grace_s + _FLUSH_S, self._abort),
        ]

    def _end_exchanges(self) -> None:
        if self._api is not None:
            self._api.exchanges.end_all()

    def _abort(self) -> None:
        """Abort the connections that are left: of uploads, and of clients that read nothing."""
        assert self._uvicorn is not None
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()


async def _give_memory_back() -> None:
    """Now and then: large bodies and inputs come and go."""
    while True:
        await asyncio.sleep(GIVE_BACK_INTERVAL_S)
        await asyncio.to_thread(give_memory_back)


def _reasons(config: ServerConfig) -> bool:
    """Whether one of the models that are served reasons."""
    if config.engines is None:
        return False
    templates = dict(config.engines.engine.chat_templates)
    return any(model_reasons(Path(path), template=templates.get(name)) for name, path in config.engines.models)


def _bounds(limits: Limits) -> Bounds:
    """Those of the inputs of batches. A line may have what a live request may."""
    unpack = UnpackLimits(limits.max_unpacked_bytes, limits.max_ratio)
    return Bounds(limits=unpack, max_line_bytes=min(limits.max_body_bytes, MAX_LINE_BYTES))


def _sender(broker_url: str) -> Send:
    from batcher.broker.sender import Sender

    return Sender(broker_url)


def _uvicorn_config(app: "FastAPI", config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=connection_class(config.limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        # The system takes on so many before they are counted.
        backlog=min(2048, config.limits.max_connections // 4),
        server_header=False,
        # Who is at the other end is of no use here, and behind no proxy anyone could claim to be somebody else.
        proxy_headers=False,
        # Seconds, whole ones. The last resort: `_Server` has ended everything before.
        timeout_graceful_shutdown=int(config.grace_s + _FLUSH_S) + 5,
    )
