"""Engines for live requests in a process of their own: the server's end of the channel, and its supervisor.

The supervisor runs in a thread, the channel in the event loop. When the process dies, the requests that it had fail,
and the supervisor starts another; until that one has loaded its models, there is no engine.
"""

import asyncio
import contextlib
import itertools
import logging
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

from batcher.errors import BatcherError
from batcher.jobdir.heartbeats import sweep_heartbeats
from batcher.jobdir.scope import scope_of
from batcher.live import EngineAwayError, LiveRequestError
from batcher.openai.answers import error_param
from batcher.types import Choice, Delta, EngineStats, ErrorCode, Request
from workers.live.frames import (
    Answer,
    AskStats,
    Cancel,
    Failed,
    Finished,
    Gained,
    Hello,
    Question,
    Stats,
    Submit,
    decode_answer,
    encode_question,
)
from workers.local import TICK_S
from workers.process.events import WorkerConfig
from workers.process.supervisor import Supervisor, stop_all
from workers.queue.sweeper import Sweeper, root_sweeper

logger = logging.getLogger(f"batcher.{__name__}")

#: Bytes of a frame at most; one holds a whole text, or what a single step has added to it. The log-probabilities of a
#: prompt of 131,072 tokens take some 40 MB.
_MAX_FRAME_BYTES = 512 << 20

#: Seconds. An engine's process that does not say how it is for so long counts as away.
_STATS_TIMEOUT_S = 5.0

_AWAY = "the model is being loaded; send the request again in a while"
_DIED = "the engine stopped while it worked on the request, and is started again; send the request again in a while"


class Channel:
    """The server's end of the socket to one process. For the event loop's thread.

    Each question has a queue for its answers; None in it says that the process is gone.
    """

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._inboxes: dict[int, asyncio.Queue[Answer | None]] = {}
        #: By model; None until the process has said them, which it does first.
        self.system_fingerprints: Mapping[str, str | None] | None = None

    def ask(self, question: Question, inbox: asyncio.Queue[Answer | None]) -> None:
        """Send a question, whose answers go into `inbox` until `forget`. Does not wait."""
        self._inboxes[question.number] = inbox
        self._writer.write(encode_question(question))

    def forget(self, number: int) -> None:
        self._inboxes.pop(number, None)

    def cancel(self, number: int) -> None:
        """Tell the process that nobody waits for a request any more."""
        if not self._writer.is_closing():
            self._writer.write(encode_question(Cancel(number)))

    async def receive(self, reader: asyncio.StreamReader) -> None:
        """Hand out answers until the process is gone."""
        try:
            while line := await reader.readline():
                answer = decode_answer(line)
                if isinstance(answer, Hello):
                    self.system_fingerprints = answer.system_fingerprints
                inbox = self._inboxes.get(answer.number)
                if inbox is not None:
                    inbox.put_nowait(answer)
        except OSError:
            pass  # as an end: the process died with something unread
        finally:
            self._writer.close()
            for inbox in self._inboxes.values():
                inbox.put_nowait(None)


class ProcessEngines:
    """`batcher.live.LiveEngine` over a process. For the event loop's thread, but for `open_channel`."""

    def __init__(self, models: tuple[str, ...], loop: asyncio.AbstractEventLoop) -> None:
        self.models = models
        self._is_loaded = False
        self._loop = loop
        self._numbers = itertools.count()
        self._channel: Channel | None = None
        self._receivers: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether its process has loaded the models, and lives."""
        return self._is_loaded and self._channel is not None and self._channel.system_fingerprints is not None

    def system_fingerprint(self, model: str) -> str | None:
        channel = self._channel
        known = channel.system_fingerprints if channel is not None else None
        return known.get(model) if known is not None else None

    def note_loaded(self, is_loaded: bool) -> None:
        """Note what the supervisor says. The end of the channel is known sooner than the end of the process."""
        self._is_loaded = is_loaded

    def open_channel(self) -> socket.socket:
        """Make a channel for a process that is about to start; returns the end that is the process's."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._loop.call_soon_threadsafe(self._attach, ours)
        return theirs

    def _attach(self, ours: socket.socket) -> None:
        receiver = self._loop.create_task(self._serve(ours))
        self._receivers.add(receiver)
        receiver.add_done_callback(self._receivers.discard)

    async def _serve(self, ours: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=_MAX_FRAME_BYTES)
        channel = self._channel = Channel(writer)
        try:
            await channel.receive(reader)
        finally:
            if self._channel is channel:
                self._channel = None

    async def close(self) -> None:
        """Fail what is unfinished and close the channel."""
        for receiver in list(self._receivers):
            receiver.cancel()
        await asyncio.gather(*self._receivers, return_exceptions=True)

    async def complete(
        self, request: Request, *, is_streaming: bool, timeout_s: float | None = None, client: str = ""
    ) -> AsyncIterator[Delta | Choice]:
        channel = self._channel
        if channel is None or not self.is_ready:
            raise EngineAwayError(_AWAY)
        number = next(self._numbers)
        inbox: asyncio.Queue[Answer | None] = asyncio.Queue()
        channel.ask(Submit(number, request, is_streaming, timeout_s, secrets.randbits(63), client), inbox)
        num_missing = request.num_choices
        try:
            while num_missing:
                match await inbox.get():
                    case Gained(delta=delta):
                        yield delta
                    case Finished(choice=choice):
                        num_missing -= 1
                        yield choice
                    case Failed(error=error):
                        num_missing = 0
                        if error.code is ErrorCode.ENGINE_ERROR:
                            raise EngineAwayError(error.message)
                        param = error_param(error, is_chat=request.is_chat)
                        raise LiveRequestError(replace(error, param=param))
                    case _:
                        num_missing = 0
                        raise EngineAwayError(_DIED)
        finally:
            channel.forget(number)
            if num_missing:
                channel.cancel(number)

    async def stats(self) -> Mapping[str, EngineStats]:
        channel = self._channel
        if channel is None or not self.is_ready:
            return {}
        number = next(self._numbers)
        inbox: asyncio.Queue[Answer | None] = asyncio.Queue()
        channel.ask(AskStats(number), inbox)
        try:
            answer = await asyncio.wait_for(inbox.get(), _STATS_TIMEOUT_S)
        except TimeoutError:
            return {}
        finally:
            channel.forget(number)
        return answer.engines if isinstance(answer, Stats) else {}


