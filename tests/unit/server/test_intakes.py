"""Inputs of batches that are read at once: in turns of equal time, few of them large, each ended where it has to."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from batcher.server.batches import intakes
from batcher.server.batches.intake import ReadingInterruptedError
from batcher.server.batches.intakes import MAX_INTAKES, MAX_LARGE_INTAKES, Intakes, TimeShares, start_thread
from batcher.server.batches.records import MAX_READINGS, BatchStatus, begin_reading
from tests.support.batch_bench import BatchBench, line, lines
from tests.support.clock import Clock
from tests.support.waiting import PATIENCE_S, wait_for


@pytest.fixture
def bench(tmp_path: Path) -> BatchBench:
    return BatchBench(tmp_path)


def take_turns(
    turns: TimeShares, clock: Clock, costs: dict[str, float], *, until: Callable[[list[str]], bool]
) -> list[str]:
    """Let threads go on whose steps take so many seconds of the clock. Returns whose step each was."""
    order: list[str] = []
    together = threading.Barrier(len(costs) + 1)

    def go(name: str) -> None:
        together.wait(PATIENCE_S)
        with turns.joined() as pass_on:
            while not until(order):
                order.append(name)
                clock.now += costs[name]
                pass_on()

    threads = [threading.Thread(target=go, args=(name,)) for name in costs]
    # None begins before all are there.
    with turns.joined() as pass_on:
        for thread in threads:
            thread.start()
        together.wait(PATIENCE_S)
        wait_for(lambda: len(turns._turns) == len(costs) + 1, what="all wait for their turns")
        clock.now += 0.001
        pass_on()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    return order


def test_those_who_read_have_equal_time_however_long_their_steps_take() -> None:
    clock = Clock(0.0)
    order = take_turns(TimeShares(clock), clock, {"large": 1.0, "small": 0.125}, until=lambda order: len(order) >= 90)
    # Eight small steps take as long as a large one.
    assert abs(order.count("small") - 8 * order.count("large")) <= 8
    assert all(order[start : start + 9].count("large") <= 2 for start in range(len(order) - 9))


def test_who_comes_late_does_not_take_what_the_others_have_had() -> None:
    clock = Clock(0.0)
    turns = TimeShares(clock)
    order: list[str] = []

    def come_late() -> None:
        with turns.joined() as pass_on:
            for _ in range(20):
                order.append("late")
                clock.now += 1
                pass_on()

    with turns.joined() as pass_on:
        for _ in range(100):
            clock.now += 1
            assert pass_on() == clock.now
        late = threading.Thread(target=come_late)
        late.start()
        wait_for(lambda: len(turns._turns) == 2, what="the other waits for its turn")
        for _ in range(20):
            order.append("early")
            clock.now += 1
            pass_on()
    late.join(PATIENCE_S)
    assert abs(order[:20].count("late") - 10) <= 1


class Waiting:
    """Intakes whose inputs are read until they are told to end."""

    def __init__(self, root: Path, clock: Clock) -> None:
        self.is_stopping = threading.Event()
        self.ended: list[str] = []
        self.root = root
        self.clock = clock
        self.intakes = Intakes(
            is_stopping=self.is_stopping.is_set,
            on_end=lambda job: self.ended.append(job.job_id),
            start=start_thread,
            shares=TimeShares(clock),
        )
        self.proceed = {name: threading.Event() for name in map(str, range(MAX_INTAKES + 1))}

    def job(self, name: str) -> JobDir:
        return JobDir(self.root / name)

    def begin(self, name: str, *, is_large: bool, seconds: float = 0.0) -> bool:
        def read() -> None:
            with self.intakes.turn(self.job(name)) as checkpoint:
                self.clock.now += seconds
                while not self.proceed[name].wait(0.01):
                    self.clock.now += 1e-3
                    try:
                        checkpoint()
                    except ReadingInterruptedError:
                        return

        return self.intakes.begin(self.job(name), read, is_large=is_large)


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Waiting]:
    waiting = Waiting(tmp_path, Clock(0.0))
    yield waiting
    waiting.is_stopping.set()
    waiting.intakes.join()


def test_large_inputs_leave_room_for_small_ones_and_all_have_a_bound(waiting: Waiting) -> None:
    names = iter(map(str, range(MAX_INTAKES + 1)))
    assert [waiting.begin(next(names), is_large=True) for _ in range(MAX_LARGE_INTAKES)] == [True] * MAX_LARGE_INTAKES
    last = str(MAX_INTAKES)
    assert not waiting.begin(last, is_large=True)
    num_small = MAX_INTAKES - MAX_LARGE_INTAKES
    assert [waiting.begin(next(names), is_large=False) for _ in range(num_small)] == [True] * num_small
    assert not waiting.begin(last, is_large=False)

    waiting.proceed["0"].set()
    wait_for(lambda: waiting.ended == ["0"], what="one is done")
    assert not waiting.intakes.is_reading(waiting.job("0"))
    assert waiting.begin(last, is_large=True)


def test_input_that_turns_out_to_be_large_gives_its_place_to_others(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intakes, "SMALL_S", 0.05)
    # Given a small input that is read for long, while there is room for a large one
    assert waiting.begin("0", is_large=False, seconds=0.06)
    wait_for(lambda: waiting.intakes._running[waiting.job("0").path], what="it counts as large")
    assert waiting.begin("1", is_large=True)

    # When another one is, and there is none
    assert waiting.begin("2", is_large=False, seconds=0.06)

    # Then it begins anew where there is
    wait_for(lambda: waiting.ended == ["2"], what="it ends")
    assert waiting.intakes.has_grown(waiting.job("2"))
    waiting.proceed["1"].set()
    wait_for(lambda: waiting.ended == ["2", "1"], what="the other ends")
    assert waiting.begin("2", is_large=True)
    assert not waiting.intakes.has_grown(waiting.job("2"))


def test_stop_ends_all_that_are_read(waiting: Waiting) -> None:
    for name in ("0", "1", "2"):
        assert waiting.begin(name, is_large=False)
    waiting.is_stopping.set()
    waiting.intakes.join()
    assert sorted(waiting.ended) == ["0", "1", "2"]


def test_bug_in_a_reading_ends_that_one(waiting: Waiting, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    waiting.intakes.begin(waiting.job("0"), fail, is_large=False)
    wait_for(lambda: waiting.ended == ["0"], what="it ends")
    assert "batch 0: unforeseen error" in caplog.text


def test_small_batch_is_read_while_large_ones_are(bench: BatchBench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given inputs that are large here, more than may be read at once, by a keeper with threads of its own
    monkeypatch.setattr("batcher.server.batches.intake.SMALL_BYTES", 100_000)
    large = [bench.create(lines(*(line(f"{at}-{i}") for i in range(5_000)))) for at in range(MAX_LARGE_INTAKES + 1)]
    small = bench.create(lines(line("a")))
    keeper = bench.server(start=start_thread).keeper
    with keeper:
        # When the small one is read, the last that came
        wait_for(lambda: bench.get(small.id).status is not BatchStatus.VALIDATING, what="the small one is read")
        # Then the last of the large ones has not even begun, and can be cancelled without waiting for its turn
        assert bench.get(large[-1].id).status is BatchStatus.VALIDATING
        bench.batches.cancel(large[-1].id)
        wait_for(lambda: bench.get(large[-1].id).status is BatchStatus.CANCELLED, what="it is not read any more")
        wait_for(lambda: len(bench.sent) == len(large), what="the others are read")
    assert [bench.get(batch.id).counts.total for batch in (*large, small)] == [5_000] * MAX_LARGE_INTAKES + [0, 1]
    assert not list(bench.root.glob("*/batch/reading-*"))


def test_input_over_which_servers_die_fails_its_batch(bench: BatchBench) -> None:
    batch = bench.create(lines(line("a")))
    job = bench.job(batch.id)
    job.batch_dir.mkdir()
    for _ in range(MAX_READINGS):
        assert begin_reading(job)

    bench.keeper.make_round()

    failed = bench.get(batch.id)
    assert failed.status is BatchStatus.FAILED
    assert failed.errors[0].message.startswith(f"the server died {MAX_READINGS} times while it read this input; split")
