"""What becomes of answers when their rows run again: those of before, the new ones, and those of a lost part."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from batcher.jobdir import local_store
from batcher.jobdir.folder import JobDir
from batcher.jobdir.local_store import LocalStore
from batcher.jobdir.results import job_schema, read_file, read_retries
from batcher.jobdir.retries import most_extra_tokens
from batcher.jobdir.workload import Workload
from batcher.manage.finish import finalize
from batcher.manage.finished import finished_tables
from batcher.manage.repair import repair
from batcher.manage.retry import retry
from batcher.manage.status import JobState, StatusReader, read_status
from tests.support.crashing import ProcessDiedError, die_before
from tests.support.job_files import (
    failed,
    make_job,
    ok,
    result_table,
    write_chunk,
    write_part,
)
from tests.support.retrying import resume, texts, where

# -- answers of before --------------------------------------------------------------------------------------------


def test_readers_see_the_answers_of_before_until_all_new_ones_are_there(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (3,))
    write_part(job, 0, [ok(0), ok(1), ok(2)])
    finalize(job)

    retry(job, where=where(job, "row < 2"))
    write_chunk(job, 0, [ok(0, text="new")], attempt=3)

    assert not job.is_complete
    assert finalize(job) is None
    assert texts(job, 0) == ["text 0.0", "text 1.0", "text 2.0"]
    assert [text for table in finished_tables(job) for text in table["text"].to_pylist()] == texts(job, 0)
    status = read_status(job)
    assert (status.state, status.num_done, status.num_ok) == (JobState.RUNNING, 2, 2)
    assert resume(job) == [1]
    assert texts(job, 0) == ["new 0.0", "again 1.0", "text 2.0"]
    assert finalize(job) is not None


def test_replaced_rows_are_kept_as_they_were_once_for_each_retry(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (3,))
    write_part(job, 0, [ok(0), ok(1), failed(2)])

    for text in ("second", "third"):
        retry(job, where=where(job, "row = 1"))
        assert resume(job, text=text) == [1]

    earlier = sorted(job.earlier_dir.glob("*.parquet"))
    assert [path.name for path in earlier] == ["part-00000-0002.parquet", "part-00000-0004.parquet"]
    assert [read_file(path)["text"].to_pylist() for path in earlier] == [["text 1.0"], ["second 1.0"]]
    assert all(read_file(path).schema.equals(job_schema(job.manifest)) for path in earlier)
    assert texts(job, 0) == ["text 0.0", "third 1.0", None]
    # Who reads results/ or earlier/ as a dataset reads nothing else.
    assert pq.read_table(job.earlier_dir).num_rows == 2


def test_status_of_a_reader_that_missed_the_retry_is_of_the_new_part(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 1))
    write_part(job, 0, [failed(0), ok(1)])
    write_part(job, 1, [ok(2)])
    reader = StatusReader(job)
    for _ in range(3):
        assert reader.read().num_errors == 1

    retry(job)
    resume(job)

    status = reader.read()
    assert (status.num_ok, status.num_errors, status.num_attempts) == (3, 0, 4)


# -- parameters ---------------------------------------------------------------------------------------------------


def asked(job: JobDir, shard: int = 0) -> list[tuple[int, float]]:
    """What an attempt asks of each row of a shard now: max_tokens and temperature."""
    claim = job.claim(shard, worker="w")
    rows = Workload(job, shard, claim=claim).rows
    return [(row.request.params.max_tokens, row.request.params.temperature) for row in rows]


def test_rows_that_run_again_get_the_parameters_and_the_others_keep_theirs(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (3,))
    write_part(job, 0, [ok(0), failed(1), ok(2)])

    retry(job, where=where(job, "row <> 1"), settings={"max_tokens": 256, "temperature": 0})

    assert asked(job) == [(256, 0.0), (16, 1.0), (256, 0.0)]
    assert most_extra_tokens(job) == 240
    resume(job)
    assert most_extra_tokens(job) == 0


def test_parameters_of_retries_stay_and_the_last_one_counts(tmp_path: Path) -> None:
    """Given two retries, when the part is lost, then its rows are computed with the parameters of both."""
    job = make_job(tmp_path / "job", (3,))
    write_part(job, 0, [ok(0), ok(1), ok(2)])
    retry(job, where=where(job, "row < 2"), settings={"max_tokens": 256})
    resume(job)
    retry(job, where=where(job, "row > 0"), settings={"temperature": 0.5})
    resume(job)

    job.part_path(0).unlink()

    assert asked(job) == [(256, 1.0), (256, 0.5), (16, 0.5)]
    assert resume(job, text="anew") == [0, 1, 2]
    assert read_retries(job.part_path(0)) == {2, 4}


def test_part_that_is_lost_while_rows_of_it_run_again_is_computed_whole(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_part(job, 0, [ok(0), ok(1)])
    retry(job, where=where(job, "row=0"), settings={"max_tokens": 64})
    part = job.part_path(0)
    part.write_bytes(part.read_bytes()[:-9])

    assert [damage.info.shard for damage in repair(job)] == [0]

    assert asked(job) == [(64, 1.0), (16, 1.0)]
    assert resume(job) == [0, 1]
    assert finalize(job) is not None


#: The durable steps of a commit that replaces a part: the rows of before, _SUCCESS, summary, the part, the retry.
COMMIT_STEPS = (
    (local_store, "publish_if_absent"),
    (local_store, "delete"),
    (LocalStore, "replace_if"),
    (LocalStore, "move"),
)
NUM_COMMIT_STEPS = 5


@pytest.mark.parametrize("crash_before", [*range(NUM_COMMIT_STEPS), None])
def test_crash_at_a_commit_shows_each_row_once_and_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_before: int | None
) -> None:
    job = make_job(tmp_path / "job", (3,))
    write_part(job, 0, [ok(0), ok(1), ok(2)])
    finalize(job)
    retry(job, where=where(job, "row=1"))
    work = Workload(job, 0, claim=job.claim(0, worker="w2"))
    table = work.join(result_table([ok(1, text="first")], attempt=3))

    with monkeypatch.context() as patch:
        num_steps = die_before(patch, crash_before, COMMIT_STEPS)
        if crash_before is None:
            assert work.commit(table)
            assert num_steps() == NUM_COMMIT_STEPS
        else:
            with pytest.raises(ProcessDiedError):
                work.commit(table)

    is_replaced = crash_before is None or crash_before == NUM_COMMIT_STEPS - 1
    assert texts(job, 0) == ["text 0.0", "first 1.0" if is_replaced else "text 1.0", "text 2.0"]
    assert finalize(job) is None or crash_before is None
    assert resume(job, text="second") == ([] if is_replaced else [1])
    assert texts(job, 0) == ["text 0.0", "first 1.0" if is_replaced else "second 1.0", "text 2.0"]
    assert finalize(job) is not None
    assert read_file(job.earlier_path(0, 2))["text"].to_pylist() == ["text 1.0"]
    assert not list(job.retries_root.rglob("*.json"))


def test_of_two_attempts_at_a_retry_one_commits(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_part(job, 0, [ok(0), ok(1)])
    retry(job, where=where(job, "row=1"))
    one, other = (Workload(job, 0, claim=job.claim(0, worker=name)) for name in ("w1", "w2"))
    tables = [work.join(result_table([ok(1, text=text)])) for work, text in ((one, "one"), (other, "other"))]

    assert one.commit(tables[0])
    assert other.is_decided()
    assert not other.commit(tables[1])

    assert texts(job, 0) == ["text 0.0", "one 1.0"]


def test_attempt_that_wakes_up_after_a_later_retry_changes_nothing(tmp_path: Path) -> None:
    """Given one that read its work before others answered and a second retry began and ended, then it is told so."""
    job = make_job(tmp_path / "job", (2,))
    write_part(job, 0, [ok(0), ok(1)])
    retry(job, where=where(job, "row=1"))
    zombie = Workload(job, 0, claim=job.claim(0, worker="zombie"))
    table = zombie.join(result_table([ok(1, text="zombie")]))
    resume(job)
    retry(job, where=where(job, "row=0"))
    assert not zombie.commit(table)
    assert resume(job, text="third") == [0]

    assert not zombie.commit(table)
    assert texts(job, 0) == ["third 0.0", "again 1.0"]


def test_chunk_that_is_written_late_by_an_attempt_of_before_is_no_answer(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_part(job, 0, [ok(0), ok(1)])
    retry(job, where=where(job, "row=1"))

    write_chunk(job, 0, [ok(1, text="late")], attempt=1, sequence=9)

    assert resume(job) == [1]
    assert texts(job, 0) == ["text 0.0", "again 1.0"]
