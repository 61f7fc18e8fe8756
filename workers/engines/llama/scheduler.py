"""Which sequences run, and which of their tokens the next decode computes. Plain numpy, no llama.cpp.

Sequences enter in the order of `ordering`, as slots allow. One whose prompt begins like another that is still being
computed waits for that one, and starts from a copy. Every running sequence is in every step, with the token sampled
last or with the next chunk of its prompt. One that must be alone enters when all others are finished, and the next
when it is.

Live sequences, for which somebody waits, go first: into free slots, then into those of batch sequences, which leave
theirs and are taken up again where they were, those first that have computed least and have not given way yet. A
quarter of the slots stays with the batch, so that it moves on under any load; where that is none, each of it gives way
only once. Among live ones slots go round by client (`turns`), and who has none takes one of the client with most, if
that has two or more. There, too, each gives way only once.

A step costs the same few array operations however many sequences run: nothing here loops over tokens.
"""

import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from workers.engines.base import Ticket
from workers.engines.llama.kv_cache import NO_MATCH, KvCache, Match, Placement, Tokens
from workers.engines.llama.ordering import order
from workers.engines.llama.sequence import Sequence
from workers.engines.llama.step import LabelLogits, PromptLogits, StepBatch
from workers.engines.llama.turns import Turns

#: Sequences are overtaken by those of later arrivals, but no longer by those that came so many arrivals later.
_MAX_ARRIVALS_AHEAD = 2

#: The part of the slots that live sequences leave to others: one in so many.
_BATCH_SHARE = 4

#: With fewer slots than that, a batch sequence goes before live ones after so many steps in which none ran.
_PATIENCE_STEPS = 200

#: While live sequences run, a step computes at most this much of the prompts of others, since all wait for its end.
_MAX_PROMPT_TOKENS_BESIDE_LIVE = 128

#: With less to generate than this a sequence is not worth moving to another slot.
_MIN_TOKENS_TO_MOVE = 2


