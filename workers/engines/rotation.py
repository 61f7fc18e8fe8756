"""Which models are in memory, where there are more than fit: the rule, without any engine.

A model is loaded when a live request or a shard waits for it. As loading takes as long as many rows, it is not done for
each: one that has something to do stays for its turn, though others wait, and its own shards are taken before theirs.
It leaves for another when it has had nothing to do for a moment, the one that was used least lately first; and after
its turn in any case, when the shards that it has in hand are done. Who waits for a live request does not wait for turns
nor for shards: these are given back, with their finished rows saved.

Turns are among models whose most urgent shards are of one priority. One with more urgent shards is loaded first, and
does not wait for the turn of another, but for a moment, in which that takes some: so both come on where urgent shards
come one by one. It leaves for none with less urgent ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from batcher.types import NORMAL

#: Seconds that a model stays at least, if there are shards for it, and how many times as long as loading takes.
SHORTEST_TURN_S = 20.0
TURN_FACTOR = 20.0
#: The same for one that has nothing to do: the next of its shards may be about to come.
SHORTEST_LINGER_S = 1.0
LINGER_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model as it is now. Times are of one clock.

    `num_waiting` are its shards in the queue, and `priority` that of the most urgent of them, NORMAL without any.
    `is_in_hand` says that shards or live requests are at work on it, and `is_wanted` that a live request waits for it
    to be loaded. `since_s` is when it was loaded; of one that is not loaded, when somebody began to wait for it.
    `used_s` is when it was last in hand, or loaded.
    """

    name: str
    is_loaded: bool
    is_in_hand: bool
    num_waiting: int
    is_wanted: bool
    since_s: float
    used_s: float
    priority: int = NORMAL


@dataclass(frozen=True, slots=True)
class Move:
    """What is to be done now: a model is loaded, or leaves. Of the `closing` no more shards are taken, and with
    `is_urgent` those in hand are given back; it leaves when it has nothing in hand."""

    load: str | None = None
    leave: str | None = None
    closing: str | None = None
    is_urgent: bool = False


@dataclass(frozen=True, slots=True)
class Stay:
    """Seconds that a model stays: with shards waiting for it, and with nothing to do."""

    turn_s: float = SHORTEST_TURN_S
    linger_s: float = SHORTEST_LINGER_S

    def beside(self, load_s: float) -> "Stay":
        """Where loading a model takes so long."""
        return Stay(max(self.turn_s, TURN_FACTOR * load_s), max(self.linger_s, LINGER_FACTOR * load_s))


STAY = Stay()


def next_move(models: Sequence[Candidate], *, has_room: Callable[[str], bool], now_s: float, stay: Stay) -> Move:
    """What is to be done. `has_room` says whether a model fits beside those that are loaded."""
    awaited = [model for model in models if not model.is_loaded and (model.is_wanted or model.num_waiting)]
    if not awaited:
        return Move()
    first = min(awaited, key=lambda model: (not model.is_wanted, -model.priority, model.since_s))
    if has_room(first.name):
        return Move(load=first.name)
    loaded = [model for model in models if model.is_loaded]
    free = [model for model in loaded if not model.is_in_hand]
    if not first.is_wanted:
        free = [model for model in free if not model.num_waiting and now_s - model.used_s >= stay.linger_s]
    if free:
        return Move(leave=min(free, key=lambda model: (model.num_waiting > 0, model.priority, model.used_s)).name)
    yielding = [model for model in loaded if now_s - model.since_s >= _turn_s(model, first, stay)]
    if not yielding:
        return Move()
    last = min(yielding, key=lambda model: (_priority_beside(first, model), model.since_s))
    leave = None if last.is_in_hand else last.name
    return Move(leave=leave, closing=last.name, is_urgent=first.is_wanted)


def _turn_s(model: Candidate, first: Candidate, stay: Stay) -> float:
    """For how long a model that is loaded stays, though there are shards for `first`, which is not."""
    if first.is_wanted:
        return 0.0
    priority = _priority_beside(first, model)
    if priority == first.priority:
        return stay.turn_s
    return stay.linger_s if priority < first.priority else math.inf


def _priority_beside(first: Candidate, model: Candidate) -> int:
    """The priority of a model as compared with `first`: where there is nothing to compare, they are equal.

    So it is for a live request: shards that are given back for it must not have another model give way.
    """
    return model.priority if model.num_waiting and not first.is_wanted else first.priority
