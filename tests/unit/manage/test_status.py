"""Snapshots of a job from its files: counts, states, rates, attempts."""

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import CorruptFileError
from batcher.jobdir import attempts, local_store, results
from batcher.jobdir.attempts import AttemptEnd, Cause, Outcome, forgive, record_end
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import Counts, write_file
from batcher.jobdir.standing import Standing, change_standing
from batcher.manage import status
from batcher.manage.finish import finalize
from batcher.manage.speedometer import RATE_WINDOW_S
from batcher.manage.status import JobState, StatusReader, read_status
from batcher.types import ErrorCode
from tests.support.clock import Clock
from tests.support.job_files import complete_job, failed, make_job, ok, result_table, write_chunk, write_part
from tests.unit.manage.test_status_workers import give_sign


def reader_since_the_claim(job: JobDir) -> tuple[StatusReader, Clock]:
    """Shard 0 has just been claimed, and the job was looked at."""
    job.claim_attempt(0, worker="w")
    started = job.first_claim_at()
    assert started is not None
    clock = Clock(started.timestamp())
    reader = StatusReader(job, clock=clock)
    reader.read()
    return reader, clock


@pytest.fixture
def footers_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths whose footers are read."""
    read: list[Path] = []

    def counting(path: Path, **options: Any) -> Counts:
        read.append(path)
        return results.read_counts(path, **options)

    monkeypatch.setattr(status, "read_counts", counting)
    monkeypatch.setattr("batcher.manage.finish.read_counts", counting)
    return read


def test_submitted_job_waits(tmp_path: Path) -> None:
    found = read_status(make_job(tmp_path / "job", (2, 3)))

    assert found.state is JobState.WAITING
    assert (found.num_rows, found.num_done, found.num_shards, found.num_waiting) == (5, 0, 2, 2)
    assert (found.tokens_per_s, found.eta_s, found.started_at) == (0.0, None, None)


def test_refused_rows_are_done_while_the_job_still_waits(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 3), models=[None, "tiny"])
    write_file(job.part_path(0), result_table([failed(0, ErrorCode.INVALID_REQUEST), failed(1)]))

    found = read_status(job)

    assert found.state is JobState.WAITING
    assert (found.num_done, found.num_errors) == (2, 2)


def test_running_job_counts_rows_of_parts_and_chunks(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 3, 1))
    write_part(job, 0, [ok(0), failed(1)])
    job.claim_attempt(1, worker="w2")
    write_chunk(job, 1, [ok(2, num_choices=2)], sequence=1)
    write_chunk(job, 1, [failed(4, ErrorCode.ENGINE_ERROR)], sequence=2)

    found = read_status(job)

    assert found.state is JobState.RUNNING
    assert (found.num_done, found.num_ok, found.num_errors, found.num_choices) == (4, 2, 2, 3)
    assert found.error_codes == {"engine_error": 1, "timeout": 1}
    assert found.completion_tokens == 9
    assert (found.num_committed, found.num_claimed, found.num_waiting, found.num_attempts) == (1, 1, 1, 2)


def test_complete_job_reports_what_its_summary_says(job: JobDir) -> None:
    assert read_status(job).state is JobState.RUNNING  # every part is there, the proof is not
    started = job.first_claim_at()
    assert started is not None
    for shard in range(3):
        os.utime(job.part_path(shard), (started.timestamp() + 30,) * 2)
    finalize(job)

    found = read_status(job)

    assert found.state is JobState.COMPLETE
    assert found.is_complete
    assert found.tokens_per_s == pytest.approx(0.5, abs=0.01)
    assert found.elapsed_s == pytest.approx(30, abs=0.01)
    assert found.eta_s is None


def test_complete_job_without_its_summary_can_still_be_read(job: JobDir) -> None:
    finalize(job)
    job.summary_path.unlink()

    assert read_status(job).state is JobState.COMPLETE


def test_cancelled_job_says_so_until_it_is_complete(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    job.cancel()
    assert read_status(job).state is JobState.CANCELLED
    write_part(job, 0, [ok(0)])
    finalize(job)
    assert read_status(job).state is JobState.COMPLETE


def test_success_mark_beside_a_missing_part_is_not_complete(job: JobDir) -> None:
    finalize(job)
    job.part_path(1).unlink()

    assert read_status(job).state is JobState.RUNNING


def test_footers_already_read_are_not_read_again(tmp_path: Path, footers_read: list[Path]) -> None:
    job = make_job(tmp_path / "job", (1, 2))
    write_part(job, 0, [ok(0)])
    write_chunk(job, 1, [ok(1)], sequence=1)
    reader = StatusReader(job)
    reader.read()
    del footers_read[:]

    assert reader.read().num_done == 2
    assert footers_read == []
    new = write_chunk(job, 1, [ok(2)], sequence=2)
    assert reader.read().num_done == 3
    assert footers_read == [new]


def test_chunks_of_two_attempts_never_count_more_than_the_shard(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 2))
    write_chunk(job, 0, [ok(0), failed(1)], attempt=1)
    write_chunk(job, 0, [ok(0), failed(1)], attempt=2)

    found = read_status(job)

    assert (found.num_done, found.num_ok, found.num_errors) == (2, 1, 1)
    assert found.completion_tokens == 3


def test_torn_chunk_is_skipped(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_chunk(job, 0, [ok(0)], sequence=1)
    torn = write_chunk(job, 0, [ok(1)], sequence=2)
    torn.write_bytes(torn.read_bytes()[:50])

    assert read_status(job).num_done == 1


def test_shard_that_commits_between_two_looks_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given chunks are read first, when the shard commits and its chunks vanish meanwhile, then its part counts."""
    job = make_job(tmp_path / "job", (2,))
    write_chunk(job, 0, [ok(0)])
    reader = StatusReader(job)
    scan = local_store._scan

    def commit_just_before(folder: Path | str, **options: Any) -> Any:
        if Path(folder) == job.results_dir and not job.part_path(0).exists():
            write_part(job, 0, [ok(0), ok(1)])
            job.delete_chunks(0)
        return scan(folder, **options)

    job.results_dir.mkdir()
    monkeypatch.setattr(local_store, "_scan", commit_just_before)

    assert reader.read().num_done == 2


