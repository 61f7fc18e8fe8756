"""One prompt being decoded: what was asked, how far it is, what came out."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from batcher.errors import EngineError
from batcher.types import Choice, ErrorCode, FinishReason, RowError, SamplingParams, Usage
from workers.engine.sampler import Draws
from workers.engine.text import TextBuffer


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One prompt to decode. `key` is the caller's: (position of the row in its shard, index of the choice).

    `params.seed` is resolved: an int. `timeout_s` runs from its first prefill. `is_alone`: nothing else may be computed
    in this process from its first token to its last.
    """

    key: tuple[int, int]
    prompt: str
    params: SamplingParams
    timeout_s: float | None = None
    is_alone: bool = False


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What became of a request: a choice, or the error that says why there is none."""

    key: tuple[int, int]
    choice: Choice | None = None
    error: RowError | None = None


#: Receives results in the engine's thread and must not block. An EngineError says that the engine is dead.
Sink = Callable[[SequenceResult | EngineError], None]

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

    `[0, num_computed)` of `tokens` is in the KV cache; `tokens` is the prompt followed by what was sampled.
    """

    request: SequenceRequest
    tokens: list[int]
    sink: Sink
    owner: Canceller
    on_start: OnStart = ignore_start
    num_prompt_tokens: int = 0
    num_computed: int = 0
    slot: int = -1
    started_at: float = 0.0
    deadline: float = math.inf
    text: TextBuffer = field(init=False)
    draws: Draws = field(init=False)

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.tokens)
        self.text = TextBuffer(self.request.params.stop)
        self.draws = Draws(self.request.params.seed or 0)

    @property
    def num_cells(self) -> int:
        """The KV cells it may need: prompt and `max_tokens`."""
        return self.num_prompt_tokens + self.request.params.max_tokens

    @property
    def num_pending(self) -> int:
        """Tokens that are known but not yet computed: the rest of the prompt, or the one sampled last."""
        return len(self.tokens) - self.num_computed

    @property
    def num_completion_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens

    def start(self, now: float) -> None:
        """Note that its first tokens are about to be computed. `now` and `deadline` are by the engine's clock."""
        self.started_at = now
        if self.request.timeout_s is not None:
            self.deadline = now + self.request.timeout_s
        self.on_start(self.request)

    def append(self, token: int, piece: bytes, *, is_end: bool) -> FinishReason | None:
        """Take a sampled token. Returns why the sequence is finished, or None if it goes on.

        The end-of-generation token itself is neither text nor counted.
        """
        if is_end:
            return FinishReason.STOP
        self.tokens.append(token)
        if self.text.append(piece):
            return FinishReason.STOP
        if self.num_completion_tokens >= self.request.params.max_tokens:
            return FinishReason.LENGTH
        return None

    def finish(self, reason: FinishReason, *, now: float) -> SequenceResult:
        """The result of a finished sequence."""
        usage = Usage(self.num_prompt_tokens, self.num_completion_tokens)
        latency_ms = (now - self.started_at) * 1000
        choice = Choice(self.request.key[1], self.text.text(), reason, usage, latency_ms)
        return SequenceResult(self.request.key, choice=choice)

    def time_out(self) -> SequenceResult:
        """The result of a sequence whose deadline has passed."""
        message = (
            f"not finished after {self.request.timeout_s:g} s, with {self.num_completion_tokens} of at most "
            f"{self.request.params.max_tokens} tokens; give it a smaller max_tokens or the job a longer --row-timeout"
        )
        return SequenceResult(self.request.key, error=RowError(ErrorCode.TIMEOUT, message))
