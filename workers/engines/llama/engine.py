"""The engine: one thread that owns a llama.cpp context and keeps it full with sequences from any number of callers.

A step is schedule, decode, sample, postprocess. Callers submit prompts with a sink and go on with their work; the
sink gets each result as its sequence finishes. Tokenizing happens in the caller's thread, so the engine's never waits.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from batcher.errors import EngineError, ModelError
from batcher.types import EngineStats, ErrorCode, FinishReason, RowError
from workers.engines.base import (
    ALL_ABILITIES,
    Ability,
    OnDelta,
    OnStart,
    SequenceRequest,
    SequenceResult,
    Sink,
    Ticket,
    ignore_start,
)
from workers.engines.llama.compiling import Compiling
from workers.engines.llama.echo import echo_of
from workers.engines.llama.gate import Gate, Right
from workers.engines.llama.grammars import Grammars, Matching
from workers.engines.llama.kv_cache import KvCache
from workers.engines.llama.masks import Masks
from workers.engines.llama.model import Model
from workers.engines.llama.prompts import Prompts
from workers.engines.llama.sampling.logits import Floats
from workers.engines.llama.sampling.sampler import Sampler
from workers.engines.llama.sampling.text import decode_text
from workers.engines.llama.sampling.transcript import transcript_of
from workers.engines.llama.scheduler import Scheduler
from workers.engines.llama.sequence import Sequence, teller
from workers.engines.llama.spoiled import Spoiled
from workers.engines.llama.step import StepBatch
from workers.engines.llama.trial import try_out
from workers.engines.llama.twins import Twins

#: A caller waits so long for constraints of its requests to be compiled, all in all: mostly they have one in common,
#: and come to the scheduler together then. Who is alone waits, as a death meanwhile is put down to it.
_PATIENCE_S = 0.5
_PATIENCE_ALONE_S = 60.0


class LlamaEngine:
    """Continuous batching over one model. `model` must have its context open and belongs to the engine from now on.

    Engines of one process share a `gate`. `num_steps` and `longest_step_s` may be read by any thread: how often the
    engine has moved, and the longest that it took so far or, at first, what its largest step is expected to take.
    `num_sampling_threads` sample, as many as llama.cpp has: its own sleep meanwhile. Without `is_deduplicating` equal
    requests are decoded each for itself. `system_fingerprint` says what computes.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        cache: KvCache,
        max_batch_tokens: int,
        num_sampling_threads: int = 1,
        is_deduplicating: bool = True,
        gate: Gate | None = None,
        system_fingerprint: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.system_fingerprint = system_fingerprint
        self.num_steps = 0
        self.longest_step_s = 0.0
        self._num_prompt_tokens = self._num_cached_tokens = self._num_completion_tokens = 0
        self.failure: EngineError | None = None
        self._model = model
        self._vocabulary = model.vocabulary
        self._prompts = Prompts(model.vocabulary, chat_template=model.chat_template, limit=cache.cells_per_sequence)
        self._compiling = Compiling(Grammars(model.vocabulary), on_ready=self._take_in)
        self._end_id = int(self._vocabulary.is_end.argmax())
        self._masks = Masks(
            num_rows=cache.num_slots, vocab_size=model.vocabulary.size, num_threads=num_sampling_threads
        )
        self._cache = cache
        self._max_batch_tokens = max_batch_tokens
        self._scheduler = Scheduler(cache, max_batch_tokens=max_batch_tokens, max_scored_tokens=model.max_scored_tokens)
        self._sampler = Sampler(model.vocabulary.size, num_threads=num_sampling_threads)
        self._spoiled = Spoiled(model, cache, self._scheduler)
        self._twins = Twins() if is_deduplicating else None
        self._gate = gate or Gate()
        self._right = Right(self._gate)
        self._clock = clock
        self._inbox: deque[Sequence] = deque()
        self._changed = threading.Condition()
        #: Threads that tokenize, beside each other. The model is not freed meanwhile.
        self._num_tokenizing = 0
        self._has_tokenized = threading.Condition()
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
    def abilities(self) -> Ability:
        """All but, if it is set up so, to compute equal requests once."""
        return ALL_ABILITIES if self._twins is not None else ALL_ABILITIES & ~Ability.DEDUPLICATION

    @property
    def num_slots(self) -> int:
        """How many sequences it computes at a time."""
        return self._cache.num_slots

    @property
    def is_busy(self) -> bool:
        """Whether there is something to compute, so that `num_steps` should grow. For any thread; a moment's guess."""
        return bool(self._inbox or self._scheduler.has_work) and not self._right.is_awaited

    def stats(self) -> EngineStats:
        """The engine at about this moment. For any thread."""
        scheduler, cache = self._scheduler, self._cache
        arrived = list(self._inbox)
        return EngineStats(
            num_slots=cache.num_slots,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting + len(arrived) + len(self._compiling),
            num_live_running=scheduler.num_live_running,
            num_live_waiting=scheduler.num_live_waiting + sum(s.request.is_live for s in arrived),
            num_cells=cache.num_slots * cache.cells_per_sequence,
            num_cells_used=int(cache.num_computed[cache.num_prompt > 0].sum()),
            num_steps=self.num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_completion_tokens=self._num_completion_tokens,
            num_preempted=scheduler.num_preempted,
            num_tokens_in_flight=scheduler.num_generated(),
            longest_step_s=self.longest_step_s,
        )

    def submit(
        self,
        requests: Iterable[SequenceRequest],
        sink: Sink,
        *,
        on_start: OnStart = ignore_start,
        on_delta: OnDelta | None = None,
        is_alone: bool = False,
    ) -> Ticket:
        """Queue prompts behind those already queued, live ones before all that are not. `on_delta` gets their text as
        it comes. Tokenizes here, in the caller's thread, alone if they must be so.

        Each request is taken from `requests` just before it is tokenized. A prompt that can never fit gets its error
        result at once. Does not wait for results. Raises EngineError where the engine is dead.
        """
        ticket = Ticket(self._on_cancel, self._scheduler.num_generated)
        sequences = []
        patience_s = _PATIENCE_ALONE_S if is_alone else _PATIENCE_S
        coming = iter(requests)
        with self._vocabulary_in_use(), self._gate.exclusive() if is_alone else contextlib.nullcontext():
            while True:
                # For one request at a time: a chat may take seconds to be written, and other models compute meanwhile.
                # Who is alone stays so to the end of `requests`: until then a death is put down to them.
                with contextlib.nullcontext() if is_alone else self._gate.shared():
                    self._check_alive()
                    request = next(coming, None)
                    if request is None:
                        break
                    sequence = self._prepare(request, sink, ticket, on_start=on_start, on_delta=on_delta)
                    if sequence is not None and sequence.is_constrained:
                        before = self._clock()
                        is_ready = self._compiling.begin(sequence, patience_s=patience_s)
                        patience_s -= self._clock() - before
                        sequence = sequence if is_ready else None
                if sequence is not None:
                    sequences.append(sequence)
        with self._changed:
            self._check_alive()
            self._inbox.extend(sequences)
            self._changed.notify()
        return ticket

    def _prepare(
        self, request: SequenceRequest, sink: Sink, ticket: Ticket, *, on_start: OnStart, on_delta: OnDelta | None
    ) -> Sequence | None:
        """Tokenize a request. Returns what is to be computed for it; None where it has its answer already."""
        if request.params.tools is not None:
            sink, on_delta = self._prompts.read_calls(request.params.tools, sink, on_delta)
        tell = teller(on_delta, request.key)
        request, scoring = self._prompts.score(request, tell=tell)
        prompt = self._prompts.tokenize(request)
        if isinstance(prompt, RowError):
            sink(SequenceResult(request.key, error=prompt))
            return None
        if scoring is not None:
            path = np.array(scoring.path, np.int32)
            return Sequence(request, prompt, sink, ticket, on_start, scoring=scoring, generated=path)
        request, piece = self._prompts.hold(request)
        transcript = transcript_of(
            request.params,
            piece=piece,
            tell=tell,
            adjustment=self._prompts.adjust(request.params, prompt),
            is_echoing=request.is_echoing,
            splitter=self._prompts.split(request, prompt),
        )
        fitted = self._prompts.fit(request, prompt)
        sequence = Sequence(fitted, prompt, sink, ticket, on_start, transcript=transcript)
        if fitted.params.max_tokens or fitted.scores_prompt:
            return sequence
        self._answer_uncomputed(sequence)
        return None

    def _answer_uncomputed(self, sequence: Sequence) -> None:
        """Answer a request that wants nothing generated and nothing to be known of its prompt."""
        sequence.started_at = self._clock()
        text = ""
        if sequence.transcript is not None:
            if sequence.request.is_echoing:
                sequence.transcript.begin(echo_of(sequence, self._vocabulary, self._cache.scores))
            text, _ = sequence.transcript.finish()
        sequence.answer(
            sequence.choice(text, FinishReason.LENGTH, num_completion_tokens=0, now=sequence.started_at, logprobs=None)
        )

    def close(self) -> None:
        """Stop the thread after its current step and free the model. What is unfinished gets an EngineError."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._prompts.close()
        self._compiling.close()
        with self._has_tokenized:
            self._has_tokenized.wait_for(lambda: not self._num_tokenizing)
            self._model.close()
        self._sampler.close()
        self._masks.close()

    @contextlib.contextmanager
    def _vocabulary_in_use(self) -> Iterator[None]:
        with self._has_tokenized:
            self._check_alive()
            self._num_tokenizing += 1
        try:
            yield
        finally:
            with self._has_tokenized:
                self._num_tokenizing -= 1
                self._has_tokenized.notify_all()

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
        """See whether the model can compute, and how fast.

        In this thread and no other: OpenMP makes a team of threads for each that computes, and with more threads than
        cores it hardly lets them spin (docs/performance.md).
        """
        token_s = try_out(self._model, self._cache, self._scheduler, self._sampler, clock=self._clock)
        # More than it takes: many tokens at a time are faster than a few.
        self.longest_step_s = token_s * self._max_batch_tokens

    def step(self) -> None:
        """Schedule, decode, sample, postprocess. Raises EngineError; the engine is unusable then."""
        self._expire(self._clock())
        batch = self._scheduler.schedule()
        if batch is None:
            return
        with self._right.of_step(is_alone=self._scheduler.is_alone):
            started_at = self._clock()
            self._compute(batch, now=started_at)
            self.longest_step_s = max(self.longest_step_s, self._clock() - started_at)
        self.num_steps += 1

    def _compute(self, batch: StepBatch, *, now: float) -> None:
        for sequence in batch.started:
            sequence.start(now)
        self._place(batch)
        masks = self._masks.start(batch.ready)
        logits = self._model.decode(batch)
        unscored = batch.score(logits, self._cache.scores)
        if batch.ready_rows is not None:
            logits = logits[batch.ready_rows]
        ready = batch.ready
        rows = self._adjust(logits, ready) if any(s.transcript for s in ready) else logits
        rulings = None if masks is None else masks.wait(end=self._end_id)
        tokens = self._sampler.sample(rows, [s.request.params for s in ready], [s.draws for s in ready], rulings)
        spoiled = self._spoiled.find(ready, tokens, unscored=unscored)
        self._postprocess(batch, tokens, logits, is_ruled=rulings is not None, spoiled=spoiled)

    def _adjust(self, logits: Floats, ready: Iterable[Sequence]) -> list[Floats]:
        """The rows of `logits`, those of requests that change something in them replaced."""
        rows = list(logits)
        for at, sequence in enumerate(ready):
            if sequence.transcript is not None and sequence.transcript.adjustment is not None:
                generated = self._scheduler.completion(sequence)
                rows[at] = sequence.transcript.adjustment.apply(rows[at], generated)
        return rows

    def _place(self, batch: StepBatch) -> None:
        for placement in batch.placements:
            if not self._model.place(placement) and placement.num_kept:
                raise EngineError(f"llama.cpp could not keep {placement.num_kept} tokens of a sequence")

    def _expire(self, now: float) -> None:
        """End the sequences whose deadline has passed."""
        for sequence in [s for s in self._scheduler.running() if s.deadline <= now]:
            num_tokens = len(self._scheduler.completion(sequence))
            self._drop(sequence)
            self._scheduler.finish(sequence)
            sequence.time_out(num_completion_tokens=num_tokens)

    def _postprocess(
        self, batch: StepBatch, sampled: list[int], logits: Floats, *, is_ruled: bool, spoiled: set[int]
    ) -> None:
        tokens = np.array(sampled, np.int32)
        is_end = self._vocabulary.is_end[tokens]
        is_stopped = is_end.copy()
        # As it was for these tokens: one may have ended the thoughts.
        matchings = [sequence.ruling if is_ruled else None for sequence in batch.ready]
        for at, sequence in enumerate(batch.ready):
            if sequence.slot in spoiled:
                is_stopped[at] = is_end[at] = True
            elif sequence.transcript is not None:
                is_stopped[at], is_end[at] = self._note(sequence, sampled[at], logits[at], is_end=bool(is_end[at]))
            elif sequence.scoring is not None:
                # What was drawn is no part of it.
                is_end[at], is_stopped[at] = True, sequence.scoring.is_done
        is_full = self._scheduler.advance(batch, tokens, is_end=is_end)
        if is_ruled or any(sequence.scoring for sequence in batch.ready):
            for at, (sequence, matching) in enumerate(zip(batch.ready, matchings, strict=True)):
                if sequence.scoring is not None and not is_stopped[at]:
                    is_full[at] = False
                    self._scheduler.go_back(sequence)
                elif matching is not None and (not is_stopped[at] or matching.problem):
                    # Where no mask can be computed, only the end is left to come: that is no whole text.
                    is_stopped[at], is_full[at] = self._follow(
                        sequence, matching, sampled[at], logits[at], is_full=bool(is_full[at])
                    )
        for at in np.flatnonzero(is_stopped | is_full).tolist():
            if batch.ready[at].slot not in spoiled:
                self._finish(batch.ready[at], FinishReason.STOP if is_stopped[at] else FinishReason.LENGTH)
        if spoiled:
            self._spoiled.fail(spoiled, drop=self._drop)

    def _follow(
        self, sequence: Sequence, matching: Matching, token: int, logits: Floats, *, is_full: bool
    ) -> tuple[bool, bool]:
        """Have a text go on in its constraint behind `token`, and take what is forced there.

        Else that comes one token a step: where log-probabilities are wanted, for its own logits, and where many run.
        llama.cpp computes several tokens of one slot in a pass of their own, which costs what as many steps save as
        there are sequences that share them. Returns whether the text is at its end, and whether at its max_tokens.
        """
        matching.follow(token)
        if matching.problem and not is_full:
            self._scheduler.leave_slot(sequence)
            if not self._compiling.begin_alone(sequence):
                self._drop(sequence)
                problem = f"the constraint can't be kept to: {matching.problem}"
                sequence.fail(RowError(ErrorCode.INVALID_REQUEST, problem))
            return False, False
        is_stopped = False
        is_at_once = sequence.request.params.logprobs is None and len(matching.forced) > self._scheduler.num_running
        while matching.forced and is_at_once and not (is_stopped or is_full):
            token = matching.forced[0]
            matching.follow(token)
            is_stopped = is_end = bool(self._vocabulary.is_end[token])
            if sequence.transcript is not None:
                is_stopped, is_end = self._note(sequence, token, logits, is_end=is_end)
            if not is_end:
                is_full = self._scheduler.append(sequence, token)
        return is_stopped or matching.is_complete, is_full

    def _note(self, sequence: Sequence, token: int, logits: Floats, *, is_end: bool) -> tuple[bool, bool]:
        """Tell a transcript of a sampled token. Returns whether the text is at its end, and whether the token is none
        of its own."""
        transcript, request = sequence.transcript, sequence.request
        assert transcript is not None
        if request.is_echoing and not sequence.is_echoed:
            transcript.begin(echo_of(sequence, self._vocabulary, self._cache.scores))
            sequence.is_echoed = True
        if not request.params.max_tokens:
            return False, True
        # A constraint lets a text end only where it may, or where nothing else may come.
        if not (is_end and (sequence.ruling is not None or transcript.ends_at(token))):
            return transcript.append(token, logits), False
        transcript.append_end(token, logits)
        return True, True

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        tokens = self._scheduler.completion(sequence)
        if sequence.transcript is None:
            text, logprobs = decode_text(self._vocabulary.detokenize(tokens)), None
        else:
            text, logprobs = sequence.transcript.finish()
        now = self._clock()
        if sequence.scoring is not None:
            choice = sequence.label_choice(now)
        else:
            choice = sequence.choice(text, reason, num_completion_tokens=len(tokens), now=now, logprobs=logprobs)
        self._scheduler.finish(sequence)
        self._num_prompt_tokens += choice.usage.prompt_tokens
        self._num_cached_tokens += choice.usage.cached_tokens
        self._num_completion_tokens += choice.usage.completion_tokens
        if self._twins is not None:
            self._twins.settle(sequence, choice)
        sequence.answer(choice)

    def _drop(self, sequence: Sequence) -> None:
        if self._twins is not None:
            self._twins.drop(sequence)

    def _wait_for_work(self) -> bool:
        """Take in what callers left, blocking while there is nothing to do. Returns False when closing."""
        if self._right.is_exclusive and not self._scheduler.num_running:
            self._right.leave()
        with self._changed:
            while not (self._inbox or self._scheduler.has_work or self._is_closing):
                self._changed.wait()
            arrived = list(self._inbox)
            self._inbox.clear()
            cancelled, self._has_cancellations = self._has_cancellations, False
        if arrived:
            self._scheduler.add(s for s in arrived if self._twins is None or not self._twins.join(s))
        if cancelled:
            for sequence in self._scheduler.drop_unwanted():
                self._drop(sequence)
        return not self._is_closing

    def _take_in(self, sequence: Sequence) -> None:
        """Queue a sequence whose constraint is compiled."""
        with self._changed:
            if self.failure is None:
                # Who was cancelled meanwhile was nowhere to be dropped from.
                if sequence.is_wanted:
                    self._inbox.append(sequence)
                    self._changed.notify()
                return
        sequence.sink(self.failure)

    def _on_cancel(self) -> None:
        with self._changed:
            self._has_cancellations = True
            self._changed.notify()

    def _fail_all(self, error: EngineError) -> None:
        with self._changed:
            self.failure = error
            arrived = list(self._inbox)
            self._inbox.clear()
        self._right.leave()
        dropped = [
            each for s in (*self._scheduler.drop_all(), *arrived, *self._compiling.drop_all()) for each in (s, *s.twins)
        ]
        sinks = {id(s.owner): s.sink for s in dropped if not s.owner.is_cancelled}
        for sink in sinks.values():
            sink(error)