def test_chunk_that_vanishes_after_it_was_listed_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_chunk(job, 0, [ok(0)])
    listed = job.look()
    job.delete_chunks(0)
    monkeypatch.setattr(job, "look", lambda settled: listed)

    assert StatusReader(job).read().num_done == 0


def test_reopened_shard_is_forgotten_and_read_from_its_chunks(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_part(job, 0, [ok(0), failed(1)])
    reader = StatusReader(job)
    assert reader.read().num_errors == 1
    write_chunk(job, 0, [ok(0)], attempt=2)
    job.part_path(0).unlink()

    assert (reader.read().num_done, reader.read().num_errors) == (1, 0)
    write_part(job, 0, [ok(0), ok(1)])
    assert (reader.read().num_done, reader.read().num_errors) == (2, 0)


def test_part_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    job.results_dir.mkdir()
    job.part_path(0).write_bytes(b"nothing")

    with pytest.raises(CorruptFileError, match="part-00000"):
        read_status(job)


def test_rates_and_eta_follow_the_last_seconds(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (240,))
    give_sign(tmp_path, "w")
    reader, clock = reader_since_the_claim(job)
    for second in range(1, 101):
        clock.now += 1
        # 1 row of 10 tokens a second for 20 s, then 2 rows a second.
        rows = [ok(second, tokens=10)] if second <= 20 else [ok(2 * second, tokens=10), ok(2 * second - 1, tokens=10)]
        write_chunk(job, 0, rows, sequence=second)
        found = reader.read()

    assert found.num_done == 180
    assert found.rows_per_s == pytest.approx(2.0)
    assert found.tokens_per_s == pytest.approx(20.0)
    assert found.eta_s == pytest.approx(30.0, abs=1)


def test_status_says_whether_a_job_will_be_finished_in_time(tmp_path: Path) -> None:
    """Two rows a second, 230 rows left: 115 s; or, where nobody knows a rate, that the time is over already."""
    job = make_job(tmp_path / "job", (240,))
    give_sign(tmp_path, "w")
    assert read_status(job).late_s is None
    reader, clock = reader_since_the_claim(job)
    finish_by = datetime.fromtimestamp(clock.now + 100, UTC)
    change_standing(job, Standing(priority=7, finish_by=finish_by))
    for second in range(1, 6):
        clock.now += 1
        write_chunk(job, 0, [ok(2 * second, tokens=10), ok(2 * second - 1, tokens=10)], sequence=second)
        found = reader.read()

    assert (found.priority, found.finish_by) == (7, finish_by)
    assert found.late_s == pytest.approx(20, abs=3)
    change_standing(job, Standing(finish_by=finish_by + timedelta(seconds=100)))
    assert reader.read().late_s == pytest.approx(-80, abs=3)
    clock.now += 250
    stuck = StatusReader(make_waiting(tmp_path / "stuck", finish_by), clock=clock).read()
    assert (stuck.eta_s, stuck.late_s) == (None, 155)


def make_waiting(path: Path, finish_by: datetime) -> JobDir:
    job = make_job(path, (1,))
    change_standing(job, Standing(finish_by=finish_by))
    return job


@pytest.mark.parametrize("early_s", [-30, 30])
def test_complete_job_says_whether_it_was_in_time(tmp_path: Path, early_s: int) -> None:
    job = complete_job(tmp_path / "job")
    summary = finalize(job)
    assert summary is not None
    change_standing(job, Standing(finish_by=summary.finished_at + timedelta(seconds=early_s)))

    found = read_status(job)

    assert found.late_s == pytest.approx(-early_s, abs=0.2)


def test_first_reading_gives_the_average_of_the_whole_job(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (20, 1), models=["tiny", None])
    give_sign(tmp_path, "w")
    write_file(job.part_path(1), result_table([failed(20)]))
    job.claim_attempt(0, worker="w")
    write_chunk(job, 0, [ok(row) for row in range(4)])
    started = job.first_claim_at()
    assert started is not None

    found = StatusReader(job, clock=Clock(started.timestamp() + 8)).read()

    assert found.rows_per_s == pytest.approx(0.5)  # the refused row was no work
    assert found.tokens_per_s == pytest.approx(1.5)
    assert found.eta_s == pytest.approx(32)
    assert found.elapsed_s == pytest.approx(8)


def test_rate_of_a_stalled_job_decays_and_recovers(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (100,))
    reader, clock = reader_since_the_claim(job)
    clock.now += 10
    write_chunk(job, 0, [ok(row) for row in range(10)], sequence=1)
    assert reader.read().rows_per_s == pytest.approx(1.0)
    clock.now += 90
    assert reader.read().rows_per_s == pytest.approx(0.1)
    write_chunk(job, 0, [ok(row) for row in range(10, 40)], sequence=2)
    clock.now += RATE_WINDOW_S
    assert reader.read().rows_per_s == pytest.approx(30 / RATE_WINDOW_S)


def test_clock_that_stands_still_or_runs_backwards_divides_by_nothing(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    reader, clock = reader_since_the_claim(job)
    write_chunk(job, 0, [ok(0)])
    assert reader.read().tokens_per_s == 0.0
    clock.now -= 100
    assert reader.read().tokens_per_s == 0.0


# -- attempts -----------------------------------------------------------------------------------------------------


def end_attempt(job: JobDir, shard: int, attempt: int, outcome: Outcome, detail: str = "signal SIGSEGV") -> None:
    cause = Cause.FAULT if outcome is Outcome.CRASHED else None
    assert record_end(job, shard, attempt, worker="w1", outcome=outcome, detail=detail, cause=cause)


@pytest.fixture
def ends_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The shards whose ends of attempts are read."""
    read: list[int] = []

    def counting(job: JobDir, paths: Sequence[Path]) -> list[AttemptEnd]:
        read.extend({int(path.parent.name) for path in paths})
        return attempts.load_ends(job, paths)

    monkeypatch.setattr(status, "load_ends", counting)
    return read


def test_attempts_and_crashes_are_counted_over_the_whole_job(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 1, 1))
    for shard, outcomes in enumerate([[Outcome.CRASHED], [Outcome.CRASHED, Outcome.FAILED, Outcome.CRASHED], []]):
        for outcome in outcomes:
            end_attempt(job, shard, job.claim_attempt(shard, worker="w1"), outcome)
    write_part(job, 0, [ok(0)])

    found = read_status(job)

    assert (found.num_attempts, found.num_crashes) == (5, 3)
    assert (found.num_claimed, found.num_waiting) == (1, 1)
    assert found.failures == ()  # the failure of shard 1 was followed by another attempt


def test_rows_that_ended_their_worker_are_counted(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 2))
    write_part(job, 0, [failed(0, ErrorCode.WORKER_CRASHED), failed(1)])
    write_chunk(job, 1, [failed(2, ErrorCode.WORKER_CRASHED)])

    found = read_status(job)

    assert (found.num_errors, found.num_quarantined) == (3, 2)


def test_shard_that_could_not_go_on_says_why_until_somebody_tries_it_again(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 1))
    job.claim_attempt(1, worker="w1")
    end_attempt(job, 1, 1, Outcome.FAILED, "disk full")
    reader = StatusReader(job)

    (failure,) = reader.read().failures
    assert (failure.shard, failure.attempt, failure.worker, failure.message) == (1, 1, "w1", "disk full")
    assert failure.is_retriable

    job.claim_attempt(1, worker="w2")
    assert reader.read().failures == ()
    end_attempt(job, 1, 2, Outcome.FAILED, "shard damaged")
    assert [failure.message for failure in reader.read().failures] == ["shard damaged"]
    forgive(job, 1)
    assert reader.read().failures == ()


def test_ends_already_read_are_not_read_again(tmp_path: Path, ends_read: list[int]) -> None:
    job = make_job(tmp_path / "job", (1, 1, 1))
    for shard in (0, 1):
        job.claim_attempt(shard, worker="w1")
        end_attempt(job, shard, 1, Outcome.CRASHED)
    write_part(job, 0, [ok(0)])
    reader = StatusReader(job)
    reader.read()
    assert ends_read == [0, 1]
    del ends_read[:]

    assert reader.read().num_crashes == 2
    assert ends_read == []
    job.claim_attempt(1, worker="w1")
    end_attempt(job, 1, 2, Outcome.CRASHED)
    assert reader.read().num_crashes == 3
    assert ends_read == [1]


def test_attempts_of_shards_with_a_part_are_listed_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path / "job", (1, 1, 1))
    write_part(job, 0, [ok(0)])
    reader = StatusReader(job)
    reader.read()
    listed: list[str] = []
    scan = local_store._scan

    def counting(folder: Path | str, **options: Any) -> Any:
        if Path(folder).parent.name == "attempts":
            listed.append(Path(folder).name)
        return scan(folder, **options)

    for shard in range(3):
        job.claim_attempt(shard, worker="w1")
    monkeypatch.setattr(local_store, "_scan", counting)

    assert reader.read().num_attempts == 4
    assert listed == ["00000", "00001", "00002"]  # once more after the part of the first was seen
    del listed[:]
    write_part(job, 1, [ok(1)])
    reader.read()
    job.claim_attempt(1, worker="w1")
    del listed[:]
    assert reader.read().num_attempts == 6  # it began between two looks
    assert listed == ["00001", "00002"]
    del listed[:]
    reader.read()
    assert listed == ["00002"]
    job.part_path(0).unlink()  # `retry`
    job.claim_attempt(0, worker="w2")
    assert reader.read().num_attempts == 7


def test_damaged_end_counts_as_none(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    job.claim_attempt(0, worker="w1")
    job.attempt_end_path(0, attempt=1).write_text("{")

    found = read_status(job)

    assert (found.num_attempts, found.num_crashes, found.failures) == (1, 0, ())


@given(
    num_ok=st.integers(0, 500), num_errors=st.integers(0, 500), capacity=st.integers(1, 600), tokens=st.integers(0, 99)
)
def test_clamped_counts_always_add_up(num_ok: int, num_errors: int, capacity: int, tokens: int) -> None:
    total = num_ok + num_errors
    counts = Counts(total, num_ok, num_errors, num_ok, tokens, tokens, 0, {"stop": num_ok}, {"timeout": num_errors})

    clamped = counts.at_most(capacity)

    assert clamped.num_rows == min(total, capacity) == clamped.num_ok + clamped.num_errors
    assert 0 <= clamped.num_ok <= num_ok
    assert 0 <= clamped.num_errors <= num_errors
    assert clamped.completion_tokens <= tokens
