"""Which tokens may come next in the sequences of a step that have a constraint: computed while the model decodes.

They depend on what was taken before, and not on the step's logits. A mask is a bit for each token of the vocabulary.
"""

from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from workers.engines.llama.grammars import Matching
from workers.engines.llama.sampling.sampler import Ruling
from workers.engines.llama.sequence import Sequence

#: With more threads, what each does under Python's lock is all that counts.
_MAX_THREADS = 4


class Masks:
    """Of the sequences that get a token in a step. One caller at a time; `num_rows` at most in a step."""

    def __init__(self, *, num_rows: int, vocab_size: int, num_threads: int) -> None:
        # Zeros take no memory until they are written.
        self._bits = np.zeros((num_rows, -(-vocab_size // 32)), np.uint32)
        self._num_threads = min(num_threads, _MAX_THREADS)
        self._threads = ThreadPoolExecutor(self._num_threads, "masks")

    def start(self, ready: Rows[Sequence]) -> "Rulings | None":
        """Begin with those of `ready`; None where none of them has a constraint."""
        if not any(sequence.matching for sequence in ready):
            return None
        matchings = [sequence.ruling for sequence in ready]
        due = [(at, each) for at, each in enumerate(matchings) if each is not None and not each.forced]
        parts = [due[start :: self._num_threads] for start in range(min(self._num_threads, len(due)))]
        return Rulings(matchings, self._bits, [self._threads.submit(self._fill, part) for part in parts])

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _fill(self, due: Rows[tuple[int, Matching]]) -> None:
        for at, matching in due:
            matching.fill(self._bits[at])


class Rulings:
    """The masks of one step, valid until the next is begun."""

    def __init__(
        self, matchings: Rows[Matching | None], bits: npt.NDArray[np.uint32], parts: Rows["Future[None]"]
    ) -> None:
        self._matchings = matchings
        self._bits = bits
        self._parts = parts

    def wait(self, *, end: int) -> list[Ruling]:
        """What may come in each row: None for all, a mask, or the one token that must. Blocks until it is known.

        `end` stands where nothing may come: the matching has the problem then.
        """
        for part in self._parts:
            part.result()
        return [
            None if matching is None else self._ruling(at, matching, end) for at, matching in enumerate(self._matchings)
        ]

    def _ruling(self, at: int, matching: Matching, end: int) -> Ruling:
        if matching.forced:
            return matching.forced[0]
        matching.is_stuck = not self._bits[at].any()
        return end if matching.is_stuck else self._bits[at]
