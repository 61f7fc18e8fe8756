"""How many prompts are in flight: found on a simulated server, in simulated time."""

import heapq
import random
from collections.abc import Callable

import pytest

from workers.engines.remote.window import FIRST_SIZE, MOST, Window


class Simulation:
    """A server that computes `num_slots` prompts at a time, each in about `seconds`; what is beyond waits there.

    With `limit` it refuses what is beyond that many in flight. `overhead`: each one in flight slows all by so much.
    """

    def __init__(
        self, num_slots: int, *, seconds: float = 2.0, limit: int | None = None, overhead: float = 0.0, seed: int = 1
    ) -> None:
        self.num_slots = num_slots
        self.seconds = seconds
        self.limit = limit
        self.overhead = overhead
        self.now = 0.0
        self.num_tokens = 0
        self.num_busy = 0
        self._random = random.Random(seed)
        self._free: list[float] = []
        self._ends: list[tuple[float, float]] = []

    def clock(self) -> float:
        return self.now

    def run(self, window: Window, *, until: float) -> None:
        while self.now < until:
            while len(self._ends) < window.size:
                if self.limit is not None and len(self._ends) >= self.limit:
                    self.num_busy += 1
                    window.note_busy(sent_at=self.now)
                    break
                self._send()
            end, sent_at = heapq.heappop(self._ends)
            self.now = max(self.now, end)
            self.num_tokens += 100
            window.note_answer(100, sent_at=sent_at, is_full=True)

    def _send(self) -> None:
        slowed = self.seconds * (1 + self.overhead * len(self._ends)) ** 2 * self._random.uniform(0.8, 1.2)
        # When each slot is free; there may be fewer than before.
        while len(self._free) > self.num_slots:
            heapq.heappop(self._free)
        begin = self.now
        if len(self._free) == self.num_slots:
            begin = max(begin, heapq.heappop(self._free))
        heapq.heappush(self._free, begin + slowed)
        heapq.heappush(self._ends, (begin + slowed, self.now))


def settled(simulation: Simulation, window: Window, *, until: float = 3000) -> int:
    simulation.run(window, until=until)
    return window.size


@pytest.mark.parametrize("num_slots", [1, 4, 16, 40, 100, 256, 1000])
def test_size_is_what_keeps_the_server_full_and_little_more(num_slots: int) -> None:
    simulation = Simulation(num_slots)
    window = Window(clock=simulation.clock)

    size = settled(simulation, window)

    # A size is doubled as long as that pays, so twice what is needed is the most.
    assert min(num_slots, MOST) * 0.9 <= size <= max(min(2.5 * num_slots, MOST), 1.5 * FIRST_SIZE)


@pytest.mark.parametrize("num_slots", [4, 40, 200])
def test_little_of_what_the_server_could_do_is_lost_on_the_way(num_slots: int) -> None:
    simulation = Simulation(num_slots)
    simulation.run(Window(clock=simulation.clock), until=600)

    assert simulation.num_tokens >= 0.85 * 100 * num_slots / simulation.seconds * 600


def test_size_is_no_larger_than_pays_where_more_in_flight_slows_all() -> None:
    # At 50 in flight as much is lost as won.
    simulation = Simulation(1000, overhead=0.02)
    window = Window(clock=simulation.clock)

    assert 16 <= settled(simulation, window) <= 110


@pytest.mark.parametrize("limit", [1, 5, 30, 120])
def test_size_stays_about_where_the_server_takes_no_more(limit: int) -> None:
    simulation = Simulation(1000, limit=limit)
    window = Window(clock=simulation.clock)

    size = settled(simulation, window)

    assert limit * 0.5 <= size <= limit + 1
    num_busy = simulation.num_busy
    simulation.run(window, until=6000)
    assert simulation.num_busy - num_busy <= 0.05 * 3000 * limit / simulation.seconds


def test_size_follows_a_server_that_has_less_room_than_before() -> None:
    simulation = Simulation(200)
    window = Window(clock=simulation.clock)
    assert settled(simulation, window) >= 180

    simulation.num_slots = 10

    assert settled(simulation, window, until=20_000) <= 120


def test_size_follows_a_server_that_has_more_room_than_before() -> None:
    simulation = Simulation(16)
    window = Window(clock=simulation.clock)
    before = settled(simulation, window)

    simulation.num_slots = 64

    assert settled(simulation, window, until=20_000) >= 1.5 * before


def test_chosen_size_is_kept_but_for_a_server_that_takes_less() -> None:
    simulation = Simulation(4)
    window = Window(fixed=64, clock=simulation.clock)
    assert settled(simulation, window) == 64

    simulation.limit = 20

    assert settled(simulation, window, until=4000) <= 21


def test_refusals_of_what_was_sent_together_cut_the_size_once() -> None:
    now = 0.0
    clock: Callable[[], float] = lambda: now  # noqa: E731
    window = Window(fixed=64, clock=clock)
    now = 1.0

    for _ in range(40):
        window.note_busy(sent_at=0.5)

    assert window.size == 44


def test_few_rows_say_nothing_about_a_larger_size() -> None:
    now = 0.0
    window = Window(clock=lambda: now)
    for _ in range(1000):
        sent_at = now
        now += 1
        window.note_answer(100, sent_at=sent_at, is_full=False)

    assert window.size == FIRST_SIZE
