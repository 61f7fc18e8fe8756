"""One prompt being decoded: what was asked, how far it is, what came out."""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from batcher.types import Choice, ErrorCode, FinishReason, RowError, TokenLogprob, Usage
from workers.engines.base import (
    OnDelta,
    OnStart,
    SequenceDelta,
    SequenceRequest,
    SequenceResult,
    Sink,
    Ticket,
    ignore_start,
)
from workers.engines.llama.grammars import Matching
from workers.engines.llama.kv_cache import Tokens
from workers.engines.llama.labels import Scoring
from workers.engines.llama.sampling.sampler import Draws
from workers.engines.llama.sampling.transcript import Tell, Transcript

_NO_TOKENS: Tokens = np.zeros(0, np.int32)


#: Equal for requests that must get the same answer.
TwinKey = tuple[object, ...]


def teller(on_delta: OnDelta | None, key: tuple[int, int]) -> Tell | None:
    """What hands on the text of the request `key` as it comes."""
    if on_delta is None:
        return None
    return lambda text, logprobs, reasoning: on_delta(SequenceDelta(key, text, logprobs, reasoning))


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside the engine. Mutable; owned by the engine's thread once submitted.

    `prompt` has its tokens. What is known of it beyond, while it runs, stands in its `slot` of the KV cache; where it
    had to leave its slot to a live request, in `generated` until it runs again.
    `num_cached` tokens of the prompt were not computed for it but copied. `twins` are requests that get its answer.
    """

    request: SequenceRequest
    prompt: Tokens
    sink: Sink
    owner: Ticket
    on_start: OnStart = ignore_start
    #: Which `Scheduler.add` brought it; later ones have higher numbers.
    arrival: int = 0
    slot: int = -1
    num_cached: int = 0
    started_at: float = 0.0
    deadline: float = math.inf
    twins: list["Sequence"] = field(default_factory=list)
    #: What its twins have in common with it; None where it has to be decoded itself (see `twins`).
    twin_key: TwinKey | None = None
    transcript: Transcript | None = None
    generated: Tokens = field(default_factory=lambda: _NO_TOKENS)
    was_preempted: bool = False
    #: Whether its prompt is in its transcript, for a request that is to echo it.
    is_echoed: bool = False
    #: Where its text stands in the constraint that it has to keep to, if there is one.
    matching: Matching | None = None
    #: Whether it shares nothing with those of others that have the same constraint.
    is_matched_alone: bool = False
    #: How far its labels are scored, if that is what it is for.
    scoring: Scoring | None = None
    draws: Draws = field(init=False)

    def __post_init__(self) -> None:
        self.draws = Draws(self.request.seed)

    @property
    def num_cells(self) -> int:
        """The KV cells it may need: prompt and `max_tokens`."""
        return len(self.prompt) + self.request.params.max_tokens

    @property
    def is_constrained(self) -> bool:
        """Whether it has text to generate that must keep to a constraint."""
        params = self.request.params
        return params.constraint is not None and params.max_tokens > 0 and self.scoring is None

    @property
    def num_to_score(self) -> int:
        """How many tokens of its prompt are to be scored: those that another follows, or none."""
        return len(self.prompt) - 1 if self.request.scores_prompt and not self.is_echoed else 0

    @property
    def ruling(self) -> Matching | None:
        """The matching that its next token has to keep to: thoughts are free."""
        return None if self.transcript is not None and self.transcript.is_in_thoughts else self.matching

    @property
    def known(self) -> Tokens:
        """The prompt, and what was generated before it left its slot."""
        return np.concatenate((self.prompt, self.generated)) if len(self.generated) else self.prompt

    @property
    def sort_key(self) -> bytes:
        """Bytes that compare like the tokens of the prompt one after the other."""
        return self.prompt.astype(">u4").tobytes()

    @property
    def is_wanted(self) -> bool:
        """Whether anybody still waits for its answer."""
        return not self.owner.is_cancelled or any(twin.is_wanted for twin in self.twins)

    def start(self, now: float) -> None:
        """Note that its first tokens are about to be computed. `now` and `deadline` are by the engine's clock."""
        self.started_at = now
        if self.request.timeout_s is not None:
            self.deadline = now + self.request.timeout_s
        self.on_start(self.request)

    def choice(
        self,
        text: str,
        reason: FinishReason,
        *,
        num_completion_tokens: int,
        now: float,
        logprobs: tuple[TokenLogprob, ...] | None = None,
    ) -> Choice:
        """What a finished sequence gives."""
        usage = Usage(len(self.prompt), num_completion_tokens, self.num_cached)
        reasoning, num_echoed = None, 0
        if self.transcript is not None:
            num_echoed = self.transcript.num_echoed
            usage = replace(usage, reasoning_tokens=self.transcript.num_reasoning_tokens)
            reasoning = self.transcript.reasoning
        latency_ms = (now - self.started_at) * 1000
        number = self.request.key[1]
        return Choice(number, text, reason, usage, latency_ms, logprobs, reasoning=reasoning, num_echoed=num_echoed)

    def constrain(self, matching: Matching) -> None:
        """Hold its text to a constraint. Before it runs.

        What that begins with is computed with the prompt, where nothing is to be known of its tokens one by one. A text
        that has begun is followed as far as it is.
        """
        self.matching = matching
        for token in self.generated.tolist():
            matching.follow(token)
        if len(self.generated):
            return
        num_forced = len(matching.forced)
        if (
            self.transcript is None
            and not matching.matcher.is_stopped()
            and num_forced < self.request.params.max_tokens
        ):
            self.generated = np.array(matching.forced, np.int32)
            matching.forced.clear()

    def label_choice(self, now: float) -> Choice:
        """What a sequence gives whose labels are scored: the likeliest of them."""
        constraint, scoring = self.request.params.constraint, self.scoring
        assert constraint is not None
        assert scoring is not None
        best = scoring.best
        if scoring.tell is not None:
            scoring.tell(constraint.labels[best], None, "")
        num_tokens = scoring.num_tokens[best]
        choice = self.choice(constraint.labels[best], FinishReason.STOP, num_completion_tokens=num_tokens, now=now)
        return replace(choice, label_logprobs=tuple(scoring.logprobs))

    def answer(self, choice: Choice) -> None:
        """Hand the choice to those who wait for it, each with the index it asked for."""
        self._tell(SequenceResult(self.request.key, choice=choice))
        for twin in self.twins:
            twin.answer_like(choice)

    def answer_like(self, choice: Choice) -> None:
        """Hand over the choice of a twin: nothing was computed for this one."""
        usage = replace(choice.usage, cached_tokens=len(self.prompt))
        self._tell(SequenceResult(self.request.key, choice=replace(choice, index=self.request.key[1], usage=usage)))

    def time_out(self, *, num_completion_tokens: int) -> None:
        """Tell those who wait that its deadline has passed."""
        message = (
            f"not finished after {self.request.timeout_s:g} s, with {num_completion_tokens} of at most "
            f"{self.request.params.max_tokens} tokens; give it a smaller max_tokens"
            + ("" if self.request.is_live else " or the job a longer --row-timeout")
        )
        self.fail(RowError(ErrorCode.TIMEOUT, message))

    def fail(self, error: RowError) -> None:
        """Hand the error to those who wait for its answer."""
        for sequence in (self, *self.twins):
            sequence._tell(SequenceResult(sequence.request.key, error=error))

    def _tell(self, result: SequenceResult) -> None:
        if not self.owner.is_cancelled:
            self.sink(result)
