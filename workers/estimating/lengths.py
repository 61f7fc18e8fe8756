"""How long completions become, by some of them, of which not all came to their own end.

A completion that reached its max_tokens, or was in work when the time was over, says only that its own length is more.
The estimate of Kaplan and Meier (1958) takes that into account: at each length, of all that became as long, how many
ended there. Beyond the longest, a text ends at each token as likely as it did before.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

#: Longer than any.
_ENDLESS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Length:
    """The tokens of a completion; `is_whole`: it came to its own end there."""

    num_tokens: int
    is_whole: bool


class Lengths:
    """The lengths that completions have by themselves."""

    def __init__(self, seen: Sequence[Length]) -> None:
        ends = Counter(length.num_tokens for length in seen if length.is_whole)
        tokens = np.sort(np.array([length.num_tokens for length in seen], np.int64))
        self._ends = np.array(sorted(ends), np.int64)
        num_ended = np.array([ends[end] for end in self._ends.tolist()], np.float64)
        num_reached = len(tokens) - np.searchsorted(tokens, self._ends, side="left")
        #: Of all, the share that has ended at the length beside it, or before.
        self._ended = 1 - np.cumprod(1 - num_ended / np.maximum(1, num_reached))
        #: At any token beyond.
        self._hazard = float(num_ended.sum() / max(1, tokens.sum()))

    def draw(self, max_tokens: Ints, *, seed: int) -> Ints:
        """A length for each of so many completions, which `max_tokens` bounds.

        Spread evenly: their mean is hardly one of chance, as it would be of so few that are drawn each for itself.
        """
        number = len(max_tokens)
        random = np.random.default_rng(seed)
        shares = (random.permutation(number) + 0.5) / max(1, number)
        at = np.searchsorted(self._ended, shares, side="left")
        drawn = np.full(number, _ENDLESS, np.int64)
        is_known = at < len(self._ends)
        drawn[is_known] = self._ends[at[is_known]]
        if self._hazard and not is_known.all():
            longest = int(self._ends[-1])
            drawn[~is_known] = longest + random.geometric(self._hazard, int((~is_known).sum()))
        return np.minimum(drawn, max_tokens)
