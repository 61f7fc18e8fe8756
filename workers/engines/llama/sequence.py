"""One prompt being decoded: what was asked, how far it is, what came out."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from batcher.errors import EngineError
from batcher.types import Choice, ErrorCode, FinishReason, RowError, SamplingParams, TokenLogprob, Usage
from workers.engines.llama.kv_cache import Tokens
from workers.engines.llama.sampling.sampler import Draws
from workers.engines.llama.sampling.transcript import Transcript

_NO_TOKENS: Tokens = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One prompt to decode. `key` is the caller's: (position of the row in its shard, number of the sequence).

    Its tokens are drawn by its own `seed`; the `seed`, `n`, `best_of` and `echo` of `params` are the caller's business,
    so that many requests can have the same `params`. Of a chat (`is_chat`) the prompt is the JSON text of its messages,
    of token ids (`is_token_ids`) that of an array of them. With `is_echoing` the text of the answer begins with the
    prompt's, and with `scores_prompt` its log-probabilities with those of the prompt's tokens.
    `timeout_s` runs from its first prefill. `is_live`: somebody waits for it, so it goes before those that are not.
    `is_alone`: nothing else may be computed in this process from its first token to its last.
    """

    key: tuple[int, int]
    prompt: str
    params: SamplingParams
    seed: int = 0
    timeout_s: float | None = None
    is_alone: bool = False
    is_live: bool = False
    is_chat: bool = False
    is_token_ids: bool = False
    is_echoing: bool = False
    scores_prompt: bool = False


@dataclass(frozen=True, slots=True)
class SequenceDelta:
    """What the text of a request has gained, and the log-probabilities of its tokens, if they were asked for."""

    key: tuple[int, int]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What became of a request: a choice, or the error that says why there is none."""

    key: tuple[int, int]
    choice: Choice | None = None
    error: RowError | None = None


#: Equal for requests that must get the same answer.
TwinKey = tuple[object, ...]

#: Receives results in the engine's thread and must not block. An EngineError says that the engine is dead.
Sink = Callable[[SequenceResult | EngineError], None]

#: Receives text in the engine's thread as it comes, and must not block.
OnDelta = Callable[[SequenceDelta], None]

#: Told in the engine's thread of a request whose first tokens are about to be computed; must not block.
OnStart = Callable[[SequenceRequest], None]


def ignore_start(_request: SequenceRequest) -> None:
    """An `OnStart` for callers that keep no journal."""


class Canceller(Protocol):
    """Whatever can say that a sequence's owner has lost interest."""

    @property
    def is_cancelled(self) -> bool: ...


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
    owner: Canceller
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
    draws: Draws = field(init=False)

    def __post_init__(self) -> None:
        self.draws = Draws(self.request.seed)

    @property
    def num_cells(self) -> int:
        """The KV cells it may need: prompt and `max_tokens`."""
        return len(self.prompt) + self.request.params.max_tokens

    @property
    def num_to_score(self) -> int:
        """How many tokens of its prompt are to be scored: those that another follows, or none."""
        return len(self.prompt) - 1 if self.request.scores_prompt and not self.is_echoed else 0

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
        return Choice(self.request.key[1], text, reason, usage, (now - self.started_at) * 1000, logprobs)

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
        for sequence in (self, *self.twins):
            sequence._tell(SequenceResult(sequence.request.key, error=RowError(ErrorCode.TIMEOUT, message)))

    def _tell(self, result: SequenceResult) -> None:
        if not self.owner.is_cancelled:
            self.sink(result)
