"""Live requests beside batch rows, on a fake model, step by step."""

import sys
import threading
from dataclasses import dataclass, field

import pytest

from batcher.errors import EngineError
from batcher.types import SamplingParams
from tests.support.fake_model import FakeModel, complete_alone
from workers.engines.base import SequenceDelta, SequenceRequest, SequenceResult, Ticket
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.kv_cache import KvCache

SLOTS = 8


@dataclass
class Stepper:
    """An engine that takes a step when told to, and what came out of it."""

    num_slots: int = SLOTS
    max_batch_tokens: int = 512
    texts: dict[str, str] = field(default_factory=dict)
    heard: dict[str, str] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = FakeModel(num_slots=self.num_slots)
        cache = KvCache(num_slots=self.num_slots, cells_per_sequence=512)
        self.engine = LlamaEngine("fake", self.model, cache=cache, max_batch_tokens=self.max_batch_tokens)  # type: ignore[arg-type]

    @property
    def scheduler(self):  # type: ignore[no-untyped-def]
        return self.engine._scheduler

    def submit(self, *prompts: str, max_tokens: int = 40, is_live: bool = False, is_alone: bool = False) -> Ticket:
        start = len(self.prompts)
        self.prompts.extend(prompts)
        params = SamplingParams(max_tokens=max_tokens, temperature=0, seed=0)
        requests = [
            SequenceRequest((start + n, 0), prompt, params, is_live=is_live, is_alone=is_alone)
            for n, prompt in enumerate(prompts)
        ]
        on_delta = self._hear if is_live else None
        return self.engine.submit(requests, self._take, on_delta=on_delta, is_alone=is_alone)

    def step(self, number: int = 1) -> None:
        for _ in range(number):
            if not self.engine.is_busy:
                self.engine._right.leave()
                return
            self.engine._wait_for_work()
            self.engine.step()
            self.scheduler.check_integrity()

    def steps_until_heard(self, prompt: str) -> int:
        for number in range(1, 500):
            self.step()
            if prompt in self.heard:
                return number
        raise AssertionError(f"nothing came of {prompt!r}")

    def finish(self) -> None:
        while self.engine.is_busy:
            self.step()

    def _take(self, result: SequenceResult | EngineError) -> None:
        assert isinstance(result, SequenceResult)
        assert result.choice is not None
        self.texts[self.prompts[result.key[0]]] = result.choice.text

    def _hear(self, delta: SequenceDelta) -> None:
        prompt = self.prompts[delta.key[0]]
        self.heard[prompt] = self.heard.get(prompt, "") + delta.text


def prompts_of(name: str, number: int) -> list[str]:
    return [f"{name} {n:03d}" for n in range(number)]


@pytest.mark.parametrize("prompt", ["hello", "a long question " * 20])
def test_live_request_starts_as_soon_beside_a_full_batch_as_on_an_idle_engine(prompt: str) -> None:
    idle, busy = Stepper(), Stepper()
    idle.submit(prompt, is_live=True)
    alone = idle.steps_until_heard(prompt)
    busy.submit(*prompts_of("row", 100), max_tokens=200)
    busy.step(5)
    assert busy.scheduler.num_running == SLOTS

    busy.submit(prompt, is_live=True)

    assert busy.steps_until_heard(prompt) <= alone + 3


def test_rows_that_gave_way_go_on_where_they_were() -> None:
    stepper = Stepper()
    rows = prompts_of("row", 2 * SLOTS)
    stepper.submit(*rows)
    stepper.step(10)

    stepper.submit(*prompts_of("live", 2 * SLOTS), is_live=True)
    stepper.finish()

    assert stepper.scheduler.num_preempted > 0
    assert len(stepper.texts) == 4 * SLOTS
    assert {p: stepper.texts[p] for p in stepper.prompts} == {
        p: complete_alone(p, max_tokens=40) for p in stepper.prompts
    }
    live = {p: stepper.texts[p] for p in stepper.prompts if p.startswith("live")}
    assert stepper.heard == live, "the text that came bit by bit is the whole"


def test_batch_keeps_a_quarter_of_the_slots_under_any_load() -> None:
    stepper = Stepper()
    rows = prompts_of("row", SLOTS)
    stepper.submit(*rows, max_tokens=30)
    stepper.step(2)
    number = 0
    while not stepper.texts.keys() & set(rows):
        # As many as there are slots wait at all times.
        for _ in range(SLOTS - stepper.scheduler.num_live_waiting):
            stepper.submit(f"live {number}", is_live=True)
            number += 1
        stepper.step()
        num_rows = stepper.scheduler.num_running - stepper.scheduler.num_live_running
        assert num_rows >= SLOTS // 4 or stepper.texts.keys() & set(rows)
        assert number < 5000


