"""Which sequences run, and which of their tokens the next decode computes. Plain Python, no llama.cpp.

First come, first served: sequences enter in the order they were submitted, as slots and KV budget allow. Every running
sequence is in every step, with the token sampled last or with the next chunk of its prompt. One that must be alone
enters when all others are finished, and the next when it is.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from workers.engine.kv_cache import KvCache
from workers.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledTokens:
    """`num_tokens` of a sequence's pending tokens, to be computed in this step.

    `wants_logits` where they are its last pending ones, so that a token can be sampled.
    """

    sequence: Sequence
    num_tokens: int
    wants_logits: bool


class Scheduler:
    """Holds waiting and running sequences. All calls from the engine's thread."""

    def __init__(self, cache: KvCache, *, max_batch_tokens: int) -> None:
        assert max_batch_tokens >= cache.num_slots
        self._cache = cache
        self._max_batch_tokens = max_batch_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: dict[int, Sequence] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    def running(self) -> Iterable[Sequence]:
        """The running sequences, oldest first."""
        return self._running.values()

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences, each of which must fit the cache (`KvCache.fits`)."""
        self._waiting.extend(sequences)

    def schedule(self) -> list[ScheduledTokens]:
        """Admit what fits and lay out the next step's batch, in ascending order of slots. Mutates.

        At most `max_batch_tokens` in all: one for each decoding sequence, the rest goes to prompts, oldest first.
        """
        self._admit()
        budget = self._max_batch_tokens - len(self._running)
        share: dict[int, int] = {}
        # A dict keeps order of admission, so the prompt that came first is prefilled first.
        for slot, sequence in self._running.items():
            extra = min(sequence.num_pending - 1, budget)
            share[slot] = 1 + extra
            budget -= extra
        batch = []
        for slot in sorted(share):
            sequence = self._running[slot]
            batch.append(ScheduledTokens(sequence, share[slot], share[slot] == sequence.num_pending))
        return batch

    def finish(self, sequence: Sequence) -> None:
        """Take a running sequence out and free its slot. Its KV cells are the caller's to clear."""
        del self._running[sequence.slot]
        self._cache.release(sequence.slot)

    def drop_cancelled(self) -> list[Sequence]:
        """Take out every sequence whose owner has cancelled; returns those that were running."""
        self._waiting = deque(s for s in self._waiting if not s.owner.is_cancelled)
        dropped = [s for s in self._running.values() if s.owner.is_cancelled]
        for sequence in dropped:
            self.finish(sequence)
        return dropped

    def drop_all(self) -> list[Sequence]:
        """Take out everything, waiting and running, and return it."""
        dropped = [*self._running.values(), *self._waiting]
        self._waiting.clear()
        for sequence in list(self._running.values()):
            self.finish(sequence)
        return dropped

    def check_integrity(self) -> None:
        """Assert that slots and books agree; for tests."""
        self._cache.check_integrity()
        assert len(self._running) == self._cache.num_slots - self._cache.num_free_slots
        for slot, sequence in self._running.items():
            assert sequence.slot == slot
            assert 0 <= sequence.num_computed < len(sequence.tokens) <= sequence.num_cells
            assert len(self._running) == 1 or not sequence.request.is_alone

    def _admit(self) -> None:
        while self._waiting and self._may_enter(self._waiting[0]):
            sequence = self._waiting.popleft()
            sequence.slot = self._cache.admit(sequence.num_cells)
            self._running[sequence.slot] = sequence

    def _may_enter(self, sequence: Sequence) -> bool:
        if self._running and (sequence.request.is_alone or next(iter(self._running.values())).request.is_alone):
            return False
        return self._cache.can_admit(sequence.num_cells)
