"""Live requests in the process of the engines: they come over a socket from the server, and go to the engines.

One thread reads questions, two for each engine tokenize and hand them to it, and one writes answers. The engines' own
threads only put answers into a queue, and the writer sends whatever has come together. Where the socket ends, so does
this process: the server is gone, or one side did not understand the other, and a new process is better than none.
"""

import contextlib
import logging
import queue
import socket
import threading
from collections.abc import Callable
from functools import partial

from batcher.errors import EngineError, ModelError
from batcher.rounds import Rounds
from batcher.types import Choice, Delta, ErrorCode, RowError
from workers.engines.base import SequenceDelta, SequenceResult, Ticket
from workers.engines.pool import EnginePool, NotLoadedError
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
    decode_question,
    encode_answers,
)
from workers.shard.choices import Gathering, sequence_requests

logger = logging.getLogger(f"batcher.{__name__}")

#: Answers that are sent in one go.
_MOST_AT_ONCE = 1024

#: Seconds. How long a request waits for its model to be loaded, another leaving for it perhaps.
LOAD_PATIENCE_S = 600.0

#: Characters of prompts, and of documents for them, that are tokenized in some tens of milliseconds. Requests with more
#: wait for each other, and nobody else for them.
_MANY_CHARS = 65_536


class LiveRequests:
    """Answers the questions of a server until it hangs up. `on_answered` is called after each that was answered well.

    `on_engine_failure` is called in an engine's thread when that engine has died, `on_end` when no more questions will
    come.
    """

    def __init__(
        self,
        channel: socket.socket,
        engines: EnginePool,
        *,
        on_answered: Callable[[], None],
        on_engine_failure: Callable[[EngineError], None],
        on_end: Callable[[], None],
    ) -> None:
        self._channel = channel
        self._engines = engines
        self._on_answered = on_answered
        self._on_engine_failure = on_engine_failure
        self._on_end = on_end
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        #: By number; what is not in it any more needs no answer.
        self._open: dict[int, _Open] = {}
        #: By model, and whether they are large: what takes long for one model, as to be loaded, holds up no other.
        #: Only for the thread that reads.
        self._queues: dict[tuple[str, bool], _Queue] = {}
        #: As the server was told last. Guarded by `_lock`.
        self._fingerprints: dict[str, str | None] = dict.fromkeys(engines.names)
        self._lock = threading.Lock()

    def start(self) -> None:
        self._say_hello()
        self._run(self._read)
        self._run(self._write)

    def _run(self, target: Callable[..., None], *args: object) -> None:
        threading.Thread(target=target, args=args, name=f"live-{target.__name__.strip('_')}", daemon=True).start()

    def _say_hello(self) -> None:
        with self._lock:
            for name, engine in self._engines.loaded().items():
                self._fingerprints[name] = engine.system_fingerprint
            self._answers.put(Hello(dict(self._fingerprints)))

    def _queue_of(self, key: tuple[str, bool]) -> "_Queue":
        found = self._queues.get(key)
        if found is None:
            found = self._queues[key] = _Queue()
            self._run(self._submit_all, found)
        return found

    def _read(self) -> None:
        try:
            with self._channel.makefile("rb") as lines:
                for line in lines:
                    self._take(decode_question(line))
        except OSError:
            pass  # as an end: the server died with something unread
        except ValueError:
            logger.exception("a line that is no question")
        finally:
            self._on_end()

    def _take(self, question: Question) -> None:
        match question:
            case Submit(number=number, request=request):
                entry = self._open[number] = _Open(question, self._answers.put, self._close)
                num_chars = sum(map(len, request.prompts)) + len(request.params.chat_template_kwargs)
                num_chars += len(request.params.tools.functions) if request.params.tools is not None else 0
                is_large = num_chars > _MANY_CHARS
                self._queue_of((request.model, is_large)).put(question, entry)
            case Cancel():
                cancelled = self._open.pop(question.number, None)
                if cancelled is not None:
                    cancelled.cancel()
            case AskStats():
                stats = {name: engine.stats() for name, engine in self._engines.loaded().items()}
                self._answers.put(Stats(question.number, stats))

    def _write(self) -> None:
        try:
            while True:
                waiting = [self._answers.get()]
                while len(waiting) < _MOST_AT_ONCE and not self._answers.empty():
                    waiting.append(self._answers.get())
                self._channel.sendall(encode_answers(waiting))
        except OSError:
            pass  # The server is gone, and with it this process soon.
        finally:
            # The reader hears of it.
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)

    def _submit_all(self, questions: "_Queue") -> None:
        try:
            while True:
                self._submit(*questions.get())
        finally:
            self._on_end()

    def _submit(self, question: Submit, entry: "_Open") -> None:
        if entry.is_over:
            return
        request = question.request
        sequences = sequence_requests(
            request,
            position=0,
            job_seed=question.job_seed,
            timeout_s=question.timeout_s,
            is_live=True,
            client=question.client,
        )
        on_delta = entry.take_delta if question.is_streaming else None
        try:
            engine = self._engines.acquire(request.model, patience_s=LOAD_PATIENCE_S)
        except (NotLoadedError, ModelError) as exc:
            logger.warning("a live request for %s has no engine: %s", request.model, exc)
            entry.refuse(f"the model {request.model} can't be loaded now; the server's log says why")
            return
        entry.keep(partial(self._engines.release, request.model))
        if self._fingerprints[request.model] != engine.system_fingerprint:
            self._say_hello()
        try:
            entry.hold(engine.submit(sequences, entry.take, on_delta=on_delta))
        except EngineError as exc:
            entry.take(exc)

    def _close(self, number: int, failure: EngineError | None) -> None:
        """Called when a request has its last answer."""
        self._open.pop(number, None)
        if failure is not None:
            self._on_engine_failure(failure)
        else:
            self._on_answered()


