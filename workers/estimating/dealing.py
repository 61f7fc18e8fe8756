"""Rows of all shards of a job, given to an engine in random order, a few at a time, until the time is over.

The runner of a shard gives an engine all its rows at once, in their order. Where an input is sorted, the first of them
are not like the others, so nothing could be said of these. So each runner gets an engine that only takes the rows down
(`DealtEngine`); the dealer gives the real one as many as keep its slots full, of any shard. What is not dealt has no
answer, and the runner, when it is told to stop, keeps what has one: no row is computed for nothing.
"""

import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from batcher.errors import EngineError
from batcher.types import EngineStats
from workers.engines.base import (
    Ability,
    Engine,
    OnDelta,
    OnStart,
    SequenceRequest,
    SequenceResult,
    Sink,
    Ticket,
    ignore_start,
)

#: Seconds between two looks at whether the time is over.
_LOOK_INTERVAL_S = 0.05
#: With fewer nothing can be said, however slow the machine is. The first is no step like the others: all slots read.
MIN_STEPS = 16


@dataclass(slots=True, eq=False)
class DealtSequence:
    """A sequence of the sample. `start_step` and `end_step` are numbers of steps of the engine; None: not yet."""

    request: SequenceRequest
    sink: Sink
    on_start: OnStart
    start_step: int | None = None
    end_step: int | None = None
    result: SequenceResult | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """The sequences of a row, which are dealt together; by its shard and its position there."""

    shard: int
    position: int
    sequences: tuple[DealtSequence, ...]


@dataclass(slots=True)
class Dealer:
    """Has an engine compute rows that runners of shards offer, for some time. `is_over` is set by whoever ends it."""

    engine: Engine
    num_shards: int
    seed: int
    clock: Callable[[], float] = time.monotonic
    is_over: threading.Event = field(default_factory=threading.Event)
    #: All that were dealt.
    dealt: list[DealtSequence] = field(default_factory=list)
    _rows: list[_Row] = field(default_factory=list)
    _offered: set[int] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _inbox: "queue.SimpleQueue[EngineError | None]" = field(default_factory=queue.SimpleQueue)

    def offer(self, shard: int, rows: Iterable[SequenceRequest], sink: Sink, on_start: OnStart) -> None:
        """Take down rows of a shard that may be dealt. Called by each runner's thread."""
        groups = itertools.groupby(rows, key=lambda request: request.key[0])
        found = [_Row(shard, at, tuple(DealtSequence(each, sink, on_start) for each in some)) for at, some in groups]
        with self._changed:
            self._rows += found
        self.note_offer(shard)

    def note_offer(self, shard: int) -> None:
        """A shard has offered what it has, or has nothing."""
        with self._changed:
            self._offered.add(shard)
            self._changed.notify_all()

    def deal(self, *, seconds: float, grace_s: float, min_steps: int = MIN_STEPS) -> None:
        """Deal for `seconds`, and wait for what was begun, for `grace_s` at most, but for `min_steps` of the engine in
        any case. Blocks. Raises EngineError."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._offered) >= self.num_shards or self.is_over.is_set())
            rows = sorted(self._rows, key=lambda row: (row.shard, row.position))
        random.Random(self.seed).shuffle(rows)  # noqa: S311 (no secret)
        ends_at, first_step = self.clock() + seconds, self.engine.num_steps
        # One that waits for each four: the slot of one that ends is filled in the step after.
        most = self.engine.num_slots + max(1, self.engine.num_slots // 4)
        num_open = 0
        while not self.is_over.is_set():
            now = self.clock()
            while rows and num_open < most and now < ends_at:
                sequences = rows.pop().sequences
                num_open += len(sequences)
                self._give(sequences)
            has_steps = self.engine.num_steps - first_step >= min_steps
            if not num_open or (has_steps and now >= ends_at + grace_s):
                break
            try:
                failure = self._inbox.get(timeout=_LOOK_INTERVAL_S)
            except queue.Empty:
                continue
            if failure is not None:
                raise failure
            num_open -= 1
        self.is_over.set()

    def _give(self, sequences: tuple[DealtSequence, ...]) -> None:
        self.dealt += sequences
        for each in sequences:
            self.engine.submit([each.request], self._taker(each), on_start=self._starter(each))

    def _taker(self, sequence: DealtSequence) -> Sink:
        def take(result: SequenceResult | EngineError) -> None:
            sequence.sink(result)
            if isinstance(result, SequenceResult):
                sequence.result, sequence.end_step = result, self.engine.num_steps
            self._inbox.put(result if isinstance(result, EngineError) else None)

        return take

    def _starter(self, sequence: DealtSequence) -> OnStart:
        def start(request: SequenceRequest) -> None:
            sequence.start_step = self.engine.num_steps
            sequence.on_start(request)

        return start


class DealtEngine:
    """An engine, as the runner of a shard sees it, that leaves to a dealer when its rows are computed, and which."""

    def __init__(self, dealer: Dealer, shard: int) -> None:
        self._dealer = dealer
        self._shard = shard
        self._engine = dealer.engine
        self.name = self._engine.name

    def submit(
        self,
        requests: Iterable[SequenceRequest],
        sink: Sink,
        *,
        on_start: OnStart = ignore_start,
        on_delta: OnDelta | None = None,
        is_alone: bool = False,
    ) -> Ticket:
        """See `Engine`. Rows that are computed again, or must be alone, are left to the run of the job."""
        if not is_alone:
            self._dealer.offer(self._shard, requests, sink, on_start)
        return Ticket()

    @property
    def abilities(self) -> Ability:
        """See `Engine`, as of all that follow."""
        return self._engine.abilities

    @property
    def system_fingerprint(self) -> str | None:
        return self._engine.system_fingerprint

    @property
    def num_slots(self) -> int:
        return self._engine.num_slots

    @property
    def num_steps(self) -> int:
        return self._engine.num_steps

    @property
    def is_busy(self) -> bool:
        return self._engine.is_busy

    @property
    def longest_step_s(self) -> float:
        return self._engine.longest_step_s

    def stats(self) -> EngineStats:
        return self._engine.stats()

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass
