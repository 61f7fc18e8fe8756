"""What a request adds to the logits before a token is sampled: its bias, and penalties for what it has generated.

By the documented formula: a token that was generated c times loses c * frequency_penalty, and presence_penalty once if
c is not 0. Tokens of the prompt do not count.
"""

import numpy as np

from batcher.types import SamplingParams
from workers.engine.sampler import Floats


class Adjustment:
    """The additions to one sequence's logits, by token. Mutable."""

    __slots__ = ("_added", "_frequency", "_ids", "_presence", "_seen", "_values")

    def __init__(self, params: SamplingParams) -> None:
        self._presence = params.presence_penalty
        self._frequency = params.frequency_penalty
        self._added = dict(params.logit_bias)
        self._seen: set[int] = set()
        self._freeze()

    def count(self, token: int) -> None:
        """Note a generated token."""
        if not (self._presence or self._frequency):
            return
        first = 0.0 if token in self._seen else self._presence
        self._seen.add(token)
        self._added[token] = self._added.get(token, 0.0) - first - self._frequency
        self._freeze()

    def apply(self, logits: Floats) -> Floats:
        """A copy of `logits` with the additions. Shape: (vocabulary size,)."""
        adjusted = logits.copy()
        adjusted[self._ids] += self._values
        return adjusted

    def _freeze(self) -> None:
        self._ids = np.fromiter(self._added.keys(), np.intp, len(self._added))
        self._values = np.fromiter(self._added.values(), np.float32, len(self._added))


def adjustment_of(params: SamplingParams) -> Adjustment | None:
    """None for a request that adds nothing."""
    if params.logit_bias or params.presence_penalty or params.frequency_penalty:
        return Adjustment(params)
    return None