class _Queue:
    """Requests that wait to be tokenized, by rounds of their clients. For all threads."""

    def __init__(self) -> None:
        self._waiting: Rounds[tuple[Submit, _Open]] = Rounds()
        self._has_more = threading.Condition()

    def put(self, question: Submit, entry: "_Open") -> None:
        with self._has_more:
            self._waiting.put(question.client, (question, entry))
            self._has_more.notify()

    def get(self) -> "tuple[Submit, _Open]":
        """The next; waits for it."""
        with self._has_more:
            self._has_more.wait_for(lambda: bool(self._waiting))
            return self._waiting.pop()


class _Open:
    """A request on its way through an engine. For several threads: that which submits, the engine's, the reader's."""

    def __init__(
        self, question: Submit, answer: Callable[[Answer], None], close: Callable[[int, EngineError | None], None]
    ) -> None:
        self._ticket: Ticket | None = None
        self._number = question.number
        self._is_drawing_more = question.request.params.num_drawn > question.request.params.n
        self._gathering = Gathering(question.request)
        self._answer = answer
        self._close = close
        self._is_over = False
        self._releases: list[Callable[[], None]] = []

    @property
    def is_over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._is_over

    def keep(self, release: Callable[[], None]) -> None:
        """Call `release` when the request is over, which it may be already."""
        self._releases.append(release)
        if self._is_over:
            self._end()

    def refuse(self, message: str) -> None:
        """Answer that there is no engine for it now."""
        if not self._is_over:
            self._fail(RowError(ErrorCode.ENGINE_ERROR, message))
            self._close(self._number, None)

    def _end(self) -> None:
        self._is_over = True
        # In several threads at a time, of which one finds it.
        with contextlib.suppress(IndexError):
            self._releases.pop()()

    def hold(self, ticket: Ticket) -> None:
        """Keep what the engine gave for the request, which may be over already."""
        self._ticket = ticket
        if self._is_over:
            ticket.cancel()

    def cancel(self) -> None:
        self._end()
        if self._ticket is not None:
            self._ticket.cancel()

    def take_delta(self, delta: SequenceDelta) -> None:
        if not self._is_over:
            gained = Delta(delta.key[1], delta.text, delta.logprobs, delta.reasoning, delta.call)
            self._answer(Gained(self._number, gained))

    def take(self, item: SequenceResult | EngineError) -> None:
        if self._is_over:
            return
        if isinstance(item, EngineError):
            self._fail(RowError(ErrorCode.ENGINE_ERROR, "the engine failed and is started again; send it again"))
            self._close(self._number, item)
            return
        is_last = self._gathering.add(item)
        if item.error is not None:
            self._fail(item.error)
            self._close(self._number, None)
            # Its other sequences are of no use.
            self.cancel()
            return
        assert item.choice is not None
        if not self._is_drawing_more:
            self._finish(self._gathering.finish(item.choice))
        if is_last:
            if self._is_drawing_more:
                for choice in self._gathering.choices():
                    self._finish(choice)
            self._end()
            self._close(self._number, None)

    def _finish(self, choice: Choice) -> None:
        self._answer(Finished(self._number, choice))

    def _fail(self, error: RowError) -> None:
        self._end()
        self._answer(Failed(self._number, error))
