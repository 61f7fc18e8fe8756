"""What crashes mean for the rows that were in flight."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.jobdir.attempts import (
    AttemptEnd,
    Cause,
    Journal,
    JournalState,
    Outcome,
    delete_journals,
    forgive,
    read_ends,
    read_journal,
    record_end,
)
from batcher.jobdir.folder import JobDir
from batcher.jobdir.verdict import MAX_BLAMELESS_CRASHES, MAX_FAILURES, judge
from batcher.types import ErrorCode
from tests.support.job_files import make_job


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    return make_job(tmp_path / "job", (8,))


def attempt(job: JobDir, *lines: str, cause: Cause | None = Cause.FAULT, detail: str = "signal SIGSEGV") -> int:
    """An attempt whose journal stayed. `cause` None: its worker vanished."""
    number = job.claim_attempt(0, worker="w")
    job.journal_path(0, attempt=number).write_text("".join(f"{line}\n" for line in lines))
    if cause is not None:
        record_end(job, 0, number, worker="w", outcome=Outcome.CRASHED, cause=cause, detail=detail)
    return number


def fail(job: JobDir, *, is_retriable: bool) -> None:
    number = job.claim_attempt(0, worker="w")
    record_end(
        *(job, 0, number), worker="w", outcome=Outcome.FAILED, detail="the file is torn", is_retriable=is_retriable
    )


def test_journal_says_what_is_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "0001.journal"
    journal = Journal(path)
    assert read_journal(path) == JournalState()

    for row in (4, 5, 6):
        journal.tokenizing(row)
    assert read_journal(path) == JournalState(frozenset({6}), None, has_begun=True)

    journal.no_suspect()
    for row in (4, 5, 5, 6):
        journal.admitted(row)
    journal.finished([5])
    assert read_journal(path) == JournalState(frozenset({4, 6}), None, has_begun=True)

    journal.finished([4, 6])
    journal.alone(7)
    assert read_journal(path) == JournalState(frozenset({7}), 7, has_begun=True)

    journal.no_suspect()
    assert read_journal(path).alone is None
    journal.alone(7)
    journal.finished([7])
    journal.committing()
    assert read_journal(path) == JournalState(frozenset(), None, has_begun=False)
    journal.close(is_orderly=True)
    assert not path.exists()


def test_word_that_comes_late_goes_to_no_other_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "0001.journal")
    journal.close(is_orderly=False)
    with (tmp_path / "other").open("wb") as other:  # Gets the number that the journal's descriptor had.
        journal.admitted(4)
        other.write(b"its own")

    assert (tmp_path / "other").read_bytes() == b"its own"
    assert read_journal(tmp_path / "0001.journal") == JournalState()


@given(st.binary(max_size=200))
def test_damaged_journal_is_read_without_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("journal") / "0001.journal"
    path.write_bytes(data)

    state = read_journal(path)

    assert state.alone is None or state.alone in state.in_flight


def test_last_line_that_is_torn_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "0001.journal"
    path.write_bytes(b".\n+ 3\n+ 41")
    assert read_journal(path).in_flight == {3}


@pytest.mark.parametrize("cause", [Cause.FAULT, Cause.ENGINE, Cause.STALLED, Cause.MEMORY])
def test_one_crash_makes_suspects_of_the_rows_in_flight(job: JobDir, cause: Cause) -> None:
    attempt(job, ".", "+ 1", "+ 4", "+ 2", "- 2", cause=cause)

    assert judge(job, 0, attempt=2).suspects == (1, 4)


@pytest.mark.parametrize("cause", [Cause.KILLED, None])
def test_one_kill_from_outside_makes_no_suspects_and_two_do(job: JobDir, cause: Cause | None) -> None:
    attempt(job, ".", "+ 1", "+ 2", cause=cause)
    assert judge(job, 0, attempt=2).suspects == ()

    attempt(job, ".", "+ 2", "+ 3", cause=cause)
    assert judge(job, 0, attempt=3).suspects == (2,)


@pytest.mark.parametrize(
    ("cause", "needed", "code"),
    [
        (Cause.FAULT, 1, ErrorCode.WORKER_CRASHED),
        (Cause.ENGINE, 1, ErrorCode.ENGINE_ERROR),
        (Cause.STALLED, 1, ErrorCode.WORKER_CRASHED),
        (Cause.MEMORY, 2, ErrorCode.WORKER_CRASHED),
        (Cause.KILLED, 3, ErrorCode.WORKER_CRASHED),
        (None, 3, ErrorCode.WORKER_CRASHED),
    ],
)
def test_row_is_set_aside_after_enough_crashes_alone(
    job: JobDir, cause: Cause | None, needed: int, code: ErrorCode
) -> None:
    for number in range(1, needed + 1):
        assert not judge(job, 0, attempt=number).set_aside
        attempt(job, "= 3", cause=cause, detail="signal SIGXYZ")

    verdict = judge(job, 0, attempt=needed + 1)

    assert set(verdict.set_aside) == {3}
    assert verdict.set_aside[3].code is code
    assert ("vanished" if cause is None else "signal SIGXYZ") in verdict.set_aside[3].message
    assert verdict.suspects == ()


def test_row_alone_that_finished_is_cleared(job: JobDir) -> None:
    attempt(job, ".", "+ 3", "+ 5")
    attempt(job, "= 3", ".", "= 3", "- 3", "= 5")

    verdict = judge(job, 0, attempt=3)

    assert set(verdict.set_aside) == {5}
    # Whether it runs again is for the chunks to say; as the others of the first crash it would run alone.
    assert verdict.suspects == (3,)


def test_later_attempts_do_not_count(job: JobDir) -> None:
    attempt(job, ".", "+ 1")
    attempt(job, "= 1")

    assert judge(job, 0, attempt=1).suspects == ()
    assert not judge(job, 0, attempt=2).set_aside


def test_crashes_while_no_row_was_begun_end_in_giving_up(job: JobDir) -> None:
    for number in range(MAX_BLAMELESS_CRASHES):
        assert not judge(job, 0, attempt=number + 1).why_hopeless
        attempt(job, *([".", "!"] if number % 2 else []))

    verdict = judge(job, 0, attempt=MAX_BLAMELESS_CRASHES + 1)

    assert f"died {MAX_BLAMELESS_CRASHES} times while reading or committing" in verdict.why_hopeless

    forgive(job, 0)
    assert not judge(job, 0, attempt=MAX_BLAMELESS_CRASHES + 1).why_hopeless


def test_crashes_of_somebody_else_s_rows_never_end_in_giving_up(job: JobDir) -> None:
    for _ in range(2 * MAX_BLAMELESS_CRASHES):
        number = attempt(job, "? 0", ".")

    assert not judge(job, 0, attempt=number + 1).why_hopeless


def test_failures_end_in_giving_up_unless_time_may_mend_them(job: JobDir) -> None:
    for _ in range(2 * MAX_FAILURES):
        fail(job, is_retriable=True)
    assert not judge(job, 0, attempt=99).why_hopeless

    for _ in range(MAX_FAILURES):
        fail(job, is_retriable=False)
    assert f"failed {MAX_FAILURES} times (lastly: the file is torn)" in judge(job, 0, attempt=99).why_hopeless

    forgive(job, 0)
    assert not judge(job, 0, attempt=99).why_hopeless


def test_first_word_on_an_end_stays(job: JobDir) -> None:
    number = job.claim_attempt(0, worker="w")
    assert record_end(job, 0, number, worker="w", outcome=Outcome.CRASHED, cause=Cause.ENGINE, detail="gave -3")
    assert not record_end(job, 0, number, worker="w", outcome=Outcome.CRASHED, cause=Cause.FAULT, detail="SIGABRT")

    (end,) = read_ends(job, 0)
    assert end == AttemptEnd(number, "w", Outcome.CRASHED, "gave -3", end.at, Cause.ENGINE)


def test_damaged_end_counts_as_none(job: JobDir) -> None:
    number = attempt(job, "= 3")
    job.attempt_end_path(0, attempt=number).write_text("{")

    assert read_ends(job, 0) == []
    assert not judge(job, 0, attempt=number + 1).set_aside


def test_deleted_journals_clear_every_row(job: JobDir) -> None:
    number = attempt(job, "= 3")
    delete_journals(job, 0, up_to=number - 1)
    assert judge(job, 0, attempt=number + 1).set_aside
    delete_journals(job, 0, up_to=number)

    assert not judge(job, 0, attempt=number + 1).set_aside
    assert len(read_ends(job, 0)) == 1


def test_ends_and_journals_are_no_attempts(job: JobDir) -> None:
    assert attempt(job, ".") == 1
    assert job.num_attempts(0) == 1
    assert job.claim_attempt(0, worker="w") == 2
