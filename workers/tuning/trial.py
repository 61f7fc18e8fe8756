"""One measurement of `batcher tune`: an engine with given settings, kept full of prompts for some seconds.

A trial of `workers.process.trials`, a process for each: OpenMP keeps its threads and llama.cpp its buffers for as long
as a process lives.

What is measured is the middle of a long job: every slot at another point of its completion, so that prompts are read
and tokens written in the proportion of the whole. The sequences that fill the slots first therefore end after lengths
in even steps, and the clock starts when all their prompts are read. These are cut short: reading the whole of them took
up to ten times as long as what is measured. So attention is a little cheaper than in a job, for all candidates.
"""

import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from batcher.errors import EngineError, ModelError
from batcher.types import EngineConfig, SamplingParams
from workers.engines.base import Engine, SequenceRequest, SequenceResult
from workers.engines.llama.settings import EngineValues
from workers.engines.open import load_metered
from workers.process import trials

#: Prompts that must begin while the clock runs, or that many times as long it runs at most: else it is chance whether a
#: long prompt falls into the window.
MIN_STARTS = 4
MAX_STRETCH = 3.0

#: Seconds for one measurement, loading and all. A machine that takes longer needs smaller candidates.
TRIAL_TIMEOUT_S = 900.0

#: Characters of the prompts that fill the slots first: some ten tokens.
FIRST_PROMPT_CHARS = 50

#: Tokens that the number of a round takes at most.
_NUMBER_TOKENS = 8

#: Seconds between two looks at whether the meter is done, where no completion ends.
_LOOK_INTERVAL_S = 0.05

_COMMAND = trials.trial_command("workers.tuning.trial")


@dataclass(frozen=True, slots=True)
class TrialPrompt:
    """A prompt, and how it is to be completed."""

    text: str
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """What to measure, for `seconds` at least. Prompts are taken in order, again and again. Travels as JSON."""

    model: str
    engine: EngineConfig
    prompts: tuple[TrialPrompt, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How it went. `max_slots` is what memory has room for; `context_length` is in tokens of a slot."""

    tokens_per_s: float
    values: EngineValues
    max_slots: int
    context_length: int
    uses_gpu: bool


@dataclass(slots=True)
class Meter:
    """Tokens/s from the step at which `num_warm_up_tokens` are computed to the first that is `seconds` later.

    `add` is called after each step, in the engine's thread. It runs on until MIN_STARTS prompts have begun, but not
    for more than MAX_STRETCH times as long. Nothing counts before `num_warm_up_tokens` is set.
    """

    seconds: float
    num_warm_up_tokens: int | None = None
    clock: Callable[[], float] = time.perf_counter
    num_tokens: int = 0
    tokens_per_s: float | None = None
    _num_starts: int = 0
    _started_at: float | None = None
    _num_at_start: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def start_prompt(self) -> None:
        """A prompt begins to be read."""
        self._num_starts += 1

    def add(self, num_tokens: int) -> None:
        """A step has computed `num_tokens`."""
        if self.num_warm_up_tokens is None or self.is_over.is_set():
            return
        self.num_tokens += num_tokens
        now = self.clock()
        if self._started_at is None:
            if self.num_tokens >= self.num_warm_up_tokens:
                self._started_at, self._num_at_start, self._num_starts = now, self.num_tokens, 0
            return
        elapsed_s = now - self._started_at
        is_enough = self._num_starts >= MIN_STARTS or elapsed_s >= MAX_STRETCH * self.seconds
        if elapsed_s >= self.seconds and is_enough:
            self.tokens_per_s = (self.num_tokens - self._num_at_start) / elapsed_s
            self.is_over.set()


def run_trial(config: TrialConfig, *, timeout_s: float = TRIAL_TIMEOUT_S) -> TrialResult:
    """Measure in a process of its own, blocking. Raises ModelError, with the reason, where the settings don't work."""
    return trials.run_trial(_COMMAND, config, TrialResult, timeout_s=timeout_s)


def _answer(config: TrialConfig) -> TrialResult:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return measure(config)


def measure(config: TrialConfig) -> TrialResult:
    """Measure in this process. Raises ModelError or EngineError."""
    meter = Meter(config.seconds)
    opened = load_metered(Path(config.model), config.engine, on_decoded=lambda num_tokens, _: meter.add(num_tokens))
    engine, settings = opened.engine, opened.settings
    num_slots = settings.num_slots.value
    prompts = _prompts_that_fit(opened.count_tokens, config.prompts, settings.context_length.value)
    engine.start()
    first = islice(_requests(prompts, num_slots=num_slots), num_slots)
    meter.num_warm_up_tokens = sum(opened.count_tokens(request.prompt) for request in first)
    try:
        _keep_full(engine, _requests(prompts, num_slots=num_slots), num_slots=num_slots, meter=meter)
    finally:
        engine.close()
    assert meter.tokens_per_s is not None
    return TrialResult(
        tokens_per_s=meter.tokens_per_s,
        values=settings.values,
        max_slots=settings.max_slots,
        context_length=settings.context_length.value,
        uses_gpu=opened.uses_gpu,
    )


def _prompts_that_fit(
    count_tokens: Callable[[str], int], prompts: Sequence[TrialPrompt], context_length: int
) -> list[TrialPrompt]:
    """Those that a slot has room for. Raises ModelError where there are none."""
    fitting = []
    for prompt in prompts:
        # A round's number goes in front, see `_requests`.
        room = context_length - prompt.params.max_tokens - _NUMBER_TOKENS
        if 0 < count_tokens(prompt.text) <= room:
            fitting.append(prompt)
    if not fitting:
        raise ModelError(
            f"none of {len(prompts)} prompts fits into {context_length} tokens together with its max_tokens; "
            "use shorter ones, or a larger --ctx"
        )
    return fitting


def _requests(prompts: Sequence[TrialPrompt], *, num_slots: int) -> Iterator[SequenceRequest]:
    """Prompts without end. The first of each slot are cut, and end one by one from the beginning.

    From the second round on each begins with its round's number: an engine that knows a text already computes it once.
    """
    for number in itertools.count():
        round_number, i = divmod(number, len(prompts))
        prompt, params = prompts[i], prompts[i].params
        text = f"{round_number} {prompt.text}" if round_number else prompt.text
        if number < num_slots:
            params = replace(params, max_tokens=max(1, params.max_tokens * (number + 1) // num_slots))
            text = text[:FIRST_PROMPT_CHARS]
        yield SequenceRequest((number, 0), text, params, seed=number)


def _keep_full(engine: Engine, requests: Iterator[SequenceRequest], *, num_slots: int, meter: Meter) -> None:
    """Have always a prompt waiting for each slot, until the meter is done. Raises EngineError."""
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()

    def submit(number: int) -> None:
        engine.submit(islice(requests, number), inbox.put, on_start=lambda request: meter.start_prompt())

    submit(2 * num_slots)
    while not meter.is_over.is_set():
        try:
            result = inbox.get(timeout=_LOOK_INTERVAL_S)
        except queue.Empty:
            continue
        if isinstance(result, EngineError):
            raise result
        submit(1)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    trials.answer_trial(TrialConfig, _answer)
