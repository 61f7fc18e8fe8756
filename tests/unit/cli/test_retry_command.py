"""`batcher retry`: what it opens, what it says."""

from pathlib import Path

import pytest

from batcher.broker.client import connect, queue_key
from batcher.broker.embedded import embedded_broker
from batcher.jobdir.folder import JobDir
from batcher.jobdir.scope import scope_of
from batcher.types import AnswerRules, ErrorCode
from tests.support.job_files import failed, finished_job, make_job, ok, write_part
from tests.unit.conftest import Run


@pytest.fixture
def finished(workplace: Path) -> JobDir:
    return finished_job(workplace / "batcher-jobs" / "demo")


def test_retry_reopens_and_says_how_to_go_on(run: Run, finished: JobDir) -> None:
    code, out, _ = run("retry demo --where error_code=timeout")

    assert code == 0
    assert out == "Reopened 1 row in 1 shard.\nGo on with: batcher resume batcher-jobs/demo --model tiny=PATH\n"
    assert [info.shard for info in finished.pending_shards()] == [0]
    assert not finished.is_complete


def test_dry_run_of_a_retry_says_how_many_rows_and_opens_none(run: Run, finished: JobDir) -> None:
    code, out, _ = run("retry demo --where 'completion_tokens > 0' --set max_tokens=256 --dry-run")

    assert (code, out) == (0, "4 rows, 4 of them answered, in 3 shards would run again.\n")
    assert finished.is_complete


def test_retry_says_what_goes_on_with_a_job_whose_model_and_validator_must_be_given(run: Run, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,), models=["of-mine"], answers=AnswerRules(validator="checks:ok"))
    write_part(job, 0, [failed(0)])

    code, out, _ = run("retry job")

    assert code == 0
    assert "batcher resume job --model of-mine=PATH --allow-validator checks:ok" in out


def test_retry_says_which_rows_it_leaves_out(run: Run, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 2), models=[None, "tiny"])
    write_part(job, 0, [failed(0, ErrorCode.INVALID_REQUEST)])
    write_part(job, 1, [failed(1, ErrorCode.INVALID_REQUEST), ok(2)])

    code, out, _ = run("retry job")

    assert code == 0
    assert "1 row was refused at submit and is left out: mend it in the input" in out
    assert "1 row is left out: its error does not go away" in out
    assert out.endswith("Nothing to retry.\n")
    assert job.pending_shards() == []


def test_retry_says_how_the_one_that_is_open_goes_on(run: Run, tmp_path: Path) -> None:
    """Given a shard of three rows that a retry has open and one that never ran, when rows are to be retried, then it
    counts those that are asked for."""
    job = make_job(tmp_path / "job", (3, 4, 2))
    write_part(job, 0, [failed(0), ok(1), ok(2)])
    write_part(job, 2, [ok(7), ok(8)])
    run("retry job")

    one, several, none = (
        run(f"retry job --where '{where}' --dry-run")[1].splitlines() for where in ("row = 1", "row in (1, 2)", "row=7")
    )

    going_on = "until that is done; it goes on with: batcher resume job --model tiny=PATH"
    open_rows = "4 rows of shards that are not finished are left alone."
    assert one == [
        f"1 row is in a shard that an earlier retry has open and is left alone {going_on}",
        open_rows,
        "0 rows in 0 shards would run again.",
    ]
    assert several[0] == f"2 rows are in shards that an earlier retry has open and are left alone {going_on}"
    assert none == [open_rows, "1 row, 1 of them answered, in 1 shard would run again."]
    assert "1 row is in a shard that an earlier retry has open" in run("retry job")[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("retry demo --where code=timeout", "there is no column 'code'"),
        ("retry demo --where error_code=nope", "no such code"),
        ("retry demo --set max_tokens", "use NAME=VALUE, such as --set max_tokens=256"),
        ("retry demo --set max_tokens=0", "--set max_tokens is 0; use a positive integer"),
        ("retry demo --set tempertaure=0", "did you mean temperature?"),
        ("retry demo --set n=2", "a retry can't change that"),
        ("retry demo --set model=other", "for another model submit the input as a new job"),
        ("retry demo --set top_p=1 --set top_p=0.5", "top_p is given twice"),
        ("retry demo --broker redis://127.0.0.1:1/0", "cannot reach it"),
        ("retry demo --broker nonsense", "not a broker URL"),
    ],
)
def test_retry_that_cannot_work_changes_nothing(run: Run, finished: JobDir, line: str, message: str) -> None:
    code, _, err = run(line)

    assert code in (2, 3)
    assert message in err
    assert finished.is_complete
    assert finished.pending_shards() == []


def test_retry_with_a_broker_enqueues_the_reopened_shards(run: Run, finished: JobDir) -> None:
    with embedded_broker(finished.path) as url:
        code, out, _ = run(f"retry demo --broker {url}")
        client = connect(url)
        num_waiting = client.llen(queue_key("tiny", scope=scope_of(finished.path.parent)))
        client.close()

    assert code == 0
    assert out == "Reopened 2 rows in 2 shards.\nEnqueued 2 shards.\n"
    assert num_waiting == 2


def test_retry_of_a_paused_job_says_what_has_it_go_on(run: Run, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 1))
    write_part(job, 0, [failed(0)])
    job.pause()

    line = "batcher resume job --model tiny=PATH"
    assert run("retry job")[1].splitlines()[-1] == f"The job is paused; have it go on with: {line}"


def test_retry_of_a_job_that_goes_on_says_who_takes_it_up(run: Run, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 1))
    write_part(job, 0, [failed(0)])

    _, out, _ = run("retry job")

    line = "batcher resume job --model tiny=PATH"
    assert "1 row of shards that are not finished is left alone.\n" in out
    assert out.splitlines()[-1] == f"Who works on the job takes them up; if nobody does, go on with: {line}"
