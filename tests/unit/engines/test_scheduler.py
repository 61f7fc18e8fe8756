"""Slots, prefixes and order of work, stepped by hand, without llama.cpp."""

import numpy as np
import pytest

from batcher.errors import EngineError
from batcher.types import SamplingParams
from workers.engines.base import SequenceRequest, SequenceResult, Ticket
from workers.engines.llama.kv_cache import MIN_SHARED_TOKENS, KvCache, Placement
from workers.engines.llama.scheduler import Scheduler
from workers.engines.llama.sequence import Sequence
from workers.engines.llama.step import StepBatch

#: Long enough to be shared.
PREFIX = tuple(range(1000, 1000 + MIN_SHARED_TOKENS + 8))


def ignore(_result: SequenceResult | EngineError) -> None:
    """A sink nobody reads."""


def make_sequence(
    prompt: int | tuple[int, ...], max_tokens: int = 4, owner: Ticket | None = None, *, is_alone: bool = False
) -> Sequence:
    """A sequence of this prompt, or of one so long that shares nothing with others."""
    request = SequenceRequest((0, 0), "", SamplingParams(max_tokens=max_tokens, seed=0), is_alone=is_alone)
    tokens = np.array(prompt if isinstance(prompt, tuple) else range(prompt), np.int32)
    return Sequence(request, tokens, ignore, owner or Ticket())


def make_scheduler(*, slots: int = 4, cells: int = 64, batch: int = 16) -> Scheduler:
    return Scheduler(
        KvCache(num_slots=slots, cells_per_sequence=cells), max_batch_tokens=batch, max_scored_tokens=batch
    )


def compute(scheduler: Scheduler, batch: StepBatch) -> list[Sequence]:
    """What the engine does with a batch, on an imaginary model that always gives token 7; returns what finished."""
    tokens = np.full(len(batch.ready), 7, np.int32)
    is_full = scheduler.advance(batch, tokens, is_end=np.zeros(len(tokens), np.bool_))
    finished = [sequence for sequence, is_done in zip(batch.ready, is_full, strict=True) if is_done]
    for sequence in finished:
        assert len(scheduler.completion(sequence)) == sequence.request.params.max_tokens
        scheduler.finish(sequence)
    scheduler.check_integrity()
    return finished


def step(scheduler: Scheduler) -> list[Sequence]:
    """One step; returns what finished."""
    batch = scheduler.schedule()
    return [] if batch is None else compute(scheduler, batch)


def running_slots(scheduler: Scheduler) -> list[int]:
    return sorted(sequence.slot for sequence in scheduler.running())


def test_sequences_fill_the_lowest_slots() -> None:
    scheduler = make_scheduler(slots=2)
    scheduler.add(make_sequence(3, 2) for _ in range(3))

    batch = scheduler.schedule()

    assert batch is not None
    assert batch.slots.tolist() == [0, 0, 0, 1, 1, 1]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.wants_logits.tolist() == [0, 0, 1, 0, 0, 1]
    assert scheduler.num_waiting == 1


def test_freed_slot_is_taken_by_the_next_in_line() -> None:
    scheduler = make_scheduler(slots=2)
    long, short, waiting = make_sequence(2, 9), make_sequence(2, 2), make_sequence(2, 1)
    scheduler.add([long, short, waiting])

    assert step(scheduler) == []
    assert step(scheduler) == [short]
    batch = scheduler.schedule()

    assert batch is not None
    assert batch.ready == (long, waiting)
    assert batch.started == (waiting,)


def test_those_with_more_to_do_go_first() -> None:
    scheduler = make_scheduler(slots=1)
    short, long, middle = make_sequence(2, 2), make_sequence(2, 9), make_sequence(7, 1)
    scheduler.add([short, long, middle])

    finished = []
    while scheduler.has_work:
        finished += step(scheduler)

    assert finished == [long, middle, short]


