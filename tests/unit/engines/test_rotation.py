"""The rule by which models come into memory and leave it, without any engine and any time."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.types import NORMAL, PRIORITIES
from workers.engines.rotation import Candidate, Move, Stay, next_move

STAY = Stay(turn_s=20.0, linger_s=1.0)
NOW = 1000.0


def loaded(
    name: str,
    *,
    waiting: int = 0,
    in_hand: bool = False,
    since: float = NOW,
    used: float = NOW,
    wanted: bool = False,
    priority: int = NORMAL,
) -> Candidate:
    return Candidate(name, True, in_hand, waiting, wanted, since, used, priority)


def absent(
    name: str, *, waiting: int = 0, wanted: bool = False, since: float = NOW, priority: int = NORMAL
) -> Candidate:
    return Candidate(name, False, False, waiting, wanted, since, 0.0, priority)


def move(*models: Candidate, room: int = 2, now: float = NOW) -> Move:
    num_loaded = sum(model.is_loaded for model in models)
    return next_move(models, has_room=lambda name: num_loaded < room, now_s=now, stay=STAY)


def test_nothing_is_loaded_that_nobody_waits_for() -> None:
    assert move(absent("a"), absent("b")) == Move()
    assert move(loaded("a"), loaded("b"), absent("c")) == Move()


def test_who_waits_longest_is_loaded_first_and_a_live_request_before_all() -> None:
    assert move(absent("a", waiting=9, since=5), absent("b", waiting=1, since=3)) == Move(load="b")
    assert move(absent("a", wanted=True, since=5), absent("b", waiting=1, since=3)) == Move(load="a")


def test_model_with_shards_stays_for_its_turn_though_others_wait() -> None:
    busy = loaded("a", waiting=5, in_hand=True), loaded("b", in_hand=True), absent("c", waiting=50)

    assert move(*busy, now=NOW + 19.9) == Move()
    assert move(*busy, now=NOW + 20.0) == Move(closing="a")


def test_after_its_turn_it_leaves_when_its_shards_are_done() -> None:
    models = loaded("a", waiting=5), loaded("b", in_hand=True, since=NOW + 5), absent("c", waiting=50)

    assert move(*models, now=NOW + 20) == Move(leave="a", closing="a")


def test_model_with_nothing_to_do_leaves_after_a_moment_the_least_lately_used_first() -> None:
    models = loaded("a", used=NOW), loaded("b", used=NOW - 0.5), absent("c", waiting=1)

    assert move(*models, now=NOW + 0.4) == Move()
    assert move(*models, now=NOW + 0.5) == Move(leave="b")
    assert move(*models, now=NOW + 9) == Move(leave="b")


def test_live_request_waits_neither_for_turns_nor_for_shards() -> None:
    waiting = absent("c", wanted=True)

    assert move(loaded("a", waiting=5), loaded("b", in_hand=True), waiting) == Move(leave="a")
    assert move(loaded("a", waiting=5, used=NOW - 9), loaded("b", used=NOW), waiting) == Move(leave="b")
    assert move(loaded("a", in_hand=True, since=3), loaded("b", in_hand=True, since=4), waiting) == Move(
        closing="a", is_urgent=True
    )


def test_the_most_urgent_is_loaded_first_but_for_a_live_request() -> None:
    urgent, usual = absent("a", waiting=1, since=5, priority=9), absent("b", waiting=9, since=3)

    assert move(usual, urgent) == Move(load="a")
    assert move(usual, urgent, absent("c", wanted=True, since=7)) == Move(load="c")


def test_more_urgent_shards_wait_for_no_turn_but_for_those_in_hand() -> None:
    busy = loaded("a", waiting=5, in_hand=True), loaded("b", waiting=5, in_hand=True, since=NOW - 5)
    urgent = absent("c", waiting=1, priority=6)

    assert move(*busy, urgent, now=NOW + 1) == Move(closing="b")
    assert move(busy[0], replace(busy[1], is_in_hand=False), urgent, now=NOW + 1) == Move(leave="b", closing="b")
    low = replace(busy[0], priority=0)
    assert move(low, busy[1], urgent, now=NOW + 1) == Move(closing="a")
    assert move(low, replace(busy[1], priority=9), urgent, now=NOW + 1) == Move(closing="a")


def test_model_that_was_just_loaded_takes_shards_before_it_gives_way_to_more_urgent_ones() -> None:
    models = loaded("a", waiting=5, in_hand=True), absent("b", waiting=1, priority=9)

    assert move(*models, room=1, now=NOW + 0.9) == Move()
    assert move(*models, room=1, now=NOW + 1.0) == Move(closing="a")


def test_model_with_more_urgent_shards_stays_beyond_its_turn_and_for_none_but_a_live_request() -> None:
    urgent, usual = loaded("a", waiting=1, in_hand=True, priority=6), absent("b", waiting=50)

    assert move(urgent, usual, room=1, now=NOW + 900) == Move()
    assert move(urgent, replace(usual, is_wanted=True), room=1) == Move(closing="a", is_urgent=True)
    # Its shards are given back, and wait then: that must not have the other one give way.
    models = loaded("a", in_hand=True, since=3), loaded("b", waiting=5, in_hand=True), absent("c", wanted=True)
    assert move(*models) == Move(closing="a", is_urgent=True)
    assert move(replace(models[0], num_waiting=3, priority=9), *models[1:]) == Move(closing="a", is_urgent=True)
    # What it has in hand is not known to be urgent: live requests, perhaps, one after the other.
    done = loaded("a", in_hand=True)
    for priority in PRIORITIES:
        waiting = replace(usual, priority=priority)
        assert move(done, waiting, room=1, now=NOW + 19.9) == Move()
        assert move(done, waiting, room=1, now=NOW + 20) == Move(closing="a")


@pytest.mark.parametrize(("load_s", "turn_s", "linger_s"), [(0.1, 20.0, 1.0), (30.0, 600.0, 60.0)])
def test_the_longer_loading_takes_the_longer_a_model_stays(load_s: float, turn_s: float, linger_s: float) -> None:
    assert Stay().beside(load_s) == Stay(turn_s, linger_s)


@dataclass
class Worker:
    """A worker with room for some models, whose shards take a second each, in a world without time of its own."""

    room: int
    load_s: float
    now: float = 0.0
    models: dict[str, Candidate] = field(default_factory=dict)
    num_loads: int = 0
    waited: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, *, shards: int, priority: int = NORMAL) -> None:
        """All shards of a model are of one priority in this world."""
        known = self.models.get(name, Candidate(name, False, False, 0, False, self.now, 0.0))
        since = known.since_s if known.is_loaded or known.num_waiting else self.now
        self.models[name] = replace(known, num_waiting=known.num_waiting + shards, since_s=since, priority=priority)

    def step(self) -> None:
        done = next_move(
            list(self.models.values()),
            has_room=lambda name: sum(model.is_loaded for model in self.models.values()) < self.room,
            now_s=self.now,
            stay=STAY.beside(self.load_s),
        )
        if done.leave is not None:
            left = self.models[done.leave]
            assert left.is_loaded
            assert not left.is_in_hand
            self.models[left.name] = replace(left, is_loaded=False, since_s=self.now)
        if done.load is not None:
            self.now += self.load_s
            self.num_loads += 1
            came = self.models[done.load]
            self.waited[came.name] = max(self.waited.get(came.name, 0.0), self.now - came.since_s)
            self.models[came.name] = replace(came, is_loaded=True, since_s=self.now, used_s=self.now)
        assert sum(model.is_loaded for model in self.models.values()) <= self.room
        if done.load is None and done.leave is None:
            self._work(closing=done.closing)

    def _work(self, *, closing: str | None) -> None:
        for name, model in self.models.items():
            if model.is_loaded and name != closing and model.num_waiting:
                self.models[name] = replace(model, num_waiting=model.num_waiting - 1, used_s=self.now)
        self.now += 1.0

    @property
    def num_waiting(self) -> int:
        return sum(model.num_waiting for model in self.models.values())


@given(
    st.integers(1, 3), st.floats(0.1, 20.0), st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 400), min_size=1)
)
def test_all_shards_are_done_and_loading_takes_a_small_part_of_the_time(
    room: int, load_s: float, shards: dict[str, int]
) -> None:
    worker = Worker(room, load_s)
    for name, number in shards.items():
        worker.add(name, shards=number)

    for _ in range(20_000):
        if not worker.num_waiting:
            break
        worker.step()

    assert worker.num_waiting == 0
    # Each model once, and once more for each turn that another had meanwhile.
    turn_s = STAY.beside(load_s).turn_s
    assert worker.num_loads <= len(shards) + sum(number // turn_s for number in shards.values()) + room


def test_nobody_waits_for_longer_than_the_turns_of_the_others() -> None:
    worker = Worker(room=2, load_s=0.5)
    for name in "abcd":
        worker.add(name, shards=10_000)

    for _ in range(2_000):
        worker.step()

    assert set(worker.waited) == set("abcd")
    assert max(worker.waited.values()) < 2 * STAY.turn_s + 5


@given(
    st.integers(1, 3),
    st.floats(0.1, 20.0),
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 100), st.sampled_from(PRIORITIES)), min_size=2),
)
def test_more_urgent_shards_are_done_first_whatever_the_room(
    room: int, load_s: float, shards: dict[str, tuple[int, int]]
) -> None:
    worker = Worker(room, load_s)
    for name, (number, priority) in shards.items():
        worker.add(name, shards=number, priority=priority)

    for _ in range(20_000):
        if not worker.num_waiting:
            break
        in_memory = {name for name, model in worker.models.items() if model.is_loaded}
        worker.step()
        for name in {name for name, model in worker.models.items() if model.is_loaded} - in_memory:
            later = [m for m in worker.models.values() if not m.is_loaded and m.num_waiting]
            assert all(model.priority <= worker.models[name].priority for model in later)

    assert worker.num_waiting == 0


def test_urgent_shards_that_come_one_by_one_keep_the_others_from_nothing_but_some_time() -> None:
    """The worst of times: each comes when its model has just left for the usual one again."""
    worker = Worker(room=1, load_s=2.0)
    worker.add("usual", shards=10_000)
    worker.add("urgent", shards=0, priority=9)

    for _ in range(3_000):
        if worker.models["usual"].is_loaded and not worker.models["urgent"].num_waiting:
            worker.add("urgent", shards=1, priority=9)
        worker.step()

    stay = STAY.beside(worker.load_s)
    # The moment that the usual one has at least, in which a shard takes a second, and the load.
    assert worker.waited["urgent"] <= stay.linger_s + worker.load_s + 1
    assert 10_000 - worker.models["usual"].num_waiting > 100


def test_shards_that_come_one_by_one_for_three_models_are_not_a_load_each() -> None:
    """Each is done at once, so that a model has nothing to do when the shard of the next one comes."""
    worker = Worker(room=2, load_s=2.0)

    for number in range(300):
        worker.add("abc"[number % 3], shards=1)
        worker.step()

    assert worker.num_loads < 300 / 5
