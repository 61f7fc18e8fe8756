"""What is made of rows without a result, by workers' signs of life beside the chunks."""

import time
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import HeldShard, WorkerHeartbeat, utc_now, write_heartbeat
from batcher.jobdir.pulse import WorkerState
from batcher.manage.status import Status, StatusReader, read_status
from tests.support.clock import Clock
from tests.support.job_files import failed, make_job, ok, write_chunk, write_part


def give_sign(home: Path, *held: HeldShard, tokens_per_s: float = 0.0) -> None:
    now = utc_now()
    beat = WorkerHeartbeat(
        *("w", "host", 17, "0.1", ("tiny",), now, now, WorkerState.WORKING, 5.0),
        shards=held,
        num_slots=4,
        num_running=3,
        tokens_per_s=tokens_per_s,
    )
    write_heartbeat(home, beat)


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    """A job of two shards of 10 rows, of which the first was claimed."""
    job = make_job(tmp_path / "job", (10, 10))
    job.claim_attempt(0, worker="w")
    return job


def read(job: JobDir, *held: HeldShard) -> Status:
    give_sign(job.path, *held)
    return read_status(job)


def test_progress_moves_before_any_row_is_finished(job: JobDir) -> None:
    assert read(job, HeldShard("job", 0, 1, num_tokens=0, max_tokens=1000)).progress == 0.0

    found = read(job, HeldShard("job", 0, 1, num_tokens=200, max_tokens=1000))

    assert (found.num_done, found.tokens_in_flight) == (0, 200)
    assert found.progress == pytest.approx(2 / 20)  # two rows of 100


def test_what_is_saved_counts_once(job: JobDir) -> None:
    sign = HeldShard("job", 0, 1, num_tokens=200, max_tokens=1000)
    write_chunk(job, 0, [ok(0, tokens=100)], sequence=1)

    found = read(job, sign)
    assert (found.completion_tokens, found.tokens_in_flight) == (100, 100)
    # A sign of life that is older than the last chunk.
    write_chunk(job, 0, [ok(1, tokens=100), ok(2, tokens=100)], sequence=2)
    found = read(job, sign)
    assert (found.completion_tokens, found.tokens_in_flight) == (300, 0)
    assert found.progress == pytest.approx(3 / 20)


def test_chunks_of_earlier_attempts_are_none_of_this_one(job: JobDir) -> None:
    write_chunk(job, 0, [ok(0, tokens=100)], attempt=1)
    job.claim_attempt(0, worker="w")

    assert read(job, HeldShard("job", 0, 2, num_tokens=60, max_tokens=900)).tokens_in_flight == 60


def test_rows_that_end_early_do_not_make_the_others_look_done(job: JobDir) -> None:
    """Given short rows that are finished, when long ones are half done, then the ETA's rows are no short ones."""
    write_chunk(job, 0, [ok(0, tokens=2), failed(1)])

    found = read(job, HeldShard("job", 0, 1, num_tokens=402, max_tokens=1000))

    assert found.progress == pytest.approx((2 + 4) / 20)


def test_rows_in_flight_are_never_done(job: JobDir) -> None:
    write_chunk(job, 0, [ok(row, tokens=10) for row in range(8)])

    found = read(job, HeldShard("job", 0, 1, num_tokens=2000, max_tokens=100))

    assert 8 / 20 < found.progress < 10 / 20


def test_signs_of_others_say_nothing(job: JobDir) -> None:
    write_part(job, 1, [ok(row) for row in range(10, 20)])

    found = read(
        job,
        HeldShard("job", 1, 1, num_tokens=500, max_tokens=1000),  # committed since
        HeldShard("another", 0, 1, num_tokens=500, max_tokens=1000),
    )

    assert (found.tokens_in_flight, found.progress) == (0, 0.5)


def test_copies_are_no_speed(job: JobDir) -> None:
    """Given a job most of whose answers were there already, then its rate is that of what was computed."""
    started = job.first_claim_at()
    assert started is not None
    copies = [ok(row, tokens=100, cached=5) for row in range(1, 10)]
    write_chunk(job, 0, [ok(0, tokens=100), *copies])

    found = StatusReader(job, clock=Clock(started.timestamp() + 10)).read()

    assert found.completion_tokens == 1000
    assert found.tokens_per_s == pytest.approx(10)


def test_first_look_takes_the_rate_that_workers_tell(job: JobDir) -> None:
    """Given a job that was resumed after days, then the first look says how fast it goes now."""
    held = HeldShard("job", 0, 1, num_tokens=100, max_tokens=1000)
    give_sign(job.path, held, tokens_per_s=50.0)
    clock = Clock(time.time() + 1e6)

    found = StatusReader(job, clock=clock).read()

    assert found.tokens_per_s == 50.0
    assert found.eta_s == pytest.approx(19 * 100 / 50)
    assert (found.workers[0].num_running, found.workers[0].num_slots, found.workers[0].tokens_per_s) == (3, 4, 50.0)
    # Of one that has other jobs, too, nobody knows.
    give_sign(job.path, held, HeldShard("another", 0, 1), tokens_per_s=50.0)
    assert StatusReader(job, clock=clock).read().tokens_per_s < 1


def test_reason_of_each_error_is_read_once_where_it_is_asked_for(job: JobDir, monkeypatch: pytest.MonkeyPatch) -> None:
    write_chunk(job, 0, [failed(3), failed(4)])
    assert read_status(job).error_reasons == {}
    reader = StatusReader(job, reads_reasons=True)

    assert reader.read().error_reasons == {"timeout": "row 3: timeout"}
    monkeypatch.setattr("batcher.manage.status.read_file", lambda *args, **options: pytest.fail("it was read again"))
    write_chunk(job, 0, [failed(5)], sequence=2)
    assert reader.read().error_reasons == {"timeout": "row 3: timeout"}
