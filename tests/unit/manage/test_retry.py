"""Reopening of shards with failed rows: what is selected, and that a crash at any step loses nothing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from batcher.errors import CorruptFileError, InputError, JobError, StorageError
from batcher.jobdir import local_store
from batcher.jobdir.attempts import Cause, Outcome, record_end
from batcher.jobdir.folder import JobDir
from batcher.jobdir.lock import exclusive
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.results import read_file, write_file
from batcher.jobdir.verdict import judge
from batcher.manage.finish import finalize
from batcher.manage.retry import _retriable_codes, parse_where, reopen, retry, select
from batcher.manage.status import JobState, read_status
from batcher.types import ErrorCode
from tests.support.crashing import ProcessDiedError, die_before
from tests.support.job_files import (
    complete_job,
    failed,
    make_job,
    make_request,
    ok,
    result_table,
    write_chunk,
    write_part,
)
from tests.support.retrying import resume, texts, where


def test_only_failed_rows_run_again_and_the_others_stay_as_they_were(job: JobDir) -> None:
    finalize(job)
    before = {row["row"]: row for row in read_file(job.part_path(0)).to_pylist()}

    reopened = retry(job).selection.shards

    assert [one.info.shard for one in reopened] == [0, 1]
    assert not job.is_complete
    assert not job.summary_path.exists()
    assert read_status(job).state is JobState.RUNNING
    assert resume(job) == [1, 4]
    summary = finalize(job)
    assert summary is not None
    assert (summary.num_ok, summary.num_errors) == (6, 0)
    after = {row["row"]: row for row in read_file(job.part_path(0)).to_pylist()}
    assert after[0] == before[0]
    assert after[1]["text"] == "again 1.0"


def test_conditions_must_all_hold(job: JobDir) -> None:
    def selected(*conditions: str) -> list[int]:
        return [row for one in select(job, where=where(job, *conditions)).shards for row in one.rows]

    assert selected() == [1, 4]
    assert selected("error_code=timeout") == [1]
    assert selected("custom_id=id-4") == [4]
    assert selected("row=4") == [4]
    assert selected("row=4", "error_code=timeout") == []
    assert selected("error_code=engine_error") == []
    assert selected("error_code = 'timeout' or row = 4") == [1, 4]


def test_condition_may_be_on_any_column_also_of_rows_that_are_ok(job: JobDir) -> None:
    def selected(*conditions: str) -> list[int]:
        return [row for one in select(job, where=where(job, *conditions)).shards for row in one.rows]

    assert selected("row=0") == [0]
    assert selected("cached_tokens > 3") == [5]
    assert selected("topic = 'topic-2' or status = 'error'") == [1, 2, 4]
    # One of its choices is enough: a row is answered whole.
    assert selected("text = 'text 3.1'") == [3]
    selection = select(job, where=where(job, "row >= 3"))
    assert (selection.num_rows, selection.num_ok) == (3, 2)


def test_other_failed_rows_of_a_reopened_shard_keep_their_error(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (3,))
    write_part(job, 0, [failed(0), failed(1, ErrorCode.ENGINE_ERROR), ok(2)])

    retry(job, where=where(job, "error_code=timeout"))

    assert resume(job) == [0]
    codes = read_file(job.part_path(0))["error_code"].to_pylist()
    assert codes == [None, "engine_error", None]


def test_rows_that_cannot_succeed_are_counted_and_left_alone(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 3), models=[None, "tiny"])
    write_file(
        job.part_path(0),
        result_table([failed(0, ErrorCode.INVALID_REQUEST), failed(1, ErrorCode.MODEL_NOT_FOUND)]),
    )
    write_part(job, 1, [failed(2, ErrorCode.INVALID_REQUEST), failed(3), ok(4)])

    selection = select(job)

    assert (selection.num_rows, selection.num_refused, selection.num_not_retriable) == (1, 2, 1)
    assert [info.shard for info in reopen(job, selection, {})] == [1]
    assert job.is_committed(0)
    assert resume(job) == [3]


def test_nothing_to_retry_leaves_the_job_complete(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [ok(0)])
    finalize(job)

    assert retry(job).selection.shards == ()
    assert job.is_complete
    assert job.summary_path.exists()


def test_open_shards_of_a_running_job_are_left_alone(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 1))
    write_part(job, 0, [failed(0)])
    chunk = write_chunk(job, 1, [failed(1)])

    selection = retry(job).selection

    assert [one.info.shard for one in selection.shards] == [0]
    assert selection.num_open == 1
    assert chunk.exists()


def test_old_chunks_with_the_failed_row_do_not_bring_it_back(tmp_path: Path) -> None:
    """Given a crash between commit and clean-up left chunks, when the shard is reopened, then the row runs again."""
    job = make_job(tmp_path / "job", (2,))
    write_chunk(job, 0, [failed(0), ok(1)])
    write_part(job, 0, [failed(0), ok(1)])

    retry(job)

    assert job.look().chunks(0) == ()
    assert resume(job) == [0]
    assert texts(job, 0) == ["again 0.0", "text 1.0"]


def test_row_that_was_set_aside_is_run_again_though_its_old_journal_is_there(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    attempt = job.claim_attempt(0, worker="w1")
    job.journal_path(0, attempt=attempt).write_text("= 1\n")
    record_end(*(job, 0, attempt), worker="w1", outcome=Outcome.CRASHED, cause=Cause.FAULT, detail="signal SIGSEGV")
    assert judge(job, 0, attempt=attempt + 1).set_aside
    write_part(job, 0, [ok(0), failed(1, ErrorCode.WORKER_CRASHED)])

    retry(job)

    assert not judge(job, 0, attempt=job.num_attempts(0) + 1).set_aside
    assert resume(job) == [1]


def test_reopening_counts_as_an_attempt_of_its_own(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_part(job, 0, [failed(0), ok(1)])

    retry(job)

    assert job.num_attempts(0) == 2
    assert job.open_retries(0) == [2]


def test_shard_without_a_good_row_is_reopened_whole(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [failed(0)])

    retry(job)

    assert resume(job) == [0]
    assert texts(job, 0) == ["again 0.0"]


def test_all_choices_of_a_good_row_are_kept(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_part(job, 0, [ok(0, num_choices=3), failed(1)])

    retry(job)

    assert resume(job) == [1]
    assert texts(job, 0) == ["text 0.0", "text 0.1", "text 0.2", "again 1.0"]


# -- parameters that can't be ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["max_tokens", "max_completion_tokens"])
def test_texts_that_were_cut_off_run_again_with_more_tokens_only(tmp_path: Path, setting: str) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [failed(0, ErrorCode.TRUNCATED)])

    assert select(job).num_not_retriable == 1
    assert select(job, settings={"temperature": 0}).num_rows == 0
    assert select(job, where=where(job, "error_code=truncated"), settings={setting: 64}).num_rows == 1


def test_parameters_that_a_row_cannot_have_are_refused_and_nothing_is_opened(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_part(job, 0, [ok(0), ok(1)])

    with pytest.raises(InputError, match=r"row 1 \(id-1\): with --set its min_tokens is 20; use at most max_tokens"):
        retry(job, where=where(job, "row=1"), settings={"min_tokens": 20})
    assert job.is_committed(0)
    assert job.num_attempts(0) == 1


# -- crashes and races --------------------------------------------------------------------------------------------

#: The durable steps of a retry.
STEPS = ((local_store, "publish_if_absent"), (local_store, "delete"))
#: _SUCCESS, summary; 2 shards x (attempt, retry); _SUCCESS and summary once more.
NUM_STEPS = 8


def test_all_durable_steps_are_known(job: JobDir, monkeypatch: pytest.MonkeyPatch) -> None:
    finalize(job)
    num_steps = die_before(monkeypatch, None, STEPS)

    retry(job)

    assert num_steps() == NUM_STEPS


@pytest.mark.parametrize("crash_before", range(NUM_STEPS))
@pytest.mark.parametrize("next_command", ["retry", "resume"])
def test_crash_before_any_step_loses_nothing(
    job: JobDir, monkeypatch: pytest.MonkeyPatch, crash_before: int, next_command: str
) -> None:
    finalize(job)
    before = [texts(job, shard) for shard in range(3)]
    with monkeypatch.context() as patch:
        die_before(patch, crash_before, STEPS)
        with pytest.raises(ProcessDiedError):
            retry(job)

    assert [texts(job, shard) for shard in range(3)] == before
    assert not (job.is_complete and job.pending_shards())
    if next_command == "retry":
        retry(job)
    ran = resume(job)
    assert set(ran) <= {1, 4}
    summary = finalize(job)
    assert summary is not None
    assert summary.num_rows == 6
    assert summary.num_choices == 5 + len(ran)
    if next_command == "retry":
        assert summary.num_errors == 0
        assert summary.num_ok == 6
    assert [info.shard for info in job.pending_shards()] == []


def test_damaged_retry_is_named_with_what_to_do(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [failed(0)])
    retry(job)
    job.retry_path(0, 2).write_text("{")

    with pytest.raises(CorruptFileError, match=r"retries/00000/0002\.json: damaged; delete it"):
        resume(job)
    job.retry_path(0, 2).unlink()
    assert job.is_committed(0)


def test_cancelled_job_is_not_reopened(job: JobDir) -> None:
    job.cancel()

    with pytest.raises(JobError, match="cancelled; `batcher resume"):
        retry(job)
    assert job.pending_shards() == []


def test_rows_of_a_paused_job_are_opened_and_wait_for_its_resume(job: JobDir) -> None:
    job.pause()

    retried = retry(job, send=lambda job, shards: pytest.fail("nobody is to work on it"))

    assert retried.num_sent == 0
    assert {one.info.shard for one in retried.selection.shards} <= {info.shard for info in job.pending_shards()}
    assert retried.selection.shards


def test_unreadable_part_is_named_and_nothing_changed(job: JobDir) -> None:
    part = job.part_path(1)
    part.write_bytes(part.read_bytes()[:-20])

    with pytest.raises(CorruptFileError, match=r"part-00001.*`batcher resume .* moves it aside"):
        retry(job)
    assert job.pending_shards() == []


def test_full_disk_leaves_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_part(job, 0, [failed(0), ok(1)])

    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)

    with pytest.raises(StorageError, match="No space left"):
        retry(job)
    assert job.is_committed(0)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("error_code", "error_code: "),
        ("error_code=oops", "no such code; use one of context_length_exceeded"),
        ("error_code=invalid_request", "such rows fail again; mend them in the input"),
        ("row=-1", "not a row"),
        ("row=1.5", "not a row"),
        ("row=" + "9" * 30, "not a row"),
        ("errorcode='timeout'", "did you mean error_code"),
    ],
)
def test_condition_that_nothing_can_meet_is_refused(tmp_path: Path, condition: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_where(complete_job(tmp_path / "job"), [condition])


def test_ids_need_no_quotes(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", [[replace(make_request(0), custom_id="it's = a")], [make_request(1)]])

    found = parse_where(job, ["custom_id=it's = a"])

    assert found is not None
    assert found.text == "(custom_id = 'it''s = a')"


def test_every_code_is_either_retriable_or_refused(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")
    for code in ErrorCode:
        if code.is_retriable:
            assert parse_where(job, [f"error_code={code}"])
    final = (ErrorCode.INVALID_REQUEST, ErrorCode.TRUNCATED)
    assert _retriable_codes() == [code.value for code in ErrorCode if code not in final]


# -- sending ------------------------------------------------------------------------------------------------------


def test_shards_are_sent_when_they_are_open_and_the_job_is_free_for_others(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")
    finalize(job)

    def send(sent_of: JobDir, shards: Sequence[ShardInfo]) -> int:
        assert [info.shard for info in shards] == [info.shard for info in sent_of.pending_shards()] == [0]
        assert not sent_of.is_complete
        with exclusive(sent_of, patience_s=0):
            return len(shards)

    retried = retry(job, where=where(job, "error_code=timeout"), send=send)

    assert (retried.num_sent, retried.was_complete, retried.selection.num_rows) == (1, True, 1)


def test_nothing_is_sent_where_no_row_matches(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")

    retried = retry(job, where=where(job, "row=99"), send=lambda job, shards: pytest.fail("nothing was opened"))

    assert (retried.num_sent, retried.was_complete, retried.selection.num_rows) == (0, False, 0)
