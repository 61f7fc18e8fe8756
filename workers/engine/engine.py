"""The engine: one thread that owns a llama.cpp context and keeps it full with sequences from any number of callers.

A step is schedule, decode, sample, postprocess. Callers submit prompts with a sink and go on with their work; the
sink gets each result as its sequence finishes. Tokenizing happens in the caller's thread, so the engine's never waits.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable

from batcher.errors import EngineError
from batcher.types import ErrorCode, FinishReason, RowError
from workers.engine.kv_cache import KvCache
from workers.engine.model import Model, TokenSpan
from workers.engine.sampler import Sampler
from workers.engine.scheduler import ScheduledTokens, Scheduler
from workers.engine.sequence import Sequence, SequenceRequest, SequenceResult, Sink


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
    """Continuous batching over one model. `model` must have its context open and belongs to the engine from now on."""

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        cache: KvCache,
        max_batch_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.num_steps = 0
        self.failure: EngineError | None = None
        self._model = model
        self._vocabulary = model.vocabulary
        self._cache = cache
        self._scheduler = Scheduler(cache, max_batch_tokens=max_batch_tokens)
        self._sampler = Sampler(model.vocabulary.size)
        self._clock = clock
        self._inbox: deque[Sequence] = deque()
        self._changed = threading.Condition()
        #: Held while tokenizing, so that the model is not freed meanwhile.
        self._vocabulary_in_use = threading.Lock()
        self._is_closing = False
        self._has_cancellations = False
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)

    # -- any thread -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the engine's thread."""
        self._thread.start()

    def submit(self, requests: Iterable[SequenceRequest], sink: Sink) -> Ticket:
        """Queue prompts behind those already queued. Tokenizes here, in the caller's thread; does not wait.

        A prompt that can never fit gets its error result at once. Raises EngineError where the engine is dead.
        """
        ticket = Ticket(self._on_cancel)
        sequences = []
        with self._vocabulary_in_use:
            self._check_alive()
            for request in requests:
                sequence = Sequence(request, self._vocabulary.tokenize(request.prompt), sink, ticket)
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
            while self._wait_for_work():
                self.step()
            self._fail_all(EngineError(f"the engine of {self.name} was closed"))
        except EngineError as exc:
            self._fail_all(exc)
        except Exception as exc:
            self._fail_all(EngineError(f"the engine of {self.name} failed: {exc!r}"))
            raise

    def step(self) -> None:
        """Schedule, decode, sample, postprocess. Raises EngineError; the engine is unusable then."""
        batch = self._scheduler.schedule()
        if not batch:
            return
        now = self._clock()
        for item in batch:
            if not item.sequence.num_computed:
                item.sequence.started_at = now
        logits = self._model.decode(_span(item) for item in batch)
        for item in batch:
            item.sequence.num_computed += item.num_tokens
        ready = [item.sequence for item in batch if item.wants_logits]
        tokens = self._sampler.sample(logits, [s.request.params for s in ready], [s.draws for s in ready])
        for sequence, token in zip(ready, tokens, strict=True):
            self._postprocess(sequence, token)
        self.num_steps += 1

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