def test_short_ones_are_not_overtaken_for_ever() -> None:
    scheduler = make_scheduler(slots=1)
    short = make_sequence(2, 1)
    scheduler.add([make_sequence(3, 9), short])

    finished: list[Sequence] = []
    arrivals = 0
    while short not in finished:
        done = step(scheduler)
        finished += done
        if done:
            scheduler.add([make_sequence(3, 9)])
            arrivals += 1

    assert arrivals <= 3


def test_long_prompt_is_computed_in_chunks_beside_decoding_ones() -> None:
    scheduler = make_scheduler(slots=2, batch=8)
    decoding, long = make_sequence(2, 20), make_sequence(20, 4)
    scheduler.add([decoding])
    step(scheduler)
    scheduler.add([long])

    batches = []
    for _ in range(3):
        batch = scheduler.schedule()
        assert batch is not None
        batches.append((batch.counts.tolist(), [sequence is long for sequence in batch.ready]))
        compute(scheduler, batch)

    assert batches == [([1, 7], [False]), ([1, 7], [False]), ([1, 6], [False, True])]


def test_prefix_is_computed_once_and_copied_to_those_that_wait_for_it() -> None:
    scheduler = make_scheduler(slots=3, batch=512)
    sequences = [make_sequence((*PREFIX, 2000 + n)) for n in range(3)]
    scheduler.add(sequences)

    first = scheduler.schedule()
    assert first is not None
    assert len(first.started) == 1, "the others wait until its prompt is computed"
    compute(scheduler, first)
    second = scheduler.schedule()

    assert second is not None
    assert second.placements == (Placement(0, 1, len(PREFIX)), Placement(0, 2, len(PREFIX)))
    assert second.counts.tolist() == [1, 1, 1]
    assert sorted(s.num_cached for s in sequences) == [0, len(PREFIX), len(PREFIX)]


def test_equal_prompts_share_all_but_the_last_token() -> None:
    scheduler = make_scheduler(slots=2, batch=512)
    sequences = [make_sequence(PREFIX), make_sequence(PREFIX)]
    scheduler.add(sequences)
    step(scheduler)
    step(scheduler)
    assert sorted(s.num_cached for s in sequences) == [0, len(PREFIX) - 1]


def test_those_with_other_prefixes_do_not_wait() -> None:
    scheduler = make_scheduler(slots=4, batch=512)
    other = tuple(token + 500 for token in PREFIX)
    scheduler.add([make_sequence((*prefix, n)) for n in range(3) for prefix in (PREFIX, other)])

    batch = scheduler.schedule()

    assert batch is not None
    assert len(batch.started) == 2
    assert {int(s.prompt[0]) for s in batch.started} == {PREFIX[0], other[0]}


def test_nested_prefixes_share_what_they_have_in_common() -> None:
    """Given a system prompt, two tasks below it and rows of each, every piece is computed once."""
    scheduler = make_scheduler(slots=8, cells=256, batch=512)
    tasks = [(*PREFIX, *range(base, base + 40)) for base in (3000, 4000)]
    sequences = [make_sequence((*task, 5000 + n)) for n in range(4) for task in tasks]
    scheduler.add(sequences)

    num_computed = 0
    while scheduler.has_work:
        batch = scheduler.schedule()
        assert batch is not None
        num_computed += len(batch.tokens)
        compute(scheduler, batch)

    num_generated = len(sequences) * 3  # of the fourth token nothing is computed
    assert num_computed == len(PREFIX) + 2 * 40 + len(sequences) + num_generated


def test_free_slot_that_holds_the_prefix_is_taken_without_a_copy() -> None:
    scheduler = make_scheduler(slots=2, batch=512)
    first = make_sequence((*PREFIX, 1), max_tokens=1)
    scheduler.add([first])
    assert step(scheduler) == [first]
    scheduler.add([make_sequence((*PREFIX, 2)), make_sequence(9), make_sequence(5)])

    batch = scheduler.schedule()

    assert batch is not None
    assert Placement(0, 0, len(PREFIX)) in batch.placements