class Scheduler:
    """Holds waiting and running sequences. All calls from the engine's thread."""

    def __init__(self, cache: KvCache, *, max_batch_tokens: int, max_scored_tokens: int) -> None:
        assert max_batch_tokens >= cache.num_slots
        self._cache = cache
        self._max_batch_tokens = max_batch_tokens
        self._max_scored_tokens = max_scored_tokens
        #: Each entry is either sequences that may go in any order, or one that must be alone.
        self._waiting: deque[list[Sequence]] = deque()
        self._live = Turns()
        self._num_steps_without_batch = 0
        self._was_alone_last = False
        self.num_preempted = 0
        self._num_arrivals = 0
        #: By slot, in order of admission.
        self._running: dict[int, Sequence] = {}
        #: The slots of the running ones, ascending, and those sequences in this order.
        self._slots: Tokens = np.zeros(0, np.int32)
        self._by_slot: list[Sequence] = []
        self._is_changed = False
        #: Cells that `go_back` has given up.
        self._cuts: list[Placement] = []
        #: Whether any of them has a prompt to be scored, or labels.
        self._is_scoring = False

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._live or self._running)

    @property
    def num_waiting(self) -> int:
        # A copy, as other threads ask while this one goes on.
        return len(self._live) + sum(map(len, list(self._waiting)))

    @property
    def num_live_waiting(self) -> int:
        return len(self._live)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_live_running(self) -> int:
        return sum(sequence.request.is_live for sequence in list(self._running.values()))

    @property
    def is_alone(self) -> bool:
        """Whether what runs must be alone."""
        return any(sequence.request.is_alone for sequence in self._running.values())

    def running(self) -> Iterable[Sequence]:
        """The running sequences, oldest first."""
        return self._running.values()

    def add(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences, none of which may need more than a slot's cells."""
        self._num_arrivals += 1
        changed: set[int] = set()
        for sequence in sequences:
            sequence.arrival = self._num_arrivals
            if sequence.request.is_live:
                self._live.add(sequence)
                continue
            last = self._waiting[-1] if self._waiting else None
            if last is None or sequence.request.is_alone or last[0].request.is_alone:
                self._waiting.append([sequence])
            else:
                last.append(sequence)
            changed.add(len(self._waiting) - 1)
        for at in changed:
            self._waiting[at] = self._in_order(self._waiting[at])

    def schedule(self) -> StepBatch | None:
        """Admit what may enter and lay out the next step; None if nothing runs. Mutates.

        At most `max_batch_tokens` in all: one for each decoding sequence, the rest goes to prompts, oldest first. Of
        prompts to be scored at most `max_scored_tokens`, and one for each.
        """
        admitted = self._admit_live()
        admitted += self._admit()
        moves = [] if self._waiting or self._live else self._close_gaps()
        if not self._running:
            return None
        if self._is_changed:
            self._is_changed = False
            self._slots = np.array(sorted(self._running), np.int32)
            self._by_slot = [self._running[slot] for slot in self._slots.tolist()]
            self._is_scoring = self._cache.wants_scores(self._slots)
        started = tuple(sequence for sequence, _ in admitted if not sequence.was_preempted)
        cuts, self._cuts = self._cuts, []
        return self._lay_out(started, tuple(cuts + [p for _, p in admitted] + moves))

    def _lay_out(self, started: tuple[Sequence, ...], placements: tuple[Placement, ...]) -> StepBatch:
        cache, slots = self._cache, self._slots
        computed = cache.num_computed[slots]
        pending = cache.num_tokens[slots] - computed
        counts = np.ones_like(slots)
        is_ready = pending == 1
        if not is_ready.all():
            counts += self._share(pending)
            is_ready = counts == pending
        ends = np.cumsum(counts, dtype=np.int32)
        token_slots = np.repeat(slots, counts)
        positions = np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - counts - computed, counts)
        wants_logits = np.zeros(len(positions), np.int8)
        ready_at = ends[is_ready] - 1
        wants_logits[ready_at] = 1
        ready_rows = to_score = to_label = None
        if self._is_scoring:
            scored_at = np.flatnonzero(positions < cache.num_to_score[token_slots])
            labelled_at = np.flatnonzero(positions >= cache.first_wanted[token_slots])
            wants_logits[scored_at] = wants_logits[labelled_at] = 1
            rows = np.cumsum(wants_logits, dtype=np.intp) - 1
            ready_rows = rows[ready_at]
            at_slots, at_positions = token_slots[scored_at], positions[scored_at]
            to_score = PromptLogits(rows[scored_at], at_slots, at_positions, cache.tokens[at_slots, at_positions + 1])
            whose = tuple(self._running[slot] for slot in token_slots[labelled_at].tolist())
            to_label = LabelLogits(tuple(rows[labelled_at].tolist()), whose)
        return StepBatch(
            tokens=cache.tokens[token_slots, positions],
            positions=positions,
            slots=token_slots,
            wants_logits=wants_logits,
            counts=counts,
            ready=tuple(itertools.compress(self._by_slot, is_ready)),
            started=started,
            placements=placements,
            ready_rows=ready_rows,
            to_score=to_score,
            to_label=to_label,
        )

    def _share(self, pending: Tokens) -> Tokens:
        """How many tokens beyond the first each running sequence gets, by slot. The oldest prompt goes first, a live
        one before others."""
        budget = self._max_batch_tokens - len(pending)
        score_budget = self._max_scored_tokens
        extra = np.zeros_like(pending)
        at = {slot: position for position, slot in enumerate(self._slots.tolist())}
        has_live = False
        # sorted() keeps the order of admission.
        for sequence in sorted(self._running.values(), key=lambda sequence: not sequence.request.is_live):
            if sequence.request.is_live:
                has_live = True
            elif has_live:
                has_live, budget = False, min(budget, _MAX_PROMPT_TOKENS_BESIDE_LIVE)
            position = at[sequence.slot]
            count = min(int(pending[position]) - 1, budget)
            if self._is_scoring and self._cache.num_to_score[sequence.slot] > self._cache.num_computed[sequence.slot]:
                count = min(count, score_budget)
                score_budget -= count
            elif sequence.scoring is not None:
                num_unwanted = int(pending[position]) - sequence.scoring.num_wanted
                count = min(count, num_unwanted + score_budget)
                score_budget -= max(0, count - num_unwanted)
            extra[position] = count
            budget -= count
        return extra

    def advance(self, batch: StepBatch, sampled: Tokens, *, is_end: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Note what `batch` computed, and the token sampled for each of `batch.ready`. Mutates.

        A token that `is_end` of a text is not kept. Returns which of them have reached their max_tokens.
        """
        cache = self._cache
        cache.num_computed[self._slots] += batch.counts
        if batch.to_score is not None:
            slots = self._slots
            cache.num_scored[slots] = np.minimum(cache.num_to_score[slots], cache.num_computed[slots])
        ready = np.fromiter((sequence.slot for sequence in batch.ready), np.int32, len(batch.ready))
        going, kept = (ready, sampled) if not is_end.any() else (ready[~is_end], sampled[~is_end])
        cache.tokens[going, cache.num_tokens[going]] = kept
        cache.num_tokens[going] += 1
        is_full: npt.NDArray[np.bool_] = cache.num_tokens[ready] >= cache.limit[ready]
        return is_full

    def append(self, sequence: Sequence, token: int) -> bool:
        """Put a token behind what a running sequence has, to be computed with the next step. Mutates.

        Returns whether it has reached its max_tokens.
        """
        cache, slot = self._cache, sequence.slot
        cache.tokens[slot, cache.num_tokens[slot]] = token
        cache.num_tokens[slot] += 1
        return bool(cache.num_tokens[slot] >= cache.limit[slot])

    def completion(self, sequence: Sequence) -> Tokens:
        """The tokens that a running sequence has generated so far."""
        slot = sequence.slot
        return self._cache.tokens[slot, self._cache.num_prompt[slot] : self._cache.num_tokens[slot]]

    def num_generated(self, owner: Ticket | None = None) -> int:
        """How many tokens the running sequences have generated so far, or those of one owner. For any thread."""
        slots = [s.slot for s in list(self._running.values()) if owner is None or s.owner is owner]
        num_tokens, num_prompt = self._cache.num_tokens[slots], self._cache.num_prompt[slots]
        # One may be set free just now.
        return int((num_tokens - num_prompt)[num_prompt > 0].sum()) if slots else 0

    def go_back(self, sequence: Sequence) -> None:
        """Have a running sequence, all of whose tokens are computed, go on as if it had generated the path to the next
        places of its labels. Mutates."""
        assert sequence.scoring is not None
        cut = self._cache.go_back(sequence.slot, sequence.scoring.path, num_wanted=sequence.scoring.num_wanted)
        if cut is not None:
            self._cuts.append(cut)

    def finish(self, sequence: Sequence) -> None:
        """Take a running sequence out and free its slot."""
        del self._running[sequence.slot]
        self._cache.release(sequence.slot)
        self._is_changed = True

    def drop_unwanted(self) -> list[Sequence]:
        """Take out every sequence for whose answer nobody waits any more, and return them."""
        dropped = [s for s in self._running.values() if not s.is_wanted]
        for sequence in dropped:
            self.finish(sequence)
        dropped += [s for s in self._queued() if not s.is_wanted]
        self._live.drop({s for s in self._live if not s.is_wanted})
        kept = ([s for s in group if s.is_wanted] for group in self._waiting)
        self._waiting = deque(group for group in kept if group)
        return dropped

    def drop_all(self) -> list[Sequence]:
        """Take out everything, waiting and running, and return it."""
        dropped = [*self._running.values(), *self._queued()]
        self._waiting.clear()
        self._live.clear()
        for sequence in list(self._running.values()):
            self.finish(sequence)
        return dropped

    def _queued(self) -> Iterator[Sequence]:
        return itertools.chain(self._live, *self._waiting)

    def check_integrity(self) -> None:
        """Assert that slots and books agree; for tests."""
        self._cache.check_integrity()
        assert len(self._running) == self._cache.num_slots - self._cache.num_free_slots
        assert all(self._waiting)
        assert all(sequence.request.is_live for sequence in self._live)
        assert len(self._live) == len(list(self._live))
        for slot, sequence in self._running.items():
            assert sequence.slot == slot
            assert (self._cache.tokens[slot, : len(sequence.prompt)] == sequence.prompt).all()
            assert self._cache.num_prompt[slot] == len(sequence.prompt)
            assert self._cache.limit[slot] == sequence.num_cells
            assert self._cache.num_to_score[slot] in (0, len(sequence.prompt) - 1)
            assert len(self._running) == 1 or not sequence.request.is_alone

    def _in_order(self, group: list[Sequence]) -> list[Sequence]:
        """The order in which to admit a group: what has waited long first, then by prefixes and length."""
        if len(group) == 1:
            return group
        old = [s for s in group if s.arrival <= self._num_arrivals - _MAX_ARRIVALS_AHEAD]
        new = [s for s in group if s.arrival > self._num_arrivals - _MAX_ARRIVALS_AHEAD]
        cache = self._cache
        return [
            sequence
            for part in (old, new)
            for sequence in order(
                part,
                min_shared=cache.min_shared_tokens,
                num_slots=cache.num_slots,
                is_cached=lambda prompt: cache.match(prompt).num_cached > 0,
            )
        ]

    def _admit_live(self) -> list[tuple[Sequence, Placement]]:
        """Admit live sequences, into slots that others leave to them where none is free."""
        if not self._live or self.is_alone:
            return []
        others = [sequence for sequence in self._running.values() if not sequence.request.is_live]
        num_live = len(self._running) - len(others)
        if not others and self._waiting:
            if not self._may_pass(num_live):
                return []
        else:
            self._num_steps_without_batch = 0
        share = self._cache.num_slots // _BATCH_SHARE
        room = self._cache.num_slots - num_live
        if others or self._waiting:
            room -= share
        able = [sequence for sequence in others if share or not sequence.was_preempted]
        # The last leaves first: who has not left yet, and of those who loses least.
        able.sort(key=lambda s: (not s.was_preempted, -int(self._cache.num_computed[s.slot])))
        return self._take_turns(able, room=room)

    def _take_turns(self, able: list[Sequence], *, room: int) -> list[tuple[Sequence, Placement]]:
        """Admit live sequences by turns, `room` of them beside those that run, at first into slots that are free, then
        into those of `able`, the last first, and then one for each client that has none."""
        cache = self._cache
        live = [sequence for sequence in self._running.values() if sequence.request.is_live]
        num_held = Counter(sequence.request.client for sequence in live)
        if (room <= 0 or not (cache.num_free_slots or able)) and not _leavers(live, num_held):
            return []
        admitted: list[tuple[Sequence, Placement]] = []
        left: list[Sequence] = []
        # No more are looked at than there are slots: the others wait for a prefix that is being computed.
        for sequence in itertools.islice(self._live.in_turn(num_held), cache.num_slots):
            has_room = len(admitted) - len(left) < room and bool(cache.num_free_slots or able)
            leaver = None if has_room else _find_leaver(live, num_held, client=sequence.request.client)
            if not has_room and leaver is None:
                break
            match = self._match(sequence)
            if self._is_coming(match):
                continue
            if leaver is not None:
                self.leave_slot(leaver)
                live.remove(leaver)
                left.append(leaver)
                num_held[leaver.request.client] -= 1
            elif not cache.num_free_slots:
                self._preempt(able.pop())
            self._live.take(sequence)
            num_held[sequence.request.client] += 1
            admitted.append(self._enter(sequence, match=match))
            self._was_alone_last = False
        for sequence in reversed(left):
            self._live.put_back(sequence)
        return admitted

    def _may_pass(self, num_live: int) -> bool:
        """Whether live sequences may enter before the first that waits, while nothing but live ones runs."""
        if self._waiting[0][0].request.is_alone:
            # It needs all slots empty, so it and live ones take turns.
            return not num_live and self._was_alone_last
        self._num_steps_without_batch += 1
        return self._num_steps_without_batch <= _PATIENCE_STEPS

    def _preempt(self, sequence: Sequence) -> None:
        """Have a running sequence leave its slot and wait at the front."""
        self.leave_slot(sequence)
        self._waiting.appendleft([sequence])

    def leave_slot(self, sequence: Sequence) -> None:
        """Take a running sequence out, to be added again with what it has generated."""
        sequence.generated = self.completion(sequence).copy()
        sequence.was_preempted = True
        self.finish(sequence)
        self.num_preempted += 1

    def restart_all(self) -> None:
        """Have all running sequences leave their slots, and be taken up again in their order."""
        for sequence in reversed(list(self._running.values())):
            if sequence.request.is_live:
                self.leave_slot(sequence)
                self._live.put_back(sequence)
            else:
                self._preempt(sequence)

    def _match(self, sequence: Sequence) -> Match:
        """Where the beginning of a sequence is, up to the first token whose logits are wanted."""
        known = sequence.known
        if sequence.scoring is not None:
            known = known[: len(known) - sequence.scoring.num_wanted + 1]
        return self._cache.match(known, is_scoring=sequence.num_to_score > 0)

    def _is_coming(self, match: Match) -> bool:
        """Whether it is better to wait for a prefix that is being computed."""
        return match.num_coming - match.num_cached >= self._cache.min_shared_tokens

    def _admit(self) -> list[tuple[Sequence, Placement]]:
        """Admit what may enter now; with each what is to be done to its cells."""
        admitted: list[tuple[Sequence, Placement]] = []
        while self._waiting and self._cache.num_free_slots:
            group = self._waiting[0]
            if group[0].request.is_alone or self.is_alone:
                if self._running:
                    break
                admitted.append(self._enter(group.pop()))
                self._was_alone_last = True
            else:
                admitted += self._admit_some(group)
            if group:
                break
            self._waiting.popleft()
        return admitted

    def _admit_some(self, group: list[Sequence]) -> list[tuple[Sequence, Placement]]:
        """Admit from a group whatever needs not wait for a prefix that is being computed. Takes them out of it."""
        cache, admitted = self._cache, []
        # Where all slots will be taken it is no matter which.
        takes_any = len(group) >= cache.num_free_slots
        at = 0  # as many wait for a prefix
        # Not beyond those that fill all slots a step later: the first of another prefix would be computed now, and its
        # cells overwritten before its own followers come.
        while at < min(len(group), cache.num_free_slots):
            match = self._match(group[at])
            if self._is_coming(match):
                at += 1
            else:
                admitted.append(self._enter(group.pop(at), match=match, takes_any=takes_any))
        return admitted

    def _enter(
        self, sequence: Sequence, *, match: Match = NO_MATCH, takes_any: bool = False
    ) -> tuple[Sequence, Placement]:
        placement = self._cache.admit(
            sequence.known,
            num_generated=len(sequence.generated),
            num_to_score=sequence.num_to_score,
            num_wanted=0 if sequence.scoring is None else sequence.scoring.num_wanted,
            limit=sequence.num_cells,
            match=match,
            takes_any=takes_any,
        )
        sequence.slot = placement.target
        if not sequence.was_preempted:
            sequence.num_cached = min(placement.num_kept, len(sequence.prompt))
        self._running[sequence.slot] = sequence
        self._is_changed = True
        return sequence, placement

    def _close_gaps(self) -> list[Placement]:
        """Move running sequences into free slots below them: over a gap llama.cpp would compute in two passes."""
        cache, moves = self._cache, []
        while self._running and cache.is_sharing:
            last = max(self._running)
            num_left = cache.limit[last] - cache.num_tokens[last]
            if last < cache.lowest_free() or num_left < _MIN_TOKENS_TO_MOVE:
                break
            sequence = self._running.pop(last)
            moves.append(cache.move(last))
            sequence.slot = moves[-1].target
            self._running[sequence.slot] = sequence
            self._is_changed = True
        return moves


def _leavers(live: list[Sequence], num_held: Counter[str]) -> list[Sequence]:
    """Which of the running `live` sequences could leave their slots to a client that has none."""
    return [s for s in live if num_held[s.request.client] > 1 and not s.was_preempted]


def _find_leaver(live: list[Sequence], num_held: Counter[str], *, client: str) -> Sequence | None:
    """Which of the running `live` sequences leaves its slot to a client: of the one with most the last that entered.

    None where that client has a slot, or nobody has two.
    """
    if num_held[client]:
        return None
    # Of equals the last, which has computed least.
    return max(reversed(_leavers(live, num_held)), key=lambda s: num_held[s.request.client], default=None)
