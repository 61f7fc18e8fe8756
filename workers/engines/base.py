"""What a runner asks of any engine, whatever computes: `Engine`, and what passes between the two.

The runner of shards, live requests and the worker's process know engines by this alone; `open` makes them. An engine
takes *sequences*: one prompt, completed once. What it can't do for them it says in `abilities`: a request that needs
more gets an error result, like any other that can't run.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Flag, auto
from typing import Protocol

from batcher.errors import EngineError
from batcher.types import (
    Choice,
    ConstraintKind,
    EngineStats,
    ErrorCode,
    FunctionCall,
    RowError,
    SamplingParams,
    TokenLogprob,
)


class Ability(Flag):
    """What not every engine can. Of the first three no answer depends; the others are what a request may need."""

    #: Live requests go before all that are not.
    PRIORITY = auto()
    #: Equal requests are computed once.
    DEDUPLICATION = auto()
    #: What prompts have in common at their beginning is computed once.
    PREFIX_SHARING = auto()
    #: Prompts that are token ids.
    TOKEN_IDS = auto()
    #: Answers that begin with the prompt, as what the model's tokens stand for.
    ECHO = auto()
    #: Log-probabilities of the prompt's tokens.
    PROMPT_SCORES = auto()
    #: The probabilities of given labels, in place of a text that is drawn.
    LABEL_SCORES = auto()
    #: Calls of functions.
    TOOLS = auto()


ALL_ABILITIES = ~Ability(0)

#: What a request that needs it is told where it is missing.
_MISSING = {
    Ability.TOKEN_IDS: "prompt: this engine takes no token ids; send the prompt as text",
    Ability.PROMPT_SCORES: "logprobs: this engine gives none of the prompt's tokens; leave out echo or logprobs",
    Ability.LABEL_SCORES: "scores: this engine can't tell the probabilities of labels; leave scores out",
    Ability.TOOLS: "tools: this engine can't call functions; leave it out",
    Ability.ECHO: "echo: this engine can't put the prompt before the text; leave it out",
}


@dataclass(frozen=True, slots=True)
class SequenceRequest:
    """One prompt to decode. `key` is the caller's: (position of the row in its shard, number of the sequence).

    Its tokens are drawn by its own `seed`; the `seed`, `n`, `best_of` and `echo` of `params` are the caller's business,
    so that many requests can have the same `params`. Of a chat (`is_chat`) the prompt is the JSON text of its messages,
    of token ids (`is_token_ids`) that of an array of them. With `is_echoing` the text of the answer begins with the
    prompt's, and with `scores_prompt` its log-probabilities with those of the prompt's tokens.
    `timeout_s` runs from its first prefill. `is_live`: somebody waits for it, so it goes before those that are not;
    among those slots go round by `client`.
    `is_alone`: nothing else may be computed in this process from its first token to its last.
    """

    key: tuple[int, int]
    prompt: str
    params: SamplingParams
    seed: int = 0
    timeout_s: float | None = None
    is_alone: bool = False
    is_live: bool = False
    client: str = ""
    is_chat: bool = False
    is_token_ids: bool = False
    is_echoing: bool = False
    scores_prompt: bool = False

    @property
    def needs(self) -> Ability:
        """The abilities without which there is no answer to it."""
        needs = Ability(0)
        if self.is_token_ids:
            needs |= Ability.TOKEN_IDS
        if self.is_echoing:
            needs |= Ability.ECHO
        if self.scores_prompt:
            needs |= Ability.PROMPT_SCORES
        if (constraint := self.params.constraint) and constraint.kind is ConstraintKind.SCORED_CHOICE:
            needs |= Ability.LABEL_SCORES
        if self.params.tools is not None:
            needs |= Ability.TOOLS
        return needs


@dataclass(frozen=True, slots=True)
class SequenceDelta:
    """What the text of a request has gained, and the log-probabilities of its tokens, if they were asked for.

    `reasoning` is what its thoughts have gained, before the text, where they are told from it, and `call` what its call
    has gained, as in `Delta`.
    """

    key: tuple[int, int]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None
    reasoning: str = ""
    call: FunctionCall | None = None


@dataclass(frozen=True, slots=True)
class SequenceResult:
    """What became of a request: a choice, whose index is the number of the sequence, or why there is none."""

    key: tuple[int, int]
    choice: Choice | None = None
    error: RowError | None = None


#: Receives results in a thread of the engine's and must not block. An EngineError says that the engine is dead.
Sink = Callable[[SequenceResult | EngineError], None]

#: Receives text in a thread of the engine's as it comes, and must not block.
OnDelta = Callable[[SequenceDelta], None]

#: Told in a thread of the engine's of a request whose first tokens are about to be computed; must not block.
OnStart = Callable[[SequenceRequest], None]


def ignore_start(_request: SequenceRequest) -> None:
    """An `OnStart` for callers that keep no journal."""


class Ticket:
    """The caller's hold on what it submitted. `wake` tells the engine of the cancellation, `count` says how many tokens
    are generated for what is running."""

    def __init__(
        self, wake: Callable[[], None] = lambda: None, count: Callable[["Ticket"], int] = lambda ticket: 0
    ) -> None:
        self.is_cancelled = False
        self._wake = wake
        self._count = count

    @property
    def num_tokens(self) -> int:
        """Completion tokens so far of what has no result yet, or 0. For any thread; a moment's guess."""
        return self._count(self)

    def cancel(self) -> None:
        """Drop what is waiting or running. A result may still come for a sequence that finishes at this very moment."""
        self.is_cancelled = True
        self._wake()