class _Watch:
    """The supervisor in its thread, from start to stop, and the sweep of the jobs where the process takes shards."""

    def __init__(
        self,
        config: WorkerConfig,
        engines: ProcessEngines,
        loop: asyncio.AbstractEventLoop,
        *,
        on_loaded: Callable[[str], None],
        on_failure: Callable[[BatcherError], None],
        on_drained: Callable[[], None],
        is_urgent: Callable[[], bool],
    ) -> None:
        self._is_urgent = is_urgent
        self._config = config
        self._engines = engines
        self._loop = loop
        self._on_loaded = on_loaded
        self._on_failure = on_failure
        self._on_drained = on_drained
        self._stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, name="supervisor")

    def stop(self) -> None:
        self._stopping.set()

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                sweeper = stack.enter_context(root_sweeper(self._config)) if self._config.takes_shards else None
                self._supervise(sweeper)
        except BatcherError as exc:
            self._call(self._on_failure, exc)
        except Exception as exc:
            self._call(self._on_failure, BatcherError(f"the supervisor ended with {exc!r}: a bug of Batcher"))
            raise

    def _supervise(self, sweeper: Sweeper | None) -> None:
        supervisor = Supervisor(
            self._config,
            on_shard_failure=lambda message: None,
            on_death=sweeper.on_death if sweeper is not None else lambda process: None,
            on_loaded=lambda text: self._call(self._on_loaded, text),
            open_channel=self._engines.open_channel,
        )
        try:
            supervisor.start()
            is_ready = is_drained = False
            while not self._stopping.wait(TICK_S):
                supervisor.poll()
                if supervisor.is_drained and not is_drained:
                    is_drained = True
                    self._call(self._on_drained)
                if sweeper is not None:
                    sweeper.check()
                if supervisor.is_ready is not is_ready:
                    is_ready = supervisor.is_ready
                    self._call(self._engines.note_loaded, is_ready)
        finally:
            self._call(self._engines.note_loaded, False)
            stop_all([supervisor], grace_s=self._config.grace_s, is_urgent=self._is_urgent)

    def _call(self, function: Callable[..., None], *args: object) -> None:
        # The loop is gone where it did not wait for this thread.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *args)


@contextlib.asynccontextmanager
async def open_engines(
    config: WorkerConfig,
    *,
    is_working: bool,
    on_loaded: Callable[[str], None],
    on_failure: Callable[[BatcherError], None],
    on_drained: Callable[[], None] = lambda: None,
    is_urgent: Callable[[], bool] = lambda: False,
) -> AsyncIterator[ProcessEngines]:
    """Engines for the models of `config` in a process of their own. Does not wait until they are loaded.

    With `is_working` the process also takes shards from `config.broker_url`, and the jobs under `config.jobs_root` are
    swept. In the event loop `on_loaded` is told how the engines were set up, `on_failure` why there can be none,
    and `on_drained` that the process was asked to take no more shards, and has none left.
    Leaving it stops the process within `config.grace_s`, or as soon as `is_urgent`, which is asked in a thread.
    """
    loop = asyncio.get_running_loop()
    config = replace(config, takes_shards=is_working)
    engines = ProcessEngines(tuple(name for name, _ in config.models), loop)
    if is_working:
        sweep_heartbeats(Path(config.home))
        config = replace(config, scope=scope_of(Path(config.jobs_root)))
    watch = _Watch(
        config, engines, loop, on_loaded=on_loaded, on_failure=on_failure, on_drained=on_drained, is_urgent=is_urgent
    )
    watch.thread.start()
    try:
        yield engines
    finally:
        watch.stop()
        await loop.run_in_executor(None, watch.thread.join)
        await engines.close()
