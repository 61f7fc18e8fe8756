"""What the steps of an engine take, by what they compute."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

#: So many pieces of the time are compared, to see how much they differ.
_NUM_PIECES = 8


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the tokens of prompts that it computed, the sequences for which it drew one, and its seconds."""

    num_prompt_tokens: int
    num_drawn: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of a step: so many in any case, and for each token of a prompt and each token that is drawn.

    `spread` is by how much pieces of what was measured differ from that, as a share.
    """

    base_s: float
    prompt_token_s: float
    drawn_s: float
    spread: float = 0.0

    def of(self, *, num_prompt_tokens: float, num_drawn: float) -> float:
        """Seconds of a step that computes so much."""
        return self.base_s + self.prompt_token_s * num_prompt_tokens + self.drawn_s * num_drawn


@dataclass(slots=True)
class StepMeter:
    """Notes each step from `start` on. `add` is called in the engine's thread. Mutable."""

    clock: Callable[[], float] = time.perf_counter
    steps: list[Step] = field(default_factory=list)
    _last: float | None = None
    _is_on: bool = False

    def start(self) -> None:
        """What came before, trying the engine out, counts for nothing."""
        self._is_on = True

    def add(self, num_tokens: int, num_drawn: int) -> None:
        """A step has computed `num_tokens` and draws `num_drawn`. The first has no beginning that is known."""
        if not self._is_on:
            return
        now = self.clock()
        if self._last is not None:
            self.steps.append(Step(max(0, num_tokens - num_drawn), num_drawn, now - self._last))
        self._last = now


def fit_steps(steps: Sequence[Step]) -> StepCost:
    """The cost by which these steps, at least one, take as long as they did all together, and each about so long.

    Least squares, without negative costs: what would have one costs nothing by itself.
    """
    counts = np.array([(1, step.num_prompt_tokens, step.num_drawn) for step in steps], np.float64)
    seconds = np.array([step.seconds for step in steps], np.float64)
    costs = _fit_positive(counts, seconds)
    predicted = counts @ costs
    scale = seconds.sum() / predicted.sum() if predicted.sum() > 0 else 1.0
    base, prompt, drawn = (costs * scale).tolist()
    return StepCost(base, prompt, drawn, _spread(seconds, predicted * scale))


def _fit_positive(counts: npt.NDArray[np.float64], seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    kept = [column for column in range(counts.shape[1]) if counts[:, column].any()]
    costs = np.zeros(counts.shape[1])
    while kept:
        found = np.linalg.lstsq(counts[:, kept], seconds, rcond=None)[0]
        if (found >= 0).all():
            costs[kept] = found
            break
        kept.pop(int(found.argmin()))
    return costs


def _spread(seconds: npt.NDArray[np.float64], predicted: npt.NDArray[np.float64]) -> float:
    """By how much pieces of the time differ from what is predicted of them: the standard error of the whole."""
    cuts = np.searchsorted(np.cumsum(seconds), np.linspace(0, seconds.sum(), _NUM_PIECES + 1)[1:-1])
    pieces = zip(np.split(seconds, cuts), np.split(predicted, cuts), strict=True)
    ratios = [mine.sum() / theirs.sum() for mine, theirs in pieces if theirs.sum() > 0]
    return float(np.std(ratios) / max(1, len(ratios)) ** 0.5) if ratios else 0.0
