"""What some seconds of a job say of the whole of it: costs of steps, lengths of texts, and the steps that all take."""

import itertools
import queue
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import EngineError
from batcher.types import SamplingParams
from tests.support.manual_engine import ManualEngine
from tests.support.tiny_engine import complete, running
from tests.support.tiny_gguf import write_tiny_gguf
from workers.engines.base import SequenceRequest, SequenceResult, ignore_start
from workers.estimating.dealing import Dealer, DealtEngine
from workers.estimating.forecast import Work, forecast_s
from workers.estimating.lengths import Length, Lengths
from workers.estimating.meter import Step, StepCost, StepMeter, fit_steps

# -- what steps cost ----------------------------------------------------------------------------------------------


def test_costs_are_found_again_in_steps_that_have_them() -> None:
    cost = StepCost(0.02, 0.001, 0.004)
    shapes = [(0, 1), (0, 8), (100, 7), (500, 3), (30, 32), (0, 30)] * 5
    noise = random.Random(1)
    steps = [
        Step(read, drawn, cost.of(num_prompt_tokens=read, num_drawn=drawn) * noise.uniform(0.9, 1.1))
        for read, drawn in shapes
    ]

    found = fit_steps(steps)

    assert found.base_s == pytest.approx(cost.base_s, rel=0.5)
    assert found.prompt_token_s == pytest.approx(cost.prompt_token_s, rel=0.1)
    assert found.drawn_s == pytest.approx(cost.drawn_s, rel=0.2)
    assert 0 < found.spread < 0.1


@given(
    st.lists(
        st.tuples(st.integers(0, 2000), st.integers(0, 64), st.floats(1e-4, 10)).map(lambda each: Step(*each)),
        min_size=1,
        max_size=60,
    )
)
def test_no_cost_is_negative_and_all_steps_together_take_what_they_took(steps: list[Step]) -> None:
    found = fit_steps(steps)

    assert min(found.base_s, found.prompt_token_s, found.drawn_s, found.spread) >= 0
    predicted = sum(found.of(num_prompt_tokens=each.num_prompt_tokens, num_drawn=each.num_drawn) for each in steps)
    assert predicted == pytest.approx(sum(each.seconds for each in steps))


def test_the_meter_counts_from_its_start_and_tells_prompts_from_what_is_drawn() -> None:
    times = iter([1.0, 3.0, 3.5])
    meter = StepMeter(clock=lambda: next(times))

    meter.add(500, 1)
    meter.start()
    for step in [(40, 2), (12, 2), (2, 2)]:
        meter.add(*step)

    assert meter.steps == [Step(10, 2, 2.0), Step(0, 2, 0.5)]


# -- how long completions become ----------------------------------------------------------------------------------


def test_lengths_of_whole_completions_are_drawn_as_often_as_they_came() -> None:
    seen = [Length(number, is_whole=True) for number in (3, 3, 5, 20)]

    drawn = Lengths(seen).draw(np.full(400, 1000), seed=0)

    assert {int(each): int((drawn == each).sum()) for each in set(drawn.tolist())} == {3: 200, 5: 100, 20: 100}


def test_completions_that_were_cut_off_are_longer_than_they_were() -> None:
    """Each token ends a text with a chance of 1%, and none was let grow beyond 60."""
    natural = np.random.default_rng(3).geometric(0.01, 2000)
    seen = [Length(min(60, int(each)), is_whole=bool(each <= 60)) for each in natural]

    lengths = Lengths(seen)

    for most in (30, 60, 300):
        drawn = lengths.draw(np.full(1000, most), seed=0)
        assert drawn.mean() == pytest.approx(np.minimum(natural, most).mean(), rel=0.1)


def test_where_no_text_ends_by_itself_all_reach_their_bound() -> None:
    drawn = Lengths([Length(16, is_whole=False)] * 5).draw(np.array([4, 16, 500]), seed=0)

    assert drawn.tolist() == [4, 16, 500]


def test_nothing_seen_is_no_error() -> None:
    assert Lengths([]).draw(np.array([7]), seed=0).tolist() == [7]
    assert Lengths([Length(0, is_whole=True)]).draw(np.array([7]), seed=0).tolist() == [0]


# -- the steps of all ---------------------------------------------------------------------------------------------


def steps_of(work: list[Work], *, num_slots: int, num_work: int | None = None, max_batch_tokens: int = 2048) -> float:
    one = StepCost(1.0, 0.0, 0.0)
    return forecast_s(work, one, num_work=num_work or len(work), num_slots=num_slots, max_batch_tokens=max_batch_tokens)


def test_one_slot_takes_one_sequence_after_the_other() -> None:
    work = [Work(10, 5), Work(3, 1), Work(0, 4)]
    cost = StepCost(1.0, 0.1, 0.01)

    # The step that reads a prompt to its end draws its first token.
    assert steps_of(work, num_slots=1) == 5 + 1 + 4
    assert forecast_s(work, cost, num_work=3, num_slots=1, max_batch_tokens=64) == pytest.approx(10 + 1.3 + 0.1)


def test_slots_share_steps_and_long_prompts_take_several() -> None:
    assert steps_of([Work(10, 5)] * 8, num_slots=4) == 10
    assert steps_of([Work(100, 1)], num_slots=4, max_batch_tokens=30) == 4