class Engine(Protocol):
    """Completes sequences for any number of callers. For all threads.

    Every engine passes the contract in tests/support/engine_contract.py.
    """

    @property
    def name(self) -> str:
        """The name of the model."""
        ...

    @property
    def abilities(self) -> Ability:
        """What it can."""
        ...

    @property
    def system_fingerprint(self) -> str | None:
        """What computes, in a few characters; None where nobody knows."""
        ...

    @property
    def num_slots(self) -> int:
        """How many sequences it computes at a time."""
        ...

    @property
    def num_steps(self) -> int:
        """How often it has moved: grows while it `is_busy`, or the process is ended after a while."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether there is something to compute; a moment's guess."""
        ...

    @property
    def longest_step_s(self) -> float:
        """The longest that it took from one step to the next, or is expected to take."""
        ...

    def start(self) -> None:
        """Be ready to compute, blocking until that is sure. Called once, first. Raises ModelError."""
        ...

    def submit(
        self,
        requests: Iterable[SequenceRequest],
        sink: Sink,
        *,
        on_start: OnStart = ignore_start,
        on_delta: OnDelta | None = None,
        is_alone: bool = False,
    ) -> Ticket:
        """Queue requests; each gets one result in `sink`, in any order, unless the ticket is cancelled before.

        Does not wait for results, but may take the time to tokenize: each request is taken from `requests` just before
        that. What can never run has its error result at once. `on_delta` gets the texts as they come, which together
        are those of the choices. `is_alone`: as all of `requests` say of themselves. Raises EngineError where the
        engine is dead; one that dies later sends each open ticket's sink one EngineError.
        """
        ...

    def stats(self) -> EngineStats:
        """The engine at about this moment."""
        ...

    def close(self) -> None:
        """Stop and free what it holds; what is unfinished gets an EngineError. Not to be used any more."""
        ...


def find_missing(request: SequenceRequest, abilities: Ability) -> RowError | None:
    """Why an engine of these abilities can't answer the request; None where it can."""
    missing = request.needs & ~abilities
    return next(
        (RowError(ErrorCode.INVALID_REQUEST, why) for ability, why in _MISSING.items() if ability in missing), None
    )
