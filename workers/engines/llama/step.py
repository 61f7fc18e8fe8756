"""A step as the scheduler plans it, and as model and sampler carry it out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.engines.llama.kv_cache import Placement, Tokens
from workers.engines.llama.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PromptLogits:
    """The tokens of prompts whose logits a step wants, to score the tokens behind them.

    One entry a token: `rows` says where its logits are among those of the step, `next_tokens` what follows it.
    `ready_rows` has the rows of the sequences that get a token sampled, in their order.
    """

    rows: npt.NDArray[np.intp]
    slots: Tokens
    positions: Tokens
    next_tokens: Tokens
    ready_rows: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one decode computes, after `placements` were made in their order.

    One entry a token, in ascending order of slots: `tokens`, `positions`, `slots` and `wants_logits`. `counts` has how
    many of them belong to each running sequence, by slot. `ready` are the sequences that get a token sampled, in order
    of their slots; `started` those of which nothing was computed before. `to_score` None: no logits are wanted but
    those to sample from.
    """

    tokens: Tokens
    positions: Tokens
    slots: Tokens
    wants_logits: npt.NDArray[np.int8]
    counts: Tokens
    ready: tuple[Sequence, ...]
    started: tuple[Sequence, ...]
    placements: tuple[Placement, ...]
    to_score: PromptLogits | None = None

    @property
    def num_logits(self) -> int:
        """How many tokens want logits."""
        return len(self.ready) + (0 if self.to_score is None else len(self.to_score.rows))
