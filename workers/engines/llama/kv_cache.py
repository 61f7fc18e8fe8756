"""Slots, and the tokens whose KV cells each of them holds. Plain numpy, no llama.cpp.

A slot is a llama.cpp sequence id with a stream of KV cells of its own, so a running sequence is never evicted and no
request can take another's room. Cells outlive their sequence: a slot that is free still holds its tokens until another
takes it, and a prompt that begins like any slot's tokens, running or free, starts from a copy of those cells.

The prefix index is this table itself: one comparison of a prompt with all slots at once takes tens of microseconds,
where a step takes tens of milliseconds, and there is no second structure that could disagree with the cells.

Slots are given lowest first: llama.cpp computes a batch in one pass only over contiguous, ascending sequence ids
(docs/performance.md has what a gap costs).
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.engines.llama.scores import ScoreTable

#: Token ids, or positions: llama.cpp's int32.
Tokens = npt.NDArray[np.int32]

#: Fewer tokens than this are computed again rather than copied: a copy costs about as much as computing ten.
MIN_SHARED_TOKENS = 32

#: A copy moves all cells of a slot, used or not, so where there are many it must save more.
_CELLS_PER_SHARED_TOKEN = 64


@dataclass(frozen=True, slots=True)
class Match:
    """How much of a prompt's beginning is there: `num_cached` tokens computed in `slot`, `num_coming` in some other.

    Those that come are tokens of running prompts, of which only a part may be computed yet.
    """

    slot: int
    num_cached: int
    num_coming: int


@dataclass(frozen=True, slots=True)
class Placement:
    """What the cells of `target` must hold before the next decode: the first `num_kept` of `source`, and no more.

    `source` and `target` may be the same.
    """

    source: int
    target: int
    num_kept: int


NO_MATCH = Match(-1, 0, 0)


class KvCache:
    """Book-keeping of one llama.cpp context: `num_slots` sequences of at most `cells_per_sequence` tokens.

    The arrays are read and written by the scheduler too, one entry a slot:

    tokens        shape (num_slots, cells_per_sequence): the known tokens of each slot, prompt and completion
    num_tokens    how many of them are known
    num_computed  how many of them are in KV cells: `[0, num_computed)`
    num_prompt    how many are the prompt of the running sequence; 0 where the slot is free
    limit         prompt and max_tokens of the running sequence
    num_to_score  how many tokens of the running sequence's prompt are to have scores: all but the last, or none
    num_scored    how many have: `[0, num_scored)`
    first_wanted  from which position on the logits behind each token are wanted, for labels; `cells_per_sequence` where
                  none are but those behind the last

    Without `is_sharing` no prompt starts from another's cells: llama.cpp can't cut the memory of some models.
    """

    def __init__(self, *, num_slots: int, cells_per_sequence: int, is_sharing: bool = True) -> None:
        self.num_slots = num_slots
        self.cells_per_sequence = cells_per_sequence
        self.is_sharing = is_sharing
        self.min_shared_tokens = max(MIN_SHARED_TOKENS, cells_per_sequence // _CELLS_PER_SHARED_TOKEN)
        self.tokens: Tokens = np.full((num_slots, cells_per_sequence), -1, np.int32)
        self.num_tokens: Tokens = np.zeros(num_slots, np.int32)
        self.num_computed: Tokens = np.zeros(num_slots, np.int32)
        self.num_prompt: Tokens = np.zeros(num_slots, np.int32)
        self.limit: Tokens = np.zeros(num_slots, np.int32)
        self.num_to_score: Tokens = np.zeros(num_slots, np.int32)
        self.num_scored: Tokens = np.zeros(num_slots, np.int32)
        self.first_wanted: Tokens = np.full(num_slots, cells_per_sequence, np.int32)
        self.scores = ScoreTable(num_slots=num_slots, cells=cells_per_sequence)
        self._free = list(range(num_slots))
        #: By slot, the number of the admission that last wrote or copied its cells.
        self._last_use: Tokens = np.zeros(num_slots, np.int32)
        self._num_admissions = 0

    @property
    def num_free_slots(self) -> int:
        return len(self._free)

    def wants_scores(self, slots: Tokens) -> bool:
        """Whether in any of `slots` a prompt is to be scored, or labels."""
        wants_labels = self.first_wanted[slots] < self.cells_per_sequence
        return bool((wants_labels | (self.num_to_score[slots] > 0)).any())

    def match(self, prompt: Tokens, *, is_scoring: bool = False) -> Match:
        """Where the beginning of `prompt` is. Never all of it: the last token is computed anew, for its logits.

        Less than `min_shared_tokens` in common counts as nothing. With `is_scoring` only tokens count that have scores
        as well, or get them.
        """
        num_head, limit = self.min_shared_tokens, len(prompt) - 1
        if not self.is_sharing or limit < num_head:
            return NO_MATCH
        slots = np.flatnonzero((self.tokens[:, :num_head] == prompt[:num_head]).all(axis=1))
        if not len(slots):
            return NO_MATCH
        differs = self.tokens[slots, :limit] != prompt[:limit]
        num_common = np.where(differs.any(axis=1), differs.argmax(axis=1), limit)
        if is_scoring:
            # Not the last in common: its row has the log-probability of a token that follows in the other prompt.
            num_common = num_common - 1
            cached = np.minimum(num_common, self.num_scored[slots])
            coming = int(np.minimum(num_common, np.maximum(self.num_scored, self.num_to_score)[slots]).max())
        else:
            cached = np.minimum(num_common, self.num_computed[slots])
            coming = int(np.minimum(num_common, self.num_prompt[slots]).max())
        best = int(cached.argmax())
        num_cached = int(cached[best])
        if num_cached < num_head:
            num_cached = 0
        return Match(int(slots[best]), num_cached, coming)

    def admit(
        self,
        known: Tokens,
        *,
        limit: int,
        num_generated: int = 0,
        num_to_score: int = 0,
        num_wanted: int = 0,
        match: Match = NO_MATCH,
        takes_any: bool = False,
    ) -> Placement:
        """Give a sequence a slot, its cells taken over from where `match` found them. Mutates.

        Of its `known` tokens the last `num_generated` are no prompt; it has at most `limit` in all. The first
        `num_to_score` are to be scored, and the logits behind the last `num_wanted` are for labels; `match` was found
        accordingly. The slot is the lowest free one. With `takes_any` it is the matching one if that is free, as no
        copy is needed there, else the free one whose cells were of no use for longest.
        """
        num_known = len(known)
        assert num_known <= limit <= self.cells_per_sequence
        target = self._free[0]
        if takes_any:
            is_in_place = match.num_cached > 0 and not self.num_prompt[match.slot]
            target = match.slot if is_in_place else min(self._free, key=self._last_use.item)
        source = match.slot if match.num_cached else target
        self._num_admissions += 1
        self._last_use[[source, target]] = self._num_admissions
        self._free.remove(target)
        self.tokens[target, :num_known] = known
        self.num_tokens[target] = num_known
        self.num_prompt[target] = num_known - num_generated
        self.num_computed[target] = match.num_cached
        self.limit[target] = limit
        self.num_to_score[target] = num_to_score
        self.num_scored[target] = match.num_cached if num_to_score else 0
        self.first_wanted[target] = num_known - num_wanted if num_wanted else self.cells_per_sequence
        self.scores.copy(source, target, int(self.num_scored[target]))
        return Placement(source, target, match.num_cached)

    def release(self, slot: int) -> None:
        """Give back a slot; what was computed stays in its cells until it is given away. Mutates."""
        assert self.num_prompt[slot]
        self.num_tokens[slot] = self.num_computed[slot]
        self.num_prompt[slot] = self.limit[slot] = self.num_to_score[slot] = 0
        self.first_wanted[slot] = self.cells_per_sequence
        bisect.insort(self._free, slot)

    def go_back(self, slot: int, completion: Sequence[int], *, num_wanted: int) -> Placement | None:
        """Have a running sequence go on with `completion` behind its prompt, for the logits behind its last
        `num_wanted` tokens, none of which is computed. Mutates. Returns what is to be done to its cells, if any."""
        start = int(self.num_prompt[slot])
        num_computed = int(self.num_computed[slot])
        end = start + len(completion)
        pairs = zip(self.tokens[slot, start:num_computed].tolist(), completion, strict=False)
        num_kept = start + sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.tokens[slot, start:end] = completion
        self.num_tokens[slot] = end
        self.first_wanted[slot] = end - num_wanted
        if num_kept == num_computed:
            return None
        # What is to be kept can't be where llama.cpp can't cut.
        self.num_computed[slot] = num_kept if self.is_sharing else 0
        return Placement(slot, slot, int(self.num_computed[slot]))

    def forget(self, slot: int) -> None:
        """Have no prompt start from the cells of a free slot. Mutates."""
        assert not self.num_prompt[slot]
        self.num_tokens[slot] = self.num_computed[slot] = self.num_scored[slot] = 0

    def lowest_free(self) -> int:
        """The slot given next; `num_slots` if none is free."""
        return self._free[0] if self._free else self.num_slots

    def move(self, source: int) -> Placement:
        """Move a running sequence to the lowest free slot. Mutates."""
        target = self._free.pop(0)
        for column in (
            *(self.tokens, self.num_tokens, self.num_computed, self.num_prompt, self.limit),
            *(self.num_to_score, self.num_scored, self.first_wanted),
        ):
            column[target] = column[source]
        self.scores.copy(source, target, int(self.num_scored[target]))
        self.release(source)
        return Placement(source, target, int(self.num_computed[target]))

    def check_integrity(self) -> None:
        """Assert that the books balance; for tests."""
        assert self._free == sorted(set(self._free))
        assert self._free == np.flatnonzero(self.num_prompt == 0).tolist()
        assert (self.num_computed >= 0).all()
        assert (self.num_computed <= self.num_tokens).all()
        assert (self.num_tokens <= self.cells_per_sequence).all()
        running = np.flatnonzero(self.num_prompt)
        assert (self.num_computed < self.num_tokens)[running].all()
        assert (self.num_prompt <= self.num_tokens)[running].all()
        assert (self.num_tokens <= self.limit)[running].all()
        assert (self.limit <= self.cells_per_sequence).all()
        assert (self.num_scored <= self.num_computed).all()
        assert (self.first_wanted[self.num_prompt == 0] == self.cells_per_sequence).all()
        assert (self.num_to_score <= np.maximum(self.num_prompt - 1, 0)).all()
        is_right = self.num_scored == np.minimum(self.num_to_score, self.num_computed)
        assert is_right[running].all()
        for slot in range(self.num_slots):
            assert (self.tokens[slot, : self.num_tokens[slot]] >= 0).all()
