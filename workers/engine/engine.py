"""The engine: one thread that owns a llama.cpp context and keeps it full with sequences from any number of callers.

A step is schedule, decode, sample, postprocess. Callers submit prompts with a sink and go on with their work; the
sink gets each result as its sequence finishes. Tokenizing happens in the caller's thread, so the engine's never waits.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from batcher.errors import EngineError, ModelError
from batcher.types import ErrorCode, FinishReason, RowError, SamplingParams
from workers.engine.gate import Gate
from workers.engine.kv_cache import KvCache
from workers.engine.model import Model, TokenSpan
from workers.engine.sampler import Draws, Sampler
from workers.engine.scheduler import ScheduledTokens, Scheduler
from workers.engine.sequence import OnStart, Sequence, SequenceRequest, SequenceResult, Sink, ignore_start


class Ticket:
    """The caller's hold on what it submitted."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.is_cancelled = False
        self._wake = wake

    def cancel(self) -> None:
        """Drop what is waiting or running. A result may still come for a sequence that finishes in this very step."""
        self.is_cancelled = True
        self._wake()


class Engine:
    """Continuous batching over one model. `model` must have its context open and belongs to the engine from now on.

    Engines of one process share a `gate`. `num_steps` and `longest_step_s` may be read by any thread: how often the
    engine has moved, and the longest that it took so far or, at first, what its largest step is expected to take.
    """

    #: Tokens that the model is tried out with.
    TRIAL_TOKENS = 8

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        cache: KvCache,
        max_batch_tokens: int,
        gate: Gate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.num_steps = 0
        self.longest_step_s = 0.0
        self.failure: EngineError | None = None
        self._model = model
        self._vocabulary = model.vocabulary
        self._cache = cache
        self._max_batch_tokens = max_batch_tokens
        self._scheduler = Scheduler(cache, max_batch_tokens=max_batch_tokens)
        self._sampler = Sampler(model.vocabulary.size)
        self._gate = gate or Gate()
        #: Holds the gate exclusively, from the first token of a sequence that must be alone to its last.
        self._alone = contextlib.ExitStack()
        self._has_gate = False
        self._is_waiting_for_gate = False
        self._clock = clock
        self._inbox: deque[Sequence] = deque()
        self._changed = threading.Condition()
        #: Held while tokenizing, so that the model is not freed meanwhile.
        self._vocabulary_in_use = threading.Lock()
        self._is_tried_out = threading.Event()
        self._is_closing = False
        self._has_cancellations = False
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    # -- any thread -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine's thread, and wait until it has computed a few tokens.

        So a model or a build that can't compute at all dies here, where no row is to blame. Raises ModelError.
        """
        self._thread.start()
        self._is_tried_out.wait()
        if self.failure is not None:
            raise ModelError(f"{self._model.path}: loaded, but can't compute: {self.failure}")

    @property
    def is_busy(self) -> bool:
        """Whether there is something to compute, so that `num_steps` should grow. For any thread; a moment's guess."""
        return bool(self._inbox or self._scheduler.has_work) and not self._is_waiting_for_gate

    def submit(
        self,
        requests: Iterable[SequenceRequest],
        sink: Sink,
        *,
        on_start: OnStart = ignore_start,
        is_alone: bool = False,
    ) -> Ticket:
        """Queue prompts behind those already queued. Tokenizes here, in the caller's thread, alone if they must be so.

        Each request is taken from `requests` just before it is tokenized. A prompt that can never fit gets its error
        result at once. Does not wait for results. Raises EngineError where the engine is dead.
        """
        ticket = Ticket(self._on_cancel)
        sequences = []
        with self._gate.exclusive() if is_alone else self._gate.shared(), self._vocabulary_in_use:
            self._check_alive()
            for request in requests:
                tokens = self._vocabulary.tokenize(request.prompt)
                sequence = Sequence(request, tokens, sink, ticket, on_start)
                error = self._refusal(sequence)
                if error is None:
                    sequences.append(sequence)
                else:
                    sink(SequenceResult(request.key, error=error))
        with self._changed:
            self._check_alive()
            self._inbox.extend(sequences)
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """Stop the thread after its current step and free the model. What is unfinished gets an EngineError."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        with self._vocabulary_in_use:
            self._model.close()

    def _check_alive(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self._is_closing:
            raise EngineError(f"the engine of {self.name} is closed")

    # -- the engine's thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._try_out()
            self._is_tried_out.set()
            while self._wait_for_work():
                self.step()
            self._fail_all(EngineError(f"the engine of {self.name} was closed"))
        except EngineError as exc:
            self._fail_all(exc)
        except Exception as exc:
            self._fail_all(EngineError(f"the engine of {self.name} failed: {exc!r}"))
            raise
        finally:
            self._is_tried_out.set()

    def _try_out(self) -> None:
        """Compute a few tokens, and forget them.

        In this thread and no other: OpenMP makes a team of threads for each that computes, and with more threads than
        cores it hardly lets them spin. Tried out in the main thread, the engine made 281 tokens/s instead of 455.
        """
        num_tokens = min(self.TRIAL_TOKENS, self._cache.cells_per_sequence)
        started_at = self._clock()
        logits = self._model.decode([TokenSpan(0, 0, [0] * num_tokens, True)])
        self._sampler.sample(logits, [SamplingParams(temperature=0)], [Draws(0)])
        self._model.forget(0)
        # More than it takes: many tokens at a time are faster than a few.
        self.longest_step_s = (self._clock() - started_at) / num_tokens * self._max_batch_tokens

    def step(self) -> None:
        """Schedule, decode, sample, postprocess. Raises EngineError; the engine is unusable then."""
        self._expire(self._clock())
        batch = self._scheduler.schedule()
        if not batch:
            return
        with self._turn(is_alone=batch[0].sequence.request.is_alone):
            started_at = self._clock()
            self._compute(batch, now=started_at)
            self.longest_step_s = max(self.longest_step_s, self._clock() - started_at)
        self.num_steps += 1

    def _compute(self, batch: list[ScheduledTokens], *, now: float) -> None:
        for item in batch:
            if not item.sequence.num_computed:
                item.sequence.start(now)
        logits = self._model.decode(_span(item) for item in batch)
        for item in batch:
            item.sequence.num_computed += item.num_tokens
        ready = [item.sequence for item in batch if item.wants_logits]
        tokens = self._sampler.sample(logits, [s.request.params for s in ready], [s.draws for s in ready])
        for sequence, token in zip(ready, tokens, strict=True):
            self._postprocess(sequence, token)

    def _turn(self, *, is_alone: bool) -> contextlib.AbstractContextManager[None]:
        """The right to compute one step: beside other engines, or as the one that is alone until it is finished."""
        if is_alone:
            if not self._has_gate:
                self._is_waiting_for_gate = True
                self._alone.enter_context(self._gate.exclusive())
                self._is_waiting_for_gate = False
                self._has_gate = True
            return contextlib.nullcontext()
        self._leave_gate()
        return self._share_gate()

    @contextlib.contextmanager
    def _share_gate(self) -> Iterator[None]:
        self._is_waiting_for_gate = True
        with self._gate.shared():
            self._is_waiting_for_gate = False
            yield

    def _leave_gate(self) -> None:
        self._alone.close()
        self._has_gate = False

    def _expire(self, now: float) -> None:
        """End the sequences whose deadline has passed."""
        for sequence in [s for s in self._scheduler.running() if s.deadline <= now]:
            self._scheduler.finish(sequence)
            self._model.forget(sequence.slot)
            if not sequence.owner.is_cancelled:
                sequence.sink(sequence.time_out())

    def _postprocess(self, sequence: Sequence, token: int) -> None:
        vocabulary = self._vocabulary
        reason = sequence.append(token, vocabulary.piece(token), is_end=vocabulary.is_end(token))
        if reason is not None:
            self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._scheduler.finish(sequence)
        self._model.forget(sequence.slot)
        if not sequence.owner.is_cancelled:
            sequence.sink(sequence.finish(reason, now=self._clock()))

    def _wait_for_work(self) -> bool:
        """Take in what callers left, blocking while there is nothing to do. Returns False when closing."""
        if self._has_gate and not self._scheduler.num_running:
            self._leave_gate()
        with self._changed:
            while not (self._inbox or self._scheduler.has_work or self._is_closing):
                self._changed.wait()
            self._scheduler.add(self._inbox)
            self._inbox.clear()
            cancelled, self._has_cancellations = self._has_cancellations, False
        if cancelled:
            for sequence in self._scheduler.drop_cancelled():
                self._model.forget(sequence.slot)
        return not self._is_closing

    def _on_cancel(self) -> None:
        with self._changed:
            self._has_cancellations = True
            self._changed.notify()

    def _fail_all(self, error: EngineError) -> None:
        with self._changed:
            self.failure = error
            self._scheduler.add(self._inbox)
            self._inbox.clear()
        self._leave_gate()
        dropped = self._scheduler.drop_all()
        sinks = {id(s.owner): s.sink for s in dropped if not s.owner.is_cancelled}
        for sink in sinks.values():
            sink(error)

    def _refusal(self, sequence: Sequence) -> RowError | None:
        """Why a sequence can never run, if so."""
        num_prompt, max_tokens = sequence.num_prompt_tokens, sequence.request.params.max_tokens
        if num_prompt == 0:
            return RowError(
                ErrorCode.INVALID_REQUEST, "the prompt is empty and the model has no BOS token; give it text"
            )
        if self._cache.fits(sequence.num_cells):
            return None
        limit = self._cache.cells_per_sequence
        return RowError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"the prompt has {num_prompt} tokens and max_tokens is {max_tokens}, together more than the context of "
            f"{limit}; shorten them, or start the worker with a larger --ctx",
        )


def _span(item: ScheduledTokens) -> TokenSpan:
    sequence = item.sequence
    start = sequence.num_computed
    return TokenSpan(sequence.slot, start, sequence.tokens[start : start + item.num_tokens], item.wants_logits)
