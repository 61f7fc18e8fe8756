"""The thread that carries batches on."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from batcher.errors import BrokerError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo
from batcher.server.batches import keeper
from batcher.server.batches.records import BatchStatus
from batcher.server.batches.states import BatchReader
from tests.support.batch_bench import BatchBench, line, lines
from tests.support.waiting import wait_for

GOOD = lines(line("a"), line("b"))


@pytest.fixture
def bench(tmp_path: Path) -> BatchBench:
    return BatchBench(tmp_path / "jobs")


def test_round_is_made_as_soon_as_something_is_new(bench: BatchBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "ROUND_INTERVAL_S", 3600.0)
    first = bench.create(GOOD)

    with bench.keeper:
        wait_for(lambda: bench.sent == [first.id], what="the first round")
        second = bench.create(GOOD)
        bench.keeper.wake()
        wait_for(lambda: bench.sent == [first.id, second.id], what="a second round")

    bench.create(GOOD)
    bench.keeper.wake()
    assert len(bench.sent) == 2


def test_round_that_fails_is_logged_and_followed_by_others(bench: BatchBench, caplog: pytest.LogCaptureFixture) -> None:
    batch = bench.create(GOOD)
    sent: list[str] = []

    def send(job: JobDir, shards: Sequence[ShardInfo]) -> int:
        sent.append(job.job_id)
        if len(sent) == 1:
            raise RuntimeError("a bug")
        return len(shards)

    with caplog.at_level(logging.ERROR), bench.server(send=send).keeper:
        wait_for(lambda: len(sent) == 2, what="a second round")

    assert "a bug" in caplog.text
    assert bench.get(batch.id).status is BatchStatus.IN_PROGRESS


def test_round_reads_nothing_of_batches_that_have_ended(bench: BatchBench, monkeypatch: pytest.MonkeyPatch) -> None:
    failed, cancelled = bench.create(b"no JSON\n"), bench.create(GOOD)
    bench.batches.cancel(cancelled.id)
    bench.keeper.make_round()
    bench.keeper.make_round()
    assert bench.get(failed.id).status is BatchStatus.FAILED
    assert bench.get(cancelled.id).status is BatchStatus.CANCELLED
    waiting = bench.create(GOOD)
    read = list[str]()
    monkeypatch.setattr(BatchReader, "read", lambda self, job: read.append(job.job_id))

    bench.keeper.make_round()

    assert set(read) <= {waiting.id}


def test_paused_batch_is_in_progress_and_not_sent_until_it_goes_on_or_its_time_is_over(bench: BatchBench) -> None:
    sent: list[str] = []

    def send(job: JobDir, shards: Sequence[ShardInfo]) -> int:
        sent.append(job.job_id)
        if len(sent) == 1:
            raise BrokerError("away")
        return len(shards)

    keeper = bench.server(send=send).keeper
    batch = bench.create(GOOD)
    keeper.make_round()
    job = bench.job(batch.id)
    job.pause()

    keeper.make_round()
    assert len(sent) == 1
    assert bench.get(batch.id).status is BatchStatus.IN_PROGRESS

    job.unhalt()
    keeper.make_round()
    assert len(sent) == 2

    job.pause()
    assert batch.expires_at is not None
    bench.clock.now = batch.expires_at + 1.0
    keeper.make_round()
    assert bench.get(batch.id).status is BatchStatus.EXPIRED
