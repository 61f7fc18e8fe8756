"""An engine without a model (`workers.engines.base.Engine`): it answers in order, as many prompts as it was told to."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from batcher.errors import EngineError
from batcher.types import Choice, EngineStats, FinishReason, RowError, Usage
from workers.engines.base import (
    Ability,
    OnDelta,
    OnStart,
    SequenceDelta,
    SequenceRequest,
    SequenceResult,
    Sink,
    Ticket,
    find_missing,
    ignore_start,
)

#: Gives a text, which ended by itself, or an answer as it is.
Answer = Callable[[SequenceRequest], str | Choice | RowError]


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: SequenceRequest
    sink: Sink
    on_start: OnStart
    on_delta: OnDelta | None
    ticket: Ticket


class ManualEngine:
    """Answers prompts in a thread of its own. `allow(n)` lets n more finish; by default all may.

    `seen` holds the requests in order of submission.
    """

    name = "manual"
    num_slots = 1

    def __init__(
        self,
        answer: Answer = lambda request: f"<{request.prompt}>",
        *,
        allowance: int | None = None,
        abilities: Ability = Ability.TOKEN_IDS,
    ) -> None:
        self.num_steps = 0
        self.system_fingerprint: str | None = "fp_manual"
        self.longest_step_s = 0.0
        self.abilities = abilities
        self.seen: list[SequenceRequest] = []
        self.failure: EngineError | None = None
        self._answer = answer
        self._allowance = allowance
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def start(self) -> None:
        """It has started already."""

    @property
    def is_busy(self) -> bool:
        return any(not each.ticket.is_cancelled for each in self._waiting)

    def submit(
        self,
        requests: Iterable[SequenceRequest],
        sink: Sink,
        *,
        on_start: OnStart = ignore_start,
        on_delta: OnDelta | None = None,
        is_alone: bool = False,
    ) -> Ticket:
        ticket = Ticket()
        taken = []
        for request in requests:
            assert request.is_alone == is_alone
            if (missing := find_missing(request, self.abilities)) is not None:
                sink(SequenceResult(request.key, error=missing))
            else:
                taken.append(request)
        with self._changed:
            if self.failure is not None:
                raise self.failure
            self.seen.extend(taken)
            self._waiting.extend(_Waiting(request, sink, on_start, on_delta, ticket) for request in taken)
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
            sinks = {id(each.ticket): each.sink for each in self._waiting if not each.ticket.is_cancelled}
            self._waiting.clear()
            self._changed.notify_all()
        for sink in sinks.values():
            sink(self.failure)

    def close(self) -> None:
        self.die("the engine was closed")
        self._thread.join()

    def wait_until_taken(self, number: int, *, timeout_s: float = 10) -> None:
        """Block until `number` prompts were submitted in all."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= number, timeout_s)

    def stats(self) -> EngineStats:
        waiting = [each.request for each in self._waiting if not each.ticket.is_cancelled]
        return EngineStats(
            num_slots=self.num_slots,
            num_running=0,
            num_waiting=len(waiting),
            num_live_running=0,
            num_live_waiting=sum(request.is_live for request in waiting),
            num_cells=0,
            num_cells_used=0,
            num_steps=self.num_steps,
            num_prompt_tokens=0,
            num_cached_tokens=0,
            num_completion_tokens=0,
            num_preempted=0,
            longest_step_s=self.longest_step_s,
        )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.failure or (self._waiting and self._allowance != 0))
                if self.failure is not None:
                    return
                each = self._waiting.pop(0)
                if each.ticket.is_cancelled:
                    continue
                if self._allowance is not None:
                    self._allowance -= 1
                self.num_steps += 1
            each.on_start(each.request)
            result = self._result(each.request)
            if each.on_delta is not None and result.choice is not None:
                for character in result.choice.text:
                    each.on_delta(SequenceDelta(each.request.key, character))
            each.sink(result)

    def _result(self, request: SequenceRequest) -> SequenceResult:
        answer = self._answer(request)
        if isinstance(answer, RowError):
            return SequenceResult(request.key, error=answer)
        if isinstance(answer, Choice):
            return SequenceResult(request.key, answer)
        usage = Usage(prompt_tokens=len(request.prompt), completion_tokens=len(answer))
        return SequenceResult(request.key, Choice(request.key[1], answer, FinishReason.STOP, usage, 1.5))
