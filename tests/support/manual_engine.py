"""An engine without a model that fulfils the same interface: it answers in order, as many prompts as it was told to."""

import threading
from collections.abc import Callable, Iterable

from batcher.errors import EngineError
from batcher.types import Choice, FinishReason, RowError, Usage
from workers.engines.llama.sequence import OnStart, SequenceRequest, SequenceResult, Sink, ignore_start

Answer = Callable[[SequenceRequest], str | RowError]


class ManualTicket:
    """Like `workers.engines.llama.engine.Ticket`."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class ManualEngine:
    """Answers prompts in a thread of its own. `allow(n)` lets n more finish; by default all may.

    `seen` holds the requests in order of submission.
    """

    def __init__(self, answer: Answer = lambda request: f"<{request.prompt}>", *, allowance: int | None = None) -> None:
        self.num_steps = 0
        self.system_fingerprint: str | None = "fp_manual"
        self.longest_step_s = 0.0
        self.seen: list[SequenceRequest] = []
        self.failure: EngineError | None = None
        self._answer = answer
        self._allowance = allowance
        self._waiting: list[tuple[SequenceRequest, Sink, OnStart, ManualTicket]] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(
        self,
        requests: Iterable[SequenceRequest],
        sink: Sink,
        *,
        on_start: OnStart = ignore_start,
        is_alone: bool = False,
    ) -> ManualTicket:
        ticket = ManualTicket()
        taken = list(requests)
        assert all(request.is_alone == is_alone for request in taken)
        with self._changed:
            if self.failure is not None:
                raise self.failure
            self.seen.extend(taken)
            self._waiting.extend((request, sink, on_start, ticket) for request in taken)
            self._changed.notify_all()
        return ticket

    def allow(self, number: int) -> None:
        """Let `number` more prompts finish."""
        with self._changed:
            self._allowance = (self._allowance or 0) + number
            self._changed.notify_all()

    def die(self, message: str = "llama_decode returned -3") -> None:
        """Fail as a real engine does: every sink hears of it once, and nothing can be submitted any more."""
        with self._changed:
            self.failure = EngineError(message)
            sinks = {id(ticket): sink for _, sink, _, ticket in self._waiting if not ticket.is_cancelled}
            self._waiting.clear()
            self._changed.notify_all()
        for sink in sinks.values():
            sink(self.failure)

    def wait_until_taken(self, number: int, *, timeout_s: float = 10) -> None:
        """Block until `number` prompts were submitted in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= number, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.failure or (self._waiting and self._allowance != 0))
                if self.failure is not None:
                    return
                request, sink, on_start, ticket = self._waiting.pop(0)
                if ticket.is_cancelled:
                    continue
                if self._allowance is not None:
                    self._allowance -= 1
                self.num_steps += 1
            on_start(request)
            sink(self._result(request))

    def _result(self, request: SequenceRequest) -> SequenceResult:
        answer = self._answer(request)
        if isinstance(answer, RowError):
            return SequenceResult(request.key, error=answer)
        usage = Usage(prompt_tokens=len(request.prompt), completion_tokens=len(answer))
        return SequenceResult(request.key, Choice(request.key[1], answer, FinishReason.STOP, usage, 1.5))