def test_row_gives_way_only_once() -> None:
    stepper = Stepper(num_slots=1)
    stepper.submit("row", max_tokens=30)
    stepper.step(3)
    stepper.submit("first", is_live=True, max_tokens=2)
    stepper.step(4)
    assert "first" in stepper.texts

    stepper.submit("second", is_live=True, max_tokens=2)
    stepper.finish()

    assert list(stepper.texts) == ["first", "row", "second"]
    assert stepper.scheduler.num_preempted == 1


def test_rows_that_gave_way_once_give_way_to_the_next_burst_too() -> None:
    stepper = Stepper()
    rows = prompts_of("row", SLOTS)
    stepper.submit(*rows, max_tokens=200)
    bursts = [[f"live {burst} {n}" for n in range(SLOTS - SLOTS // 4)] for burst in range(4)]
    for burst in bursts:
        stepper.step(5)
        stepper.submit(*burst, is_live=True, max_tokens=3)
        stepper.step(6)
        assert set(burst) <= stepper.texts.keys()

    stepper.finish()
    assert stepper.texts == {p: complete_alone(p, max_tokens=200 if p in rows else 3) for p in stepper.prompts}


def test_engine_of_one_slot_comes_to_its_rows_under_constant_load() -> None:
    stepper = Stepper(num_slots=1)
    stepper.submit("live 0", is_live=True, max_tokens=5)
    stepper.step(2)
    stepper.submit("row", max_tokens=5)
    number = 1
    while "row" not in stepper.texts:
        stepper.submit(f"live {number}", is_live=True, max_tokens=5)
        stepper.step(3)
        number += 1
        assert number < 1000


def test_requests_that_must_be_alone_and_live_ones_take_turns() -> None:
    stepper = Stepper()
    alone, live = prompts_of("suspect", 3), prompts_of("live", 3)
    for prompt in alone:
        stepper.submit(prompt, is_alone=True, max_tokens=3)
    stepper.submit(*live, is_live=True, max_tokens=3)

    stepper.finish()

    order = list(stepper.texts)
    assert order[0] == alone[0]
    assert set(order[1:4]) == set(live), "a second row under suspicion lets pass those who wait"
    assert order[4:] == alone[1:]


def test_prompts_of_rows_are_cut_small_while_somebody_waits_for_the_step() -> None:
    stepper = Stepper()
    stepper.submit("live", is_live=True, max_tokens=100)
    stepper.step(2)

    stepper.submit("x" * 400, "y" * 400, max_tokens=2)
    before = len(stepper.model.batch_sizes)
    stepper.step(8)

    assert max(stepper.model.batch_sizes[before:]) <= 128 + 3
    assert sum(stepper.model.batch_sizes[before:]) > 800


def test_live_request_never_waits_for_its_twin_among_the_rows() -> None:
    stepper = Stepper(num_slots=2)
    stepper.submit(*prompts_of("row", 50), "same", max_tokens=100)
    stepper.step(3)

    stepper.submit("same", is_live=True, max_tokens=100)

    assert stepper.steps_until_heard("same") <= 3


def test_cancelled_live_request_frees_its_slot_at_the_next_step() -> None:
    stepper = Stepper()
    tickets = [stepper.submit(f"live {n}", is_live=True, max_tokens=400) for n in range(SLOTS)]
    stepper.step(3)
    assert stepper.engine.stats().num_live_running == SLOTS

    for ticket in tickets:
        ticket.cancel()
    stepper.engine._wait_for_work()

    stats = stepper.engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_cells_used) == (0, 0, 0)


def test_rows_that_have_just_come_are_not_counted_as_live() -> None:
    stepper = Stepper()
    stepper.submit(*prompts_of("row", 5))
    stepper.submit("live", is_live=True)

    stats = stepper.engine.stats()

    assert (stats.num_waiting, stats.num_live_waiting) == (6, 1)


def test_any_thread_may_ask_how_the_engine_is_while_it_moves() -> None:
    stepper = Stepper()
    failures: list[Exception] = []
    is_over = threading.Event()

    def ask() -> None:
        while not is_over.is_set():
            try:
                stepper.engine.stats()
            except Exception as exc:
                failures.append(exc)
                return

    asking = threading.Thread(target=ask)
    # So that the threads take turns in the middle of things.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    asking.start()
    try:
        for number in range(150):
            stepper.submit(*prompts_of(f"row {number}", 12), max_tokens=3)
            stepper.submit(f"live {number}", is_live=True, max_tokens=2)
            stepper.step(2)
        stepper.finish()
    finally:
        is_over.set()
        asking.join()
        sys.setswitchinterval(interval)

    assert failures == []
