"""Raw rows -> those of them that a job is to have, with the numbers that they have in the input.

A sample is drawn in one pass, whatever the input is: a file, a stream, or rows of somebody's generator. What may be in
it waits in a temporary file, on the disk only where it is large, so memory holds a number a row of the sample. Which
rows are drawn depends on the seed and on how many rows there are, and on nothing else: the same rows in another kind of
file, or with another prompt, are the same sample. Bad rows are rows.
"""

import math
import pickle
import random
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from batcher.arrow.tables import take_rows
from batcher.errors import StorageError
from batcher.jobdir.store import reason
from batcher.paths import temp_folder
from batcher.selection import RowSelection
from batcher.submission.readers.raw_rows import LineBatch, Origin, TableBatch

#: Of the rows that may be in a sample, so much stays in memory.
_HELD_BYTES = 32 << 20

_RANDOM_BITS = 52


@dataclass(frozen=True, slots=True)
class NumberedBatch:
    """Raw rows, and the number in the input of each, from 0, ascending."""

    rows: Sequence[int]
    batch: LineBatch | TableBatch


def select_rows(
    batches: Iterable[LineBatch | TableBatch], selection: RowSelection, *, seed: int
) -> Iterator[NumberedBatch]:
    """The rows that `selection` wants, in order. Reads no further than it must, which for a sample is to the end.

    Raises StorageError where a temporary file can't be written, and what `batches` raises.
    """
    numbered = _number(batches)
    if selection.limit is not None:
        return _first(numbered, selection.limit)
    return numbered if selection.sample is None else _sample(numbered, selection.sample, seed=seed)


def _number(batches: Iterable[LineBatch | TableBatch]) -> Iterator[NumberedBatch]:
    first = 0
    for batch in batches:
        rows = range(first, first + len(batch.origin.numbers))
        first = rows.stop
        yield NumberedBatch(rows, batch)


def _first(batches: Iterator[NumberedBatch], number: int) -> Iterator[NumberedBatch]:
    for each in batches:
        if each.rows[-1] + 1 < number:
            yield each
            continue
        yield _take(each, range(number - each.rows[0]))
        return


def _sample(batches: Iterator[NumberedBatch], number: int, *, seed: int) -> Iterator[NumberedBatch]:
    reservoir = Reservoir(number, seed=seed)
    with tempfile.SpooledTemporaryFile(_HELD_BYTES, dir=str(temp_folder())) as spool:
        for each in batches:
            if positions := reservoir.add(len(each.rows)):
                try:
                    pickle.dump(_take(each, positions), spool)
                except OSError as exc:
                    raise StorageError(f"{temp_folder()}: cannot write a temporary file: {reason(exc)}") from exc
        drawn = reservoir.drawn
        end = spool.tell()
        spool.seek(0)
        while spool.tell() < end:
            each = pickle.load(spool)  # noqa: S301 (our own, in a file without a name)
            positions = [position for position, row in enumerate(each.rows) if row in drawn]
            if positions:
                yield _take(each, positions)


def _take(numbered: NumberedBatch, positions: Sequence[int]) -> NumberedBatch:
    """The rows at these positions, which ascend."""
    rows, batch = numbered.rows, numbered.batch
    origin = Origin(batch.origin.file, batch.origin.separator, [batch.origin.numbers[at] for at in positions])
    taken: LineBatch | TableBatch
    if isinstance(batch, LineBatch):
        taken = replace(batch, origin=origin, lines=[batch.lines[at] for at in positions])
    else:
        broken = {new: batch.broken[at] for new, at in enumerate(positions) if at in batch.broken}
        taken = replace(batch, origin=origin, table=take_rows(batch.table, positions), broken=broken)
    return NumberedBatch([rows[at] for at in positions], taken)


class Reservoir:
    """Draws `size` of as many things as will come, each as likely as any other. Mutable.

    Algorithm L (Li 1994, "Reservoir-sampling algorithms of time complexity O(n(1 + log(N/n)))"): it draws how many
    things to pass over, so those that pass cost nothing.
    """

    def __init__(self, size: int, *, seed: int) -> None:
        self._size = size
        # Its bits are the same in every version of Python, which what is made of them need not be.
        self._random = random.Random(seed)  # noqa: S311 (no secret)
        self._held: list[int] = []
        self._num_seen = 0
        self._log_weight = 0.0
        self._next = size - 1
        self._pass_over()

    @property
    def drawn(self) -> frozenset[int]:
        """The numbers of those that are drawn, of all that came so far."""
        return frozenset(self._held)

    def add(self, number: int) -> list[int]:
        """Let the next `number` of things come. Returns which of them are drawn, until others take their places."""
        first, end = self._num_seen, self._num_seen + number
        self._num_seen = end
        entering = list(range(first, min(end, self._size)))
        self._held += entering
        while self._next < end:
            self._held[int(self._uniform() * self._size)] = self._next
            entering.append(self._next)
            self._pass_over()
        return [each - first for each in entering]

    def _pass_over(self) -> None:
        self._log_weight += math.log(self._uniform()) / self._size
        weight = math.exp(self._log_weight)
        # Rounded, it may be 1: then the next one enters.
        self._next += 1 + (int(math.log(self._uniform()) / math.log1p(-weight)) if weight < 1 else 0)

    def _uniform(self) -> float:
        """From the open interval (0, 1)."""
        return (self._random.getrandbits(_RANDOM_BITS) + 0.5) / float(1 << _RANDOM_BITS)
