"""One shard from claim to commit, with a real broker, real files, and an engine that answers when told to."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batcher.broker.client import lease_key, open_client
from batcher.broker.embedded import embedded_broker
from batcher.broker.leases import Lease, Leases, Pace
from batcher.errors import EngineError, JobError
from batcher.jobdir.results import read_counts
from batcher.types import ErrorCode, RowError
from tests.support.job_files import make_job, make_request
from tests.support.manual_engine import ManualEngine
from tests.support.shard_bench import ROWS, Bench
from tests.support.waiting import wait_for
from workers.engines.base import OnDelta, OnStart, SequenceRequest, Sink, Ticket, ignore_start
from workers.process.stall import MIN_LIMIT_S
from workers.shard.runner import FLUSH_INTERVAL_S, RunOutcome, run_shard


class SlowTokenizer(ManualEngine):
    """Has `on_take` called as it tokenizes each request, with the number of those before."""

    def __init__(self, on_take: Callable[[int], None]) -> None:
        super().__init__(allowance=0)
        self.num_taken = 0
        self._on_take = on_take

    def submit(
        self,
        requests: Iterable[SequenceRequest],
        sink: Sink,
        *,
        on_start: OnStart = ignore_start,
        on_delta: OnDelta | None = None,
        is_alone: bool = False,
    ) -> Ticket:
        taken = (self._take(request) for request in requests)
        return super().submit(taken, sink, on_start=on_start, on_delta=on_delta, is_alone=is_alone)

    def _take(self, request: SequenceRequest) -> SequenceRequest:
        self._on_take(self.num_taken)
        self.num_taken += 1
        return request


def test_shard_becomes_a_part_with_every_row_in_order(bench: Bench) -> None:
    assert bench.run(ManualEngine()) is RunOutcome.COMMITTED

    part = bench.part()
    assert part["row"] == list(range(ROWS))
    assert part["custom_id"] == [f"id-{row}" for row in range(ROWS)]
    assert part["text"] == [f"<prompt {row}.0>" for row in range(ROWS)]
    assert part["topic"] == [f"topic-{row}" for row in range(ROWS)]
    assert part["id"] == [f"cmpl-{bench.job.manifest.response_digits(row)}" for row in range(ROWS)]
    assert set(part["attempts"]) == {1}
    assert set(part["worker"]) == {"w1"}
    assert bench.commits == [bench.job]
    assert bench.job.chunks(0) == []
    assert bench.lease is None


def test_array_prompt_gives_its_choices_in_order_of_index(tmp_path: Path, bench: Bench) -> None:
    bench.job = make_job(tmp_path / "arrays", [[make_request(0, "a", "b", "c"), make_request(1)]])
    engine = ManualEngine()

    bench.run(engine)

    part = bench.part()
    assert list(zip(part["row"], part["index"], part["text"], strict=True)) == [
        (0, 0, "<a>"),
        (0, 1, "<b>"),
        (0, 2, "<c>"),
        (1, 0, "<prompt 1.0>"),
    ]
    assert len({request.seed for request in engine.seen}) == 4
    assert part["topic"] == ["topic-0"] * 3 + ["topic-1"]


def test_one_failed_choice_makes_its_row_an_error_row_and_no_other(tmp_path: Path, bench: Bench) -> None:
    bench.job = make_job(tmp_path / "arrays", [[make_request(0, "a", "bad", "c"), make_request(1)]])
    error = RowError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "too long")
    engine = ManualEngine(lambda request: error if request.prompt == "bad" else "fine")

    bench.run(engine)

    part = bench.part()
    assert list(zip(part["row"], part["status"], part["error_code"], part["attempts"], strict=True)) == [
        (0, "error", "context_length_exceeded", 1),
        (1, "ok", None, 1),
    ]


def test_refused_row_in_a_shard_keeps_its_error_and_is_not_computed(tmp_path: Path, bench: Bench) -> None:
    refusal = RowError(ErrorCode.MODEL_NOT_FOUND, "no such model")
    bench.job = make_job(tmp_path / "refused", (3,), refusals={1: refusal})
    engine = ManualEngine()

    bench.run(engine)

    assert [request.prompt for request in engine.seen] == ["prompt 0.0", "prompt 2.0"]
    assert bench.part()["error_code"] == [None, "model_not_found", None]


def test_stop_saves_finished_rows_and_the_next_attempt_computes_only_the_others(bench: Bench) -> None:
    engine, running = bench.begin(4)

    bench.stopping.set()

    assert running.result(timeout=10) is RunOutcome.STOPPED
    assert bench.chunk_rows() == [0, 1, 2, 3]
    assert bench.lease is None
    assert not bench.job.part_path(0).exists()

    bench.stopping.clear()
    second = ManualEngine()
    assert bench.run(second, worker="w2") is RunOutcome.COMMITTED

    assert [request.prompt for request in second.seen] == ["prompt 4.0", "prompt 5.0"]
    # They draw as they would have.
    seeds = {request.prompt: request.seed for request in engine.seen}
    assert [request.seed for request in second.seen] == [seeds["prompt 4.0"], seeds["prompt 5.0"]]
    part = bench.part()
    assert part["row"] == list(range(ROWS))
    assert part["id"] == [f"cmpl-{bench.job.manifest.response_digits(row)}" for row in range(ROWS)]
    assert part["attempts"] == [1, 1, 1, 1, 2, 2]
    assert part["worker"] == ["w1"] * 4 + ["w2"] * 2


def test_finished_rows_are_saved_every_few_seconds(bench: Bench) -> None:
    engine, running = bench.begin(2)
    assert bench.job.chunks(0) == []

    bench.clock.now += FLUSH_INTERVAL_S
    assert bench.progress.acquire(timeout=10)
    saved = bench.job.chunks(0)
    assert bench.chunk_rows() == [0, 1]
    assert read_counts(saved[0].path).num_ok == 2

    engine.allow(ROWS)
    assert running.result(timeout=10) is RunOutcome.COMMITTED


def test_dead_engine_costs_only_unfinished_rows(bench: Bench) -> None:
    engine, running = bench.begin(3)

    engine.die()

    with pytest.raises(EngineError, match="llama_decode"):
        running.result(timeout=10)
    assert bench.chunk_rows() == [0, 1, 2]
    assert bench.lease is None


def test_shard_leased_by_another_is_left_alone(bench: Bench) -> None:
    bench.client.set(lease_key(bench.job.manifest.identity, 0), "other")
    engine = ManualEngine()

    assert bench.run(engine) is RunOutcome.LEASED_ELSEWHERE

    assert engine.seen == []
    assert bench.job.num_attempts(0) == 0
    assert bench.lease == b"other"


def test_shard_that_is_committed_while_its_lease_is_claimed_is_not_run_again(bench: Bench) -> None:
    class SlowLeases(Leases):
        def claim(self, lease: Lease) -> bool:
            assert bench.run(ManualEngine(), worker="w2") is RunOutcome.COMMITTED
            return super().claim(lease)

    frozen = replace(bench.context, leases=SlowLeases(bench.client))

    assert run_shard(bench.job, 0, ManualEngine(), frozen) is RunOutcome.ALREADY_COMMITTED

    assert bench.job.num_attempts(0) == 1
    assert bench.lease is None


def test_committed_shard_is_not_run_again(bench: Bench) -> None:
    bench.run(ManualEngine())
    engine = ManualEngine()

    assert bench.run(engine) is RunOutcome.ALREADY_COMMITTED

    assert engine.seen == []
    assert bench.job.num_attempts(0) == 1


def test_lease_taken_by_another_ends_the_run_with_its_rows_saved(bench: Bench) -> None:
    _engine, running = bench.begin(2)

    bench.client.set(lease_key(bench.job.manifest.identity, 0), "other")
    bench.clock.now += Pace().renewal_interval_s

    assert running.result(timeout=10) is RunOutcome.LEASED_ELSEWHERE
    assert bench.chunk_rows() == [0, 1]
    assert bench.lease == b"other"


def test_lease_lost_by_a_flushed_broker_is_taken_again(bench: Bench) -> None:
    engine, running = bench.begin(1)

    bench.client.flushall()
    bench.clock.now += Pace().renewal_interval_s

    wait_for(lambda: bench.lease is not None, what="a lease is taken again")
    engine.allow(ROWS)
    assert running.result(timeout=10) is RunOutcome.COMMITTED


def test_lease_of_a_stalled_engine_is_left_to_expire(bench: Bench) -> None:
    engine, running = bench.begin(1)
    bench.clock.now += Pace().renewal_interval_s
    bench.clock.wait_for_readings(3)
    bench.client.flushall()

    bench.clock.now += MIN_LIMIT_S + 1
    bench.clock.wait_for_readings(3)

    assert bench.lease is None
    engine.allow(ROWS)
    assert running.result(timeout=10) is RunOutcome.COMMITTED


def test_stop_and_cancellation_are_obeyed_while_prompts_are_made(bench: Bench) -> None:
    def cancel(number: int) -> None:
        if number == 2:
            bench.job.cancel()
            bench.clock.now += FLUSH_INTERVAL_S

    stopped = SlowTokenizer(lambda number: bench.stopping.set() if number == 3 else None)
    assert bench.run(stopped) is RunOutcome.STOPPED
    assert stopped.num_taken == 4

    bench.stopping.clear()
    cancelled = SlowTokenizer(cancel)
    assert bench.run(cancelled) is RunOutcome.CANCELLED
    assert cancelled.num_taken == 3


def test_lease_is_renewed_while_prompts_are_made(bench: Bench) -> None:
    leases: list[bytes | None] = []

    def take_long(number: int) -> None:
        leases.append(bench.lease)
        bench.client.flushall()
        bench.clock.now += MIN_LIMIT_S + 1
        if number == ROWS - 1:
            bench.stopping.set()

    bench.run(SlowTokenizer(take_long))

    assert len(leases) == ROWS
    assert None not in leases


def test_run_goes_on_and_commits_without_a_broker(tmp_path: Path) -> None:
    with embedded_broker(tmp_path / "own") as url:
        bench = Bench(tmp_path, open_client(url))
        engine, running = bench.begin(2)
        bench.client.shutdown(nosave=True)
    bench.clock.now += Pace().renewal_interval_s
    wait_for(lambda: bench.progress.acquire(blocking=False), what="progress is told")

    engine.allow(ROWS)

    assert running.result(timeout=30) is RunOutcome.COMMITTED
    assert bench.part()["row"] == list(range(ROWS))
    bench.client.close()


class AtOnce(ManualEngine):
    """Answers in `submit`, and then has the worker stop."""

    def __init__(self, stop: Callable[[], None]) -> None:
        super().__init__()
        self._stop = stop

    def submit(
        self,
        requests: Iterable[SequenceRequest],
        sink: Sink,
        *,
        on_start: OnStart = ignore_start,
        on_delta: OnDelta | None = None,
        is_alone: bool = False,
    ) -> Ticket:
        for request in requests:
            sink(self._result(request))
        self._stop()
        return Ticket()


def test_stop_that_comes_with_the_last_answer_loses_no_row(bench: Bench) -> None:
    outcome = bench.run(AtOnce(bench.stopping.set))

    assert outcome is RunOutcome.COMMITTED
    assert bench.part()["row"] == list(range(ROWS))


def test_cancelled_job_stops_with_its_finished_rows_saved(bench: Bench) -> None:
    _engine, running = bench.begin(2)

    bench.job.cancel()
    bench.clock.now += FLUSH_INTERVAL_S

    assert running.result(timeout=10) is RunOutcome.CANCELLED
    assert bench.chunk_rows() == [0, 1]
    assert bench.run(ManualEngine()) is RunOutcome.CANCELLED


def test_paused_job_stops_with_its_finished_rows_saved_and_goes_on_with_them(bench: Bench) -> None:
    _engine, running = bench.begin(2)

    bench.job.pause()
    bench.clock.now += FLUSH_INTERVAL_S

    assert running.result(timeout=10) is RunOutcome.PAUSED
    assert bench.chunk_rows() == [0, 1]
    assert bench.lease is None
    assert bench.run(ManualEngine()) is RunOutcome.PAUSED
    assert bench.job.num_attempts(0) == 1

    bench.job.unhalt()
    second = ManualEngine()
    assert bench.run(second) is RunOutcome.COMMITTED
    assert len(second.seen) == ROWS - 2
    assert bench.part()["row"] == list(range(ROWS))


def test_shard_of_a_job_that_goes_on_while_it_stops_is_given_back(bench: Bench) -> None:
    """Given a run that stops as its job is paused, when the job goes on before that has ended, its message stays."""
    bench.context = replace(bench.context, on_end=lambda job, shard, attempt: job.unhalt())
    _engine, running = bench.begin(2)

    bench.job.pause()
    bench.clock.now += FLUSH_INTERVAL_S

    assert running.result(timeout=10) is RunOutcome.STOPPED
    assert bench.chunk_rows() == [0, 1]


def test_torn_chunk_is_ignored_and_its_rows_are_computed_again(bench: Bench) -> None:
    _engine, running = bench.begin(3)
    bench.stopping.set()
    running.result(timeout=10)
    bench.stopping.clear()
    (chunk,) = bench.job.chunks(0)
    chunk.path.write_bytes(chunk.path.read_bytes()[:-40])

    second = ManualEngine()
    assert bench.run(second) is RunOutcome.COMMITTED

    assert len(second.seen) == ROWS
    assert bench.part()["row"] == list(range(ROWS))


def test_shard_whose_rows_are_all_saved_is_committed_without_computing(bench: Bench) -> None:
    bench.run(ManualEngine())
    # As a crash leaves it between the last chunk and the commit.
    chunk = bench.job.chunk_path(0, attempt=1, uid="abcd", sequence=1)
    chunk.parent.mkdir(parents=True)
    bench.job.part_path(0).rename(chunk)

    second = ManualEngine()
    assert bench.run(second, worker="w2") is RunOutcome.COMMITTED

    assert second.seen == []
    assert bench.part()["row"] == list(range(ROWS))
    assert set(bench.part()["worker"]) == {"w1"}


def test_slower_of_two_attempts_leaves_the_first_part_as_it_is(bench: Bench) -> None:
    slow, running = bench.begin(1, answer=lambda request: "slow")
    bench.client.flushall()
    assert bench.run(ManualEngine(lambda request: "fast"), worker="w2") is RunOutcome.COMMITTED

    slow.allow(ROWS)

    assert running.result(timeout=10) is RunOutcome.ALREADY_COMMITTED
    assert set(bench.part()["text"]) == {"fast"}
    assert [path.name for path in bench.job.results_dir.iterdir()] == ["part-00000.parquet"]


def test_chunk_with_rows_of_another_shard_makes_no_part(tmp_path: Path, bench: Bench) -> None:
    other = Bench(tmp_path / "other", bench.client)
    other.job = make_job(tmp_path / "other" / "job2", [[make_request(row) for row in range(90, 93)]])
    other.run(ManualEngine())
    stray = bench.job.chunk_path(0, attempt=bench.job.claim_attempt(0, worker="w0"), uid="abcd", sequence=1)
    stray.parent.mkdir(parents=True)
    stray.write_bytes(other.job.part_path(0).read_bytes())

    with pytest.raises(JobError, match="not those of the shard"):
        bench.run(ManualEngine())

    assert not bench.job.part_path(0).exists()


def test_part_can_be_read_without_our_library(bench: Bench) -> None:
    bench.run(ManualEngine())

    table = pq.read_table(bench.job.results_dir)

    assert table["row"].to_pylist() == list(range(ROWS))