def test_a_part_of_the_work_stands_for_all() -> None:
    work = [Work(10, 20)] * 400

    assert steps_of(work, num_slots=8, num_work=4000) == pytest.approx(steps_of(work * 10, num_slots=8), rel=0.02)


@pytest.mark.parametrize("num_slots", [1, 4, 8])
def test_an_engine_makes_about_as_many_steps(tmp_path: Path, num_slots: int) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    ragged = random.Random(4)
    texts = ["".join(ragged.choice("abcdefgh") for _ in range(ragged.randrange(1, 200))) for _ in range(60)]
    requests = [
        SequenceRequest((i, 0), text, SamplingParams(max_tokens=ragged.randrange(1, 60)), seed=i)
        for i, text in enumerate(texts)
    ]
    with running(tmp_path / "tiny.gguf", num_slots=num_slots) as engine:
        before = engine.num_steps
        results = complete(engine, requests)
        made = engine.num_steps - before

    usages = {each.key[0]: each.choice.usage for each in results if each.choice is not None}
    longest_first = sorted(usages.values(), key=lambda usage: -usage.completion_tokens)
    work = [Work(each.prompt_tokens - each.cached_tokens, each.completion_tokens) for each in longest_first]
    assert steps_of(work, num_slots=num_slots) == pytest.approx(made, rel=0.15)


# -- dealing ------------------------------------------------------------------------------------------------------


@pytest.fixture
def engine() -> Iterator[ManualEngine]:
    made = ManualEngine()
    yield made
    made.close()


def offer(dealer: Dealer, shard: int, number: int) -> "queue.SimpleQueue[SequenceResult | EngineError]":
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    requests = [
        SequenceRequest((position, each), f"{shard}.{position}", SamplingParams())
        for position in range(number)
        for each in range(2)
    ]
    DealtEngine(dealer, shard).submit(requests, inbox.put)
    return inbox


def test_rows_of_all_shards_are_dealt_in_random_order_and_whole(engine: ManualEngine) -> None:
    dealer = Dealer(engine, 3, seed=1)
    inboxes = [offer(dealer, shard, 20) for shard in (0, 1)]
    dealer.note_offer(2)

    dealer.deal(seconds=60, grace_s=60)

    dealt = [request.prompt for request in engine.seen]
    rows = dealt[::2]
    assert dealt[1::2] == rows
    assert sorted(rows) == sorted(f"{shard}.{position}" for shard in (0, 1) for position in range(20))
    assert rows != sorted(rows)
    assert {row[0] for row in rows[:8]} == {"0", "1"}
    assert [inbox.qsize() for inbox in inboxes] == [40, 40]
    assert all(each.result is not None and each.start_step is not None for each in dealer.dealt)
    assert dealer.is_over.is_set()


def test_when_the_time_is_over_no_more_is_dealt_and_what_runs_gets_its_grace() -> None:
    engine = ManualEngine(allowance=1)
    dealer = Dealer(engine, 1, seed=1, clock=ticking())
    offer(dealer, 0, 20)

    dealer.deal(seconds=5, grace_s=5, min_steps=1)

    # A row for its slot, and another if its first sequence ended in time.
    assert len(engine.seen) in (2, 4)
    assert [each.result is None for each in dealer.dealt].count(False) == 1
    engine.close()


def test_however_slow_an_engine_is_some_steps_are_waited_for() -> None:
    engine = ManualEngine(allowance=0)
    dealer = Dealer(engine, 1, seed=1, clock=ticking())
    offer(dealer, 0, 20)
    thread = threading.Thread(target=dealer.deal, kwargs={"seconds": 5, "grace_s": 5, "min_steps": 2})

    thread.start()
    engine.wait_until_taken(2)
    assert thread.is_alive()
    engine.allow(2)
    thread.join(60)

    assert dealer.is_over.is_set()
    assert engine.num_steps == 2
    engine.close()


def ticking() -> Callable[[], float]:
    """A clock that goes on by a second whenever somebody looks."""
    return map(float, itertools.count()).__next__


def test_who_ends_it_is_heard_at_once_also_before_all_have_offered(engine: ManualEngine) -> None:
    dealer = Dealer(engine, 2, seed=1)
    offer(dealer, 0, 3)
    dealer.is_over.set()

    dealer.deal(seconds=60, grace_s=60)

    assert dealer.dealt == []


def test_an_engine_that_dies_is_an_error() -> None:
    engine = ManualEngine(allowance=0)
    dealer = Dealer(engine, 1, seed=1)
    offer(dealer, 0, 3)
    engine.die()

    with pytest.raises(EngineError, match="llama_decode"):
        dealer.deal(seconds=60, grace_s=60)


def test_rows_that_must_be_alone_are_left_to_the_run(engine: ManualEngine) -> None:
    dealer = Dealer(engine, 1, seed=1)
    request = SequenceRequest((0, 0), "a", SamplingParams(), is_alone=True)
    DealtEngine(dealer, 0).submit([request], lambda result: None, on_start=ignore_start, is_alone=True)
    dealer.note_offer(0)

    dealer.deal(seconds=60, grace_s=60)

    assert engine.seen == []