def test_branch_whose_prefix_is_there_goes_before_it_is_overwritten() -> None:
    scheduler = make_scheduler(slots=1, batch=512)
    first = make_sequence((*PREFIX, 1), max_tokens=1)
    scheduler.add([first])
    step(scheduler)
    again, longer = make_sequence((*PREFIX, 2)), make_sequence(50)
    scheduler.add([longer, again])
    step(scheduler)
    assert again.num_cached == len(PREFIX)


@pytest.mark.parametrize("is_sharing", [True, False])
def test_one_that_runs_alone_shares_nothing(is_sharing: bool) -> None:
    scheduler = make_scheduler(slots=2, batch=512)
    scheduler._cache.is_sharing = is_sharing
    alone = make_sequence((*PREFIX, 2), is_alone=is_sharing)
    scheduler.add([make_sequence((*PREFIX, 1), max_tokens=1)])
    step(scheduler)
    scheduler.add([alone])
    step(scheduler)
    assert alone.num_cached == 0


def test_gaps_between_the_last_running_are_closed() -> None:
    """llama.cpp computes slots in one pass only where no number is missing between them."""
    scheduler = make_scheduler(slots=4, cells=64)
    lasting = [make_sequence(3, 30), make_sequence(3, 29)]
    scheduler.add([make_sequence(20, 2), lasting[0], make_sequence(19, 2), lasting[1]])
    slots = []
    while scheduler.has_work:
        step(scheduler)
        slots.append(running_slots(scheduler))

    both = [found for found in slots if len(found) == 2]
    assert both[-1] == [0, 1]
    assert sum(found != [0, 1] for found in both) <= 1


def test_cancelled_sequences_leave_at_once_and_others_stay() -> None:
    scheduler = make_scheduler(slots=2)
    gone, staying = Ticket(), Ticket()
    scheduler.add([make_sequence(2, 9, gone), make_sequence(2, 9, staying), make_sequence(2, 8, gone)])
    scheduler.schedule()
    gone.is_cancelled = True

    dropped = scheduler.drop_unwanted()

    assert [sequence.owner for sequence in dropped] == [gone, gone]
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 0)
    scheduler.check_integrity()


def test_cancelled_sequence_stays_while_a_twin_waits_for_its_answer() -> None:
    scheduler = make_scheduler()
    gone, staying = Ticket(), Ticket()
    gone.cancel()
    first = make_sequence(2, 9, gone)
    first.twins.append(make_sequence(2, 9, staying))
    scheduler.add([first])

    assert scheduler.drop_unwanted() == []
    staying.is_cancelled = True
    assert scheduler.drop_unwanted() == [first]


def test_sequence_that_must_be_alone_waits_for_the_others_and_lets_none_in() -> None:
    scheduler = make_scheduler(slots=4)
    before, alone, after = (make_sequence(3, 2, is_alone=each) for each in (False, True, False))
    scheduler.add([before, alone, after])

    finished = []
    companies = []
    while scheduler.has_work:
        finished += step(scheduler)
        companies.append([s for s in (before, alone, after) if s in scheduler.running()])

    assert finished == [before, alone, after]
    assert all(len(company) <= 1 for company in companies)


def test_sequences_that_must_be_alone_follow_each_other() -> None:
    scheduler = make_scheduler(slots=4)
    sequences = [make_sequence(3, 2, is_alone=True) for _ in range(3)]
    scheduler.add(sequences)

    finished = []
    while scheduler.has_work:
        finished += step(scheduler)
        assert scheduler.num_running <= 1

    assert finished == sequences


def test_tokens_in_flight_are_counted_by_their_owner() -> None:
    scheduler, mine, others = make_scheduler(slots=3), Ticket(), Ticket()
    scheduler.add([make_sequence(3, owner=mine), make_sequence(3, 9, owner=mine), make_sequence(3, 9, owner=others)])
    assert scheduler.num_generated() == 0
    for _ in range(3):
        step(scheduler)

    assert (scheduler.num_generated(mine), scheduler.num_generated(others), scheduler.num_generated()) == (6, 3, 9)
    assert len(step(scheduler)) == 1  # the first is full, and counts no more
    assert (scheduler.num_generated(mine), scheduler.num_generated(others)) == (4, 4)
