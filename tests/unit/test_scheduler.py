"""Slots, KV budget and order of work, stepped by hand, without a model."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import EngineError
from batcher.types import SamplingParams
from workers.engine.kv_cache import KvCache
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence, SequenceRequest, SequenceResult


@dataclass
class Owner:
    is_cancelled: bool = False


def ignore(_result: SequenceResult | EngineError) -> None:
    """A sink nobody reads."""


def make_sequence(num_prompt: int, max_tokens: int, owner: Owner | None = None, *, is_alone: bool = False) -> Sequence:
    request = SequenceRequest((0, 0), "", SamplingParams(max_tokens=max_tokens, seed=0), is_alone=is_alone)
    return Sequence(request, list(range(num_prompt)), ignore, owner or Owner())


def make_scheduler(*, slots: int = 4, cells: int = 64, batch: int = 16, total: int | None = None) -> Scheduler:
    cache = KvCache(num_slots=slots, cells_per_sequence=cells, num_cells=total or slots * cells)
    return Scheduler(cache, max_batch_tokens=batch)


def step(scheduler: Scheduler) -> list[Sequence]:
    """One engine step on an imaginary model that always gives token 7; returns what finished."""
    finished = []
    for item in scheduler.schedule():
        sequence = item.sequence
        sequence.num_computed += item.num_tokens
        if item.wants_logits and sequence.append(7, b"x", is_end=False):
            scheduler.finish(sequence)
            finished.append(sequence)
    scheduler.check_integrity()
    return finished


def test_sequences_enter_in_order_and_fill_the_lowest_slots() -> None:
    scheduler = make_scheduler(slots=2)
    first, second, third = (make_sequence(3, 2) for _ in range(3))
    scheduler.add([first, second, third])

    batch = scheduler.schedule()

    assert [item.sequence for item in batch] == [first, second]
    assert [item.sequence.slot for item in batch] == [0, 1]
    assert scheduler.num_waiting == 1


def test_freed_slot_is_taken_by_the_next_in_line() -> None:
    scheduler = make_scheduler(slots=2)
    short, long, waiting = make_sequence(2, 1), make_sequence(2, 9), make_sequence(2, 9)
    scheduler.add([short, long, waiting])

    assert step(scheduler) == [short]
    batch = scheduler.schedule()

    assert [item.sequence for item in batch] == [waiting, long]


def test_long_prompt_is_computed_in_chunks_beside_decoding_ones() -> None:
    scheduler = make_scheduler(slots=2, batch=8)
    decoding, long = make_sequence(2, 20), make_sequence(20, 4)
    scheduler.add([decoding])
    step(scheduler)
    scheduler.add([long])

    sizes = []
    for _ in range(3):
        batch = {item.sequence: item for item in scheduler.schedule()}
        sizes.append((batch[decoding].num_tokens, batch[long].num_tokens, batch[long].wants_logits))
        for item in batch.values():
            item.sequence.num_computed += item.num_tokens
            if item.wants_logits:
                item.sequence.append(7, b"x", is_end=False)

    assert sizes == [(1, 7, False), (1, 7, False), (1, 6, True)]


def test_admission_reserves_prompt_and_max_tokens() -> None:
    scheduler = make_scheduler(slots=4, cells=64, total=64)
    big, small = make_sequence(10, 40), make_sequence(10, 10)
    scheduler.add([big, small])

    scheduler.schedule()

    assert scheduler.num_running == 1  # 50 + 20 cells are more than 64, and nobody overtakes
    while not step(scheduler):
        pass
    scheduler.schedule()
    assert scheduler.num_running == 1
    assert scheduler.num_waiting == 0


def test_cancelled_sequences_leave_at_once_and_others_stay() -> None:
    scheduler = make_scheduler(slots=2)
    gone, staying = Owner(), Owner()
    scheduler.add([make_sequence(2, 9, gone), make_sequence(2, 9, staying), make_sequence(2, 9, gone)])
    scheduler.schedule()
    gone.is_cancelled = True

    dropped = scheduler.drop_cancelled()

    assert [sequence.owner for sequence in dropped] == [gone]
    assert (scheduler.num_running, scheduler.num_waiting) == (1, 0)
    scheduler.check_integrity()


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(0, 5)), max_size=25),
    st.integers(1, 5),
    st.integers(5, 40),
    st.integers(60, 200),
)
def test_every_sequence_finishes_once_within_budget(
    arrivals: list[tuple[int, int, int]], slots: int, batch: int, total: int
) -> None:
    """Random lengths and arrival times: the batch limit and the books hold at every step, and all come out."""
    scheduler = make_scheduler(slots=slots, cells=60, batch=batch, total=total)
    expected = [make_sequence(prompt, max_tokens) for prompt, max_tokens, _ in arrivals]
    queue = list(zip(expected, (delay for _, _, delay in arrivals), strict=True))
    finished: list[Sequence] = []
    steps = 0
    while queue or scheduler.has_work:
        while queue and queue[0][1] <= steps % 6:
            scheduler.add([queue.pop(0)[0]])
        layout = scheduler.schedule()
        assert sum(item.num_tokens for item in layout) <= batch
        assert [item.sequence.slot for item in layout] == sorted(item.sequence.slot for item in layout)
        assert all(item.num_tokens > 0 for item in layout)
        finished += step(scheduler)
        steps += 1
        assert steps < 10_000
    assert sorted(map(id, finished)) == sorted(map(id, expected))
    assert all(s.num_completion_tokens == s.request.params.max_tokens for s in finished)


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
