"""A step as the scheduler plans it, and as model and sampler carry it out."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.engines.llama.kv_cache import Placement, Tokens
from workers.engines.llama.sampling.logits import Floats, NotANumberError
from workers.engines.llama.scores import ScoreTable
from workers.engines.llama.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PromptLogits:
    """The tokens of prompts whose logits a step wants, to score the tokens behind them.

    One entry a token: `rows` says where its logits are among those of the step, `next_tokens` what follows it.
    """

    rows: npt.NDArray[np.intp]
    slots: Tokens
    positions: Tokens
    next_tokens: Tokens


@dataclass(frozen=True, slots=True)
class LabelLogits:
    """The places of labels that a step reaches: for each the row of its logits, and whose it is.
    Those of one sequence are in order."""

    rows: tuple[int, ...]
    sequences: tuple[Sequence, ...]


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one decode computes, after `placements` were made in their order.

    One entry a token, in ascending order of slots: `tokens`, `positions`, `slots` and `wants_logits`. `counts` has how
    many of them belong to each running sequence, by slot. `ready` are the sequences that get a token sampled, in order
    of their slots; `started` those of which nothing was computed before. `ready_rows` says which rows of the logits are
    theirs; None: all. `to_score` and `to_label` None: nothing is to be scored.
    """

    tokens: Tokens
    positions: Tokens
    slots: Tokens
    wants_logits: npt.NDArray[np.int8]
    counts: Tokens
    ready: tuple[Sequence, ...]
    started: tuple[Sequence, ...]
    placements: tuple[Placement, ...]
    ready_rows: npt.NDArray[np.intp] | None = None
    to_score: PromptLogits | None = None
    to_label: LabelLogits | None = None

    @property
    def num_logits(self) -> int:
        """How many tokens want logits."""
        return len(self.ready) if self.ready_rows is None else int(np.count_nonzero(self.wants_logits))

    def score(self, logits: Floats, table: ScoreTable) -> set[int]:
        """Note in `table` what `logits` say of prompts, and what they say of labels where those are scored. Shape: (n,
        vocabulary size). Returns the slots of rows that hold what is no number."""
        spoiled: set[int] = set()
        if (wanted := self.to_score) is not None:
            spoiled |= table.put(
                *(logits, wanted.rows),
                slots=wanted.slots,
                positions=wanted.positions,
                next_tokens=wanted.next_tokens,
            )
        if (places := self.to_label) is not None:
            for row, sequence in zip(places.rows, places.sequences, strict=True):
                assert sequence.scoring is not None
                try:
                    sequence.scoring.note(logits[row])
                except NotANumberError:
                    spoiled.add(sequence.slot)
        return spoiled
