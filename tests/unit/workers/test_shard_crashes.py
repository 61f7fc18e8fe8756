"""A shard whose earlier attempts crashed, failed or were overtaken."""

import threading
from collections.abc import Iterable

import pytest

from batcher.errors import CorruptFileError, EngineError, ShardGivenUpError
from batcher.jobdir import attempts
from batcher.jobdir.attempts import Cause, forgive, read_ends, read_journal, record_end
from batcher.jobdir.verdict import MAX_FAILURES
from tests.support.manual_engine import ManualEngine
from tests.support.shard_bench import ROWS, Bench
from workers.engines.base import OnDelta, OnStart, SequenceRequest, SequenceResult, Sink, Ticket, ignore_start
from workers.shard.runner import FLUSH_INTERVAL_S, RunOutcome, _ShardRun


def crash(bench: Bench, *lines: str, cause: Cause = Cause.FAULT, detail: str = "signal SIGSEGV") -> None:
    """Leave what an attempt leaves whose process died after its journal had these lines."""
    attempt = bench.job.claim_attempt(0, worker="w0")
    bench.job.journal_path(0, attempt=attempt).write_text("".join(f"{line}\n" for line in lines))
    record_end(*(bench.job, 0, attempt), worker="w0", outcome=attempts.Outcome.CRASHED, cause=cause, detail=detail)


def test_rows_in_flight_at_a_crash_run_last_and_each_alone(bench: Bench) -> None:
    crash(bench, *(f"? {row}" for row in range(ROWS)), ".", "+ 0", "+ 1", "+ 3", "- 0")
    engine = ManualEngine()

    assert bench.run(engine) is RunOutcome.COMMITTED

    order = [(request.prompt, request.is_alone) for request in engine.seen]
    assert order == [(f"prompt {row}.0", row in (1, 3)) for row in (0, 2, 4, 5, 1, 3)]
    assert bench.part()["row"] == list(range(ROWS))
    assert set(bench.part()["status"]) == {"ok"}


def test_finished_rows_are_saved_before_a_suspect_runs(bench: Bench) -> None:
    crash(bench, ".", "+ 1")
    engine, running = bench.begin(ROWS - 1)
    engine.wait_until_taken(ROWS)

    assert bench.chunk_rows() == [0, 2, 3, 4, 5]
    assert "= 1" in bench.job.journal_path(0, attempt=2).read_text().splitlines()

    engine.allow(1)
    assert running.result(timeout=10) is RunOutcome.COMMITTED


def test_row_that_crashed_its_worker_alone_is_set_aside_and_not_run_again(bench: Bench) -> None:
    crash(bench, ".", "+ 1", "+ 2")
    crash(bench, "= 1", ".", "= 1")
    engine = ManualEngine()

    assert bench.run(engine) is RunOutcome.COMMITTED

    assert "prompt 1.0" not in [request.prompt for request in engine.seen]
    assert [request.prompt for request in engine.seen if request.is_alone] == ["prompt 2.0"]
    part = bench.part()
    assert part["row"] == list(range(ROWS))
    assert part["error_code"] == [None, "worker_crashed", None, None, None, None]
    assert "signal SIGSEGV" in str(part["error_message"][1])
    assert part["attempts"] == [3] * ROWS


def test_verdict_outlives_the_attempt_that_took_it(bench: Bench) -> None:
    crash(bench, ".", "+ 1")
    crash(bench, "= 1")
    engine, running = bench.begin(0)
    engine.wait_until_taken(ROWS - 1)

    assert bench.chunk_rows() == [1]
    assert not bench.progress.acquire(blocking=False), "a row set aside is no progress of the worker"

    engine.die()
    with pytest.raises(EngineError):
        running.result(timeout=10)


def test_engine_that_dies_leaves_its_journal_and_its_words(bench: Bench) -> None:
    engine, running = bench.begin(0)
    engine.wait_until_taken(ROWS)

    engine.die("llama_decode gave -3")
    with pytest.raises(EngineError):
        running.result(timeout=10)

    (end,) = read_ends(bench.job, 0)
    assert (end.outcome, end.cause, end.detail) == (attempts.Outcome.CRASHED, Cause.ENGINE, "llama_decode gave -3")
    assert bench.job.journal_path(0, attempt=1).exists()


def test_attempt_in_good_order_leaves_no_journal(bench: Bench) -> None:
    _engine, running = bench.begin(2)
    assert bench.job.journal_path(0, attempt=1).exists()

    bench.stopping.set()

    assert running.result(timeout=10) is RunOutcome.STOPPED
    assert not bench.job.journal_path(0, attempt=1).exists()
    assert read_ends(bench.job, 0) == []


def test_shard_that_fails_again_and_again_is_given_up_until_it_is_forgiven(bench: Bench) -> None:
    bench.job.shard_path(0).write_bytes(b"torn")
    for _ in range(MAX_FAILURES):
        with pytest.raises(CorruptFileError):
            bench.run(ManualEngine())

    with pytest.raises(ShardGivenUpError, match=r"failed 3 times.*`batcher resume"):
        bench.run(ManualEngine())

    forgive(bench.job, 0)
    with pytest.raises(CorruptFileError):
        bench.run(ManualEngine())


def test_attempt_whose_shard_was_committed_meanwhile_stops(bench: Bench) -> None:
    _engine, running = bench.begin(2)
    bench.client.flushall()
    assert bench.run(ManualEngine(), worker="w2") is RunOutcome.COMMITTED

    bench.clock.now += FLUSH_INTERVAL_S

    assert running.result(timeout=10) is RunOutcome.ALREADY_COMMITTED
    assert set(bench.part()["worker"]) == {"w2"}
    assert bench.job.chunks(0) == []


def test_row_that_was_alone_is_cleared_before_the_engine_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    crash(bench, ".", "+ 1")
    alone: list[int | None] = []

    class WatchedEngine(ManualEngine):
        def submit(
            self,
            requests: Iterable[SequenceRequest],
            sink: Sink,
            *,
            on_start: OnStart = ignore_start,
            on_delta: OnDelta | None = None,
            is_alone: bool = False,
        ) -> Ticket:
            def take(item: SequenceResult | EngineError) -> None:
                sink(item)
                # What a crash right now would be blamed on.
                alone.append(read_journal(bench.job.journal_path(0, attempt=2)).alone)
                looked.release()

            return super().submit(requests, take, on_start=on_start, on_delta=on_delta, is_alone=is_alone)

    # The runner's own thread may come to it any time later.
    looked = threading.Semaphore(0)
    accept = _ShardRun._accept

    def accept_late(run: _ShardRun, item: SequenceResult | EngineError) -> None:
        looked.acquire()
        accept(run, item)

    monkeypatch.setattr(_ShardRun, "_accept", accept_late)

    assert bench.run(WatchedEngine()) is RunOutcome.COMMITTED

    assert alone == [None] * ROWS
