"""The faults of a chaos: what they are, how often each comes, and their sequence, which a seed gives."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

#: Seconds, on average, from one fault to the next, where nothing else is said.
MEAN_PAUSE_S = 2.2


class FaultKind(StrEnum):
    """What can happen. The value is its name in the table."""

    KILL_CHILD = "SIGKILL worker's child"
    KILL_SUPERVISOR = "SIGKILL supervisor"
    KILL_WORKER = "SIGKILL supervisor and child"
    STOP_WORKER = "SIGTERM worker"
    FREEZE_CHILD = "SIGSTOP child, 1-40 s"
    FREEZE_WORKER = "SIGSTOP supervisor and child, 1-40 s"
    KILL_BROKER = "SIGKILL broker, its file kept"
    LOSE_BROKER = "SIGKILL broker, its file lost"
    FREEZE_BROKER = "SIGSTOP broker, 1-15 s"
    FLUSH_BROKER = "FLUSHALL"
    CUT_CONNECTIONS = "CLIENT KILL TYPE normal"
    DELETE_LEASE = "lease deleted"
    DRAIN_WORKER = "worker drained"
    PAUSE_JOB = "job paused, 1-20 s"
    CHANGE_PRIORITY = "job's priority changed"
    KILL_SUBMITTER = "SIGKILL submitter or waiter"
    FLIP_BIT = "bit of a chunk flipped"
    TRUNCATE_CHUNK = "chunk truncated"


#: How often each comes among the faults of about a minute.
_DECK = {
    FaultKind.KILL_CHILD: 3,
    FaultKind.KILL_SUPERVISOR: 2,
    FaultKind.KILL_WORKER: 2,
    FaultKind.STOP_WORKER: 2,
    FaultKind.FREEZE_CHILD: 2,
    FaultKind.FREEZE_WORKER: 2,
    FaultKind.KILL_BROKER: 1,
    FaultKind.LOSE_BROKER: 1,
    FaultKind.FREEZE_BROKER: 1,
    FaultKind.FLUSH_BROKER: 1,
    FaultKind.CUT_CONNECTIONS: 1,
    FaultKind.DELETE_LEASE: 2,
    FaultKind.DRAIN_WORKER: 2,
    FaultKind.PAUSE_JOB: 2,
    FaultKind.CHANGE_PRIORITY: 2,
    FaultKind.KILL_SUBMITTER: 2,
    FaultKind.FLIP_BIT: 2,
    FaultKind.TRUNCATE_CHUNK: 2,
}

ON_WORKERS = frozenset(
    {
        FaultKind.KILL_CHILD,
        FaultKind.KILL_SUPERVISOR,
        FaultKind.KILL_WORKER,
        FaultKind.STOP_WORKER,
        FaultKind.FREEZE_CHILD,
        FaultKind.FREEZE_WORKER,
        FaultKind.DRAIN_WORKER,
    }
)
ON_CHUNKS = frozenset({FaultKind.FLIP_BIT, FaultKind.TRUNCATE_CHUNK})

#: Seconds: the shortest, the mean, and the longest. Exponential in between, so most end before the lease does.
FREEZE_S = (1.0, 8.0, 40.0)
BROKER_FREEZE_S = (1.0, 4.0, 15.0)
OUTAGE_S = (0.1, 1.5, 8.0)
PAUSE_S = (1.0, 4.0, 20.0)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. `pause_s` is the time since the one before. `job`, `target` and `place`, all in [0, 1), say which of
    the jobs, which of the workers, leases or chunks there are, and where in the chunk; `length` in units of the mean
    says for how long."""

    kind: FaultKind
    pause_s: float
    job: float
    target: float
    place: float
    length: float

    def duration_s(self, limits: tuple[float, float, float]) -> float:
        shortest, mean, longest = limits
        return min(longest, shortest + self.length * mean)


def draw_faults(seed: int, *, mean_pause_s: float = MEAN_PAUSE_S) -> Iterator[Fault]:
    """The faults of a seed, without end: what happens when, whatever comes of it.

    Kinds are drawn from a deck that is shuffled anew whenever it is used up, so that a minute has some of each.
    """
    rng = random.Random(seed)
    while True:
        deck = [kind for kind, count in _DECK.items() for _ in range(count)]
        rng.shuffle(deck)
        for kind in deck:
            pause_s, length = rng.expovariate(1 / mean_pause_s), rng.expovariate(1)
            yield Fault(kind, pause_s, rng.random(), rng.random(), rng.random(), length)
