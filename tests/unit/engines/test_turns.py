"""Slots go round by client among live requests: in what order, and after how many steps, on a fake model."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from batcher.errors import EngineError
from batcher.types import SamplingParams
from tests.support.fake_model import FakeModel
from workers.engines.base import SequenceRequest, SequenceResult, Ticket
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.kv_cache import KvCache
from workers.engines.llama.sequence import Sequence
from workers.engines.llama.turns import Turns

SLOTS = 4
LONG = 100


def sequence(client: str, number: int) -> Sequence:
    request = SequenceRequest((number, 0), "", SamplingParams(), is_live=True, client=client)
    return Sequence(request, np.zeros(1, np.int32), lambda result: None, Ticket())


def names(*sequences: Sequence) -> list[str]:
    return [f"{s.request.client}{s.request.key[0]}" for s in sequences]


def waiting(**numbers: int) -> Turns:
    turns = Turns()
    for client, number in numbers.items():
        for n in range(number):
            turns.add(sequence(client, n))
    return turns


def taken(turns: Turns, num_running: Counter[str], *, limit: int = 100) -> list[str]:
    found: list[Sequence] = []
    for each in turns.in_turn(num_running):
        if len(found) == limit:
            break
        turns.take(each)
        found.append(each)
    return names(*found)


def test_clients_take_turns_and_their_own_stay_in_order() -> None:
    assert taken(waiting(a=4, b=2, c=1), Counter()) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_client_with_fewest_slots_is_next() -> None:
    assert taken(waiting(a=2, b=3), Counter(a=2)) == ["b0", "b1", "a0", "b2", "a1"]


def test_of_equals_the_one_that_waited_longest_since_its_turn_is_next() -> None:
    turns = waiting(a=3, b=3)
    order = [name for _ in range(4) for name in taken(turns, Counter(), limit=1)]
    assert order == ["a0", "b0", "a1", "b1"]


def test_one_that_is_left_waits_and_has_had_its_turn() -> None:
    turns = waiting(a=3, b=1)

    assert names(*turns.in_turn(Counter())) == ["a0", "b0", "a1", "a2"]
    assert len(turns) == 4


def test_one_that_is_put_back_is_the_first_of_its_client() -> None:
    turns = waiting(a=2)
    turns.put_back(sequence("a", 9))
    turns.drop({each for each in turns if each.request.key[0] == 0})
    assert names(*turns) == ["a9", "a1"]
    assert taken(turns, Counter()) == ["a9", "a1"]
    assert len(turns) == 0


class Stepper:
    """An engine of few slots that takes a step when told to. `ended` names what is finished, in order."""

    def __init__(self) -> None:
        self.model = FakeModel(num_slots=SLOTS)
        cache = KvCache(num_slots=SLOTS, cells_per_sequence=512)
        self.engine = LlamaEngine("fake", self.model, cache=cache, max_batch_tokens=256)  # type: ignore[arg-type]
        self.ended: list[str] = []
        self.texts: dict[str, str] = {}
        self.steps = 0

    def submit(self, client: str, number: int, *, max_tokens: int, is_live: bool = True) -> Ticket:
        params = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        requests = [
            SequenceRequest((n, 0), f"{client}{n}", params, is_live=is_live, client=client) for n in range(number)
        ]

        def take(result: SequenceResult | EngineError) -> None:
            assert isinstance(result, SequenceResult)
            assert result.choice is not None
            self.ended.append(f"{client}{result.key[0]}")
            self.texts[self.ended[-1]] = result.choice.text

        return self.engine.submit(requests, take)

    def step(self, number: int = 1, *, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(number):
            if until() or not self.engine.is_busy:
                return
            self.engine._wait_for_work()
            self.engine.step()
            self.engine._scheduler.check_integrity()
            self.steps += 1

    def running(self) -> Counter[str]:
        return Counter(s.request.client for s in self.engine._scheduler.running())


def test_one_request_is_answered_before_any_of_a_queue_of_long_ones_that_came_first() -> None:
    stepper = Stepper()
    stepper.submit("a", 200, max_tokens=LONG)
    stepper.step(5)

    stepper.submit("b", 1, max_tokens=4)
    stepper.step(6)

    assert stepper.ended == ["b0"]
    assert stepper.engine.stats().num_preempted == 1
    # What gave way goes on where it was: the four that began first also end first.
    stepper.step(2 * LONG, until=lambda: len(stepper.ended) > SLOTS)
    assert set(stepper.ended[1:]) == {f"a{n}" for n in range(SLOTS)}
    alone = Stepper()
    alone.submit("a", SLOTS, max_tokens=LONG)
    alone.step(2 * LONG)
    assert alone.texts.items() <= stepper.texts.items()


def test_slots_come_to_be_shared_by_those_who_have_work() -> None:
    stepper = Stepper()
    stepper.submit("a", 50, max_tokens=20)
    stepper.step(5)
    for client in "bc":
        stepper.submit(client, 50, max_tokens=20)
    stepper.step(1)
    # Each has one at once, and those that end leave theirs to whoever has fewest.
    assert stepper.running() == Counter(a=2, b=1, c=1)

    stepper.step(2000, until=lambda: len(stepper.ended) == 60)

    shares = Counter(name[0] for name in stepper.ended)
    assert max(shares.values()) - min(shares.values()) <= SLOTS
    stepper.step(5000)
    assert len(stepper.ended) == 150


def test_nobody_is_driven_out_by_more_clients_than_there_are_slots() -> None:
    stepper = Stepper()
    for client in "abcdefgh":
        stepper.submit(client, 2, max_tokens=20)
    stepper.step(10)
    assert stepper.running() == Counter("abcd")

    stepper.step(1000)

    assert len(stepper.ended) == 16
    assert stepper.engine.stats().num_preempted == 0


@pytest.mark.parametrize("num_rows", [0, 50])
def test_batch_rows_keep_their_share_whoever_asks(num_rows: int) -> None:
    stepper = Stepper()
    stepper.submit("row", num_rows, max_tokens=LONG, is_live=False)
    stepper.submit("a", 50, max_tokens=LONG)
    stepper.step(3)
    stepper.submit("b", 50, max_tokens=LONG)
    stepper.step(3)

    running = stepper.running()
    assert running["row"] == (1 if num_rows else 0)
    assert running["a"] + running["b"] == SLOTS - running["row"]
    assert running["b"] == 1
