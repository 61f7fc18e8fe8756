"""Two commands at one job at one moment: one wins, the other is told so, and every row comes out once.

Where the moment matters, a process is held at it; the same pair is also let loose a few times, at different distances.
"""

import json
import os
import time
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from tests.faults.command_lines import (
    MANY,
    MANY_ROWS,
    SHORT,
    prompts_of,
    resume_line,
    run_line,
    second_chunk,
    submit_line,
)
from tests.faults.interruption import Interruption
from tests.support.family import (
    Command,
    Family,
    assert_every_row_once,
    chunk_rows,
    start_worker,
    wait_until_ready,
    write_prompts,
)
from tests.support.job_files import finished_job, result_rows
from tests.support.waiting import wait_for

#: Seconds by which the second of two commands starts later. It takes about one until a command does anything.
DISTANCES_S = (0.0, 0.15, 0.6)

BUSY = "is changing this job; wait until it is done"


def let_loose(family: Family, first: list[object], second: list[object], distance_s: float) -> tuple[Command, Command]:
    """Start two commands at this distance, and wait for both."""
    one = family.start(*first)
    time.sleep(distance_s)
    other = family.start(*second)
    for command in (one, other):
        command.wait()
        assert "Traceback" not in command.stderr
    return one, other


# -- submit -------------------------------------------------------------------------------------------------------


def test_submit_during_another_of_the_same_id_is_refused(family: Family, redis_url: str) -> None:
    job = JobDir(family.folder / "jobs" / "one")
    line = submit_line(job, redis_url, prompts_of(family, 50))
    moment = Interruption(family.folder / "moment", "batcher.jobdir.local_store:create_if_absent", "manifest.json")
    first = family.start(*line, env=moment.env)
    moment.wait()

    second = family.run(*line, code=2)

    assert f"{job.path}: another submit is writing this job" in second.stderr
    moment.release()
    assert first.wait() == 0
    assert job.manifest.num_rows == 50
    family.run(*line, code=0)


@pytest.mark.parametrize("is_same_input", [True, False])
def test_two_submits_of_one_id_make_one_job(family: Family, model: Path, redis_url: str, is_same_input: bool) -> None:
    prompts = prompts_of(family, 50)
    others = prompts if is_same_input else write_prompts(family.folder / "others.jsonl", 40)
    jobs = [JobDir(family.folder / "jobs" / f"job-{number}") for number in range(len(DISTANCES_S))]
    options = ("--shard-rows", 10, "--max-tokens", 4)

    for job, distance_s in zip(jobs, DISTANCES_S, strict=True):
        commands = let_loose(
            family,
            submit_line(job, redis_url, prompts, *options),
            submit_line(job, redis_url, others, *options),
            distance_s,
        )
        winners = [command for command in commands if command.process.returncode == 0]
        for loser in (command for command in commands if command not in winners):
            assert loser.process.returncode == 2
            assert any(text in loser.stderr for text in ("another submit is writing this job", "with other input"))
        assert len(winners) == 1 or (is_same_input and len(winners) == 2)

    start_worker(family, redis_url, model, "w1")
    wait_for(lambda: all(job.is_complete for job in jobs), what="the jobs are complete")
    for job in jobs:
        assert_every_row_once(job, job.manifest.num_rows)
        assert job.manifest.num_rows in {50, 50 if is_same_input else 40}


@pytest.mark.parametrize("distance_s", DISTANCES_S)
@pytest.mark.parametrize("is_run_first", [True, False])
def test_submit_and_run_on_one_folder_make_one_job(
    family: Family, model: Path, redis_url: str, distance_s: float, is_run_first: bool
) -> None:
    job = JobDir(family.folder / "jobs" / "out")
    prompts = prompts_of(family, 30)
    run = run_line(family, model, job, prompts, *SHORT)
    submit = submit_line(job, redis_url, prompts, *SHORT[:2])

    commands = let_loose(family, *((run, submit) if is_run_first else (submit, run)), distance_s)

    for command in commands:
        if command.process.returncode:
            assert command.process.returncode == 2
            assert "another submit is writing this job" in command.stderr
    assert any(command.process.returncode == 0 for command in commands)
    family.run(*run, code=0)
    assert_every_row_once(job, 30)


# -- resume and run -----------------------------------------------------------------------------------------------


def test_resume_during_a_run_is_refused_by_pid(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    prompts = prompts_of(family, MANY_ROWS)
    moment = second_chunk(family)
    run = family.start(*run_line(family, model, job, prompts, *MANY), env=moment.env)
    moment.wait()

    resume = family.run(*resume_line(job, model), code=3)

    assert f"another run (pid {run.pid}) is working on this job; wait for it, or stop it" in resume.stderr
    moment.release()
    assert run.wait() == 0, run.stderr
    assert_every_row_once(job, MANY_ROWS)


# -- cancel and pause ---------------------------------------------------------------------------------------------


def test_commit_on_its_way_when_the_job_is_cancelled_is_kept_and_completes_it(family: Family, model: Path) -> None:
    """Given an attempt that is about to write the last part, when the job is cancelled, then that is too late."""
    job = JobDir(family.folder / "out")
    moment = Interruption(
        family.folder / "moment", "batcher.jobdir.local_store:create_if_absent", "part-00000", "workers.child"
    )
    prompts = prompts_of(family, 20)
    run = family.start(*run_line(family, model, job, prompts, *SHORT), env=moment.env)
    moment.wait()

    cancel = family.run("cancel", job.path)

    assert cancel.stdout.startswith("Cancelled. Finished rows are kept")
    moment.release()
    assert run.wait() == 0, run.stderr
    assert "20 in = 20 ok + 0 error" in run.stdout
    assert not job.is_cancelled
    assert_every_row_once(job, 20)
    resume = family.run(*resume_line(job, model), code=0)
    assert "The job is complete" in resume.stderr


def test_cancellation_after_the_last_commit_is_told_that_it_came_too_late(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    moment = Interruption(family.folder / "moment", "batcher.jobdir.folder:write_summary")
    prompts = prompts_of(family, 20)
    run = family.start(*run_line(family, model, job, prompts, *SHORT), env=moment.env)
    moment.wait()

    cancel = family.run("cancel", job.path)

    assert cancel.stdout == "The job is complete; there is nothing to cancel.\n"
    moment.release()
    assert run.wait() == 0, run.stderr
    assert not job.is_cancelled
    assert_every_row_once(job, 20)


@pytest.mark.parametrize("distance_s", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("command", "answer", "reason"),
    [("cancel", "Cancelled.", "the job was cancelled"), ("pause", "Paused.", "Paused: ")],
)
def test_cancel_or_pause_at_any_moment_leaves_a_halted_job_or_a_complete_one(
    family: Family, model: Path, distance_s: float, command: str, answer: str, reason: str
) -> None:
    job = JobDir(family.folder / "out")
    prompts = prompts_of(family, 20)
    run = family.start(*run_line(family, model, job, prompts, *SHORT, "--shard-rows", 5))
    wait_for(lambda: job.exists() and job.num_attempts(0), what="the first claim")
    time.sleep(distance_s)

    halt = family.run(command, job.path)

    code = run.wait()
    assert "Traceback" not in run.stderr + halt.stderr
    if job.is_complete:
        assert not job.is_halted
    else:
        assert (job.is_cancelled, job.is_paused) == (command == "cancel", command == "pause")
        assert code == 3
        assert reason in run.stderr
        assert halt.stdout.startswith(answer)
    family.run(*resume_line(job, model), code=0)
    assert not job.is_halted
    assert_every_row_once(job, 20)


# -- retry --------------------------------------------------------------------------------------------------------


def test_rows_retried_during_a_run_are_run_again_by_it(family: Family, model: Path) -> None:
    """Given a run whose first shard is committed with failed rows, when they are retried, then it takes them up."""
    job = JobDir(family.folder / "out")
    # The first two need more context than there is, and fail each time.
    lines = [{"prompt": f"hello {row}", "max_tokens": 100_000 if row < 2 else 4} for row in range(8)]
    prompts = family.folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    moment = Interruption(
        family.folder / "moment", "batcher.jobdir.local_store:create_if_absent", "part-00001", "workers.child"
    )
    run = family.start(
        *run_line(family, model, job, prompts, "--threads", 1, "--shard-rows", 4, "--lease-ttl", 3), env=moment.env
    )
    moment.wait()
    wait_for(lambda: job.part_path(0).exists(), what="the first part")

    retry = family.run("retry", job.path, code=0)

    assert "Reopened 2 rows in 1 shard.\nWho works on the job takes them up; if nobody does" in retry.stdout
    moment.release()
    assert run.wait() == 1, run.stderr
    rows = assert_every_row_once(job, 8, errors=dict.fromkeys((0, 1), "context_length_exceeded"))
    # Claimed by the first attempt, by the retry and by the second attempt.
    assert [row["attempts"] for row in rows[:4]] == [3, 3, 1, 1]


def test_retry_during_another_is_refused(family: Family, model: Path) -> None:
    job = finished_job(family.folder / "out")
    moment = Interruption(family.folder / "moment", "batcher.jobdir.folder:unset_success")
    first = family.start("retry", job.path, env=moment.env)
    moment.wait()

    second = family.run("retry", job.path, code=2)

    assert BUSY in second.stderr
    moment.release()
    assert first.wait() == 0
    assert first.stdout.startswith("Reopened 2 rows in 2 shards.")
    assert not job.is_complete
    family.run(*resume_line(job, model), code=0)
    assert [row["row"] for row in result_rows(job)] == [0, 1, 2, 3, 3, 4, 5]
    assert {row["status"] for row in result_rows(job)} == {"ok"}


@pytest.mark.parametrize("distance_s", DISTANCES_S)
def test_two_retries_reopen_each_row_once(family: Family, model: Path, distance_s: float) -> None:
    job = finished_job(family.folder / "out")
    before = {row["row"]: row for row in result_rows(job) if row["status"] == "ok"}

    commands = let_loose(
        family,
        ["retry", job.path, "--where", "error_code=timeout"],
        ["retry", job.path, "--where", "row=4"],
        distance_s,
    )

    for command in commands:
        if command.process.returncode == 0:
            assert "Reopened 1 row in 1 shard.\n" in command.stdout
        else:
            assert command.process.returncode == 2
            assert BUSY in command.stderr
    reopened = sum(command.process.returncode == 0 for command in commands)
    assert reopened >= 1
    assert len(job.pending_shards()) == reopened
    assert family.run(*resume_line(job, model)).process.returncode == (0 if reopened == 2 else 1)
    assert job.is_complete
    rows = result_rows(job)
    assert [row["row"] for row in rows] == [0, 1, 2, 3, 3, 4, 5]
    assert {row["row"]: row for row in rows if row["row"] in before} == before


# -- delete -------------------------------------------------------------------------------------------------------


def test_run_whose_job_is_deleted_ends_with_the_reason_and_does_not_bring_it_back(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    prompts = prompts_of(family, MANY_ROWS)
    moment = second_chunk(family)
    run = family.start(*run_line(family, model, job, prompts, *MANY), env=moment.env)
    moment.wait()

    deleted = family.run("delete", "--yes", job.path, code=0)

    moment.release()
    assert run.wait() == 3
    assert f"{job.path}: the job was deleted while it was worked on" in run.stderr
    assert "Go on with" not in run.stderr
    assert "Traceback" not in run.stderr
    assert family.pids() == []
    assert not job.path.exists(), deleted.stdout


def test_worker_drops_a_deleted_job_and_goes_on_with_others(family: Family, model: Path, redis_url: str) -> None:
    jobs = [JobDir(family.folder / "jobs" / name) for name in ("first", "second")]
    prompts = prompts_of(family, MANY_ROWS)
    moment = second_chunk(family)
    # Its leases live longer than it is held: nobody else is to take the shard meanwhile.
    worker = start_worker(family, redis_url, model, "w1", "--lease-ttl", 120, env=moment.env)
    wait_until_ready(worker)
    family.run(*submit_line(jobs[0], redis_url, prompts, *MANY[:4]))
    moment.wait()
    family.run(*submit_line(jobs[1], redis_url, prompts, *MANY[:4]))

    family.run("delete", "--yes", jobs[0].path, code=0)

    moment.release()
    wait_for(lambda: "the job was deleted" in worker.stderr, what="the worker says that it has heard")
    wait_for(lambda: jobs[1].is_complete, what="the other job is complete")
    assert_every_row_once(jobs[1], MANY_ROWS)
    assert not jobs[0].path.exists()
    assert sum("the job was deleted" in line for line in worker.stderr.splitlines()) == 1
    assert "Traceback" not in worker.stderr


@pytest.mark.parametrize("at", ["create_if_absent", "publish_if_absent"])
def test_rows_of_a_deleted_job_do_not_get_into_the_next_of_its_name(
    family: Family, model: Path, redis_url: str, at: str
) -> None:
    """Given a worker held at its chunk, when its job is deleted and another takes its id, then no row gets over."""
    job = JobDir(family.folder / "jobs" / "one")
    moment = Interruption(family.folder / "moment", f"batcher.jobdir.local_store:{at}", "chunks/", "workers.child")
    worker = start_worker(family, redis_url, model, "w1", "--lease-ttl", 3, env=moment.env)
    wait_until_ready(worker)
    old = write_prompts(family.folder / "old.jsonl", MANY_ROWS)
    family.run(*submit_line(job, redis_url, old, *MANY[:4]))
    moment.wait()

    family.run("delete", "--yes", job.path, code=0)
    assert not job.path.exists()
    new = family.folder / "new.jsonl"
    new.write_text("".join(f'{{"prompt": "new {row}", "note": "new"}}\n' for row in range(120)))
    family.run(*submit_line(job, redis_url, new, *SHORT[:2]), code=0)
    moment.release()

    job = JobDir(job.path)
    wait_for(lambda: job.is_complete, what="the new job is complete")
    rows = assert_every_row_once(job, 120)
    assert {row["note"] for row in rows} == {"new"}
    assert chunk_rows(job) == {}
    assert "Traceback" not in worker.stderr


def test_submit_during_a_deletion_of_its_id_is_refused(family: Family, redis_url: str) -> None:
    job = finished_job(family.folder / "jobs" / "one")
    prompts = prompts_of(family, 5)
    moment = Interruption(family.folder / "moment", "batcher.manage.delete:_remove")
    delete = family.start("delete", "--yes", job.path, env=moment.env)
    moment.wait()
    line = submit_line(job, redis_url, prompts)

    refused = family.run(*line, code=2)
    assert "another submit is writing this job, or it is being deleted" in refused.stderr
    assert "the deletion of a job here was interrupted" in family.run("status", job.path).stderr

    moment.release()
    assert delete.wait() == 0, delete.stderr
    assert not job.path.exists()
    family.run(*line, code=0)
    assert JobDir(job.path).manifest.num_rows == 5


def test_deletion_killed_midway_is_finished_by_the_same_command(family: Family) -> None:
    job = finished_job(family.folder / "jobs" / "one")
    moment = Interruption(family.folder / "moment", "batcher.manage.delete:_remove", match="results", is_deadly=True)
    killed = family.run("delete", "--yes", job.path, env=moment.env)
    assert killed.process.returncode < 0
    assert not job.exists()
    assert job.path.exists()

    family.run("delete", "--yes", job.job_id, "--jobs-dir", job.path.parent, code=0)

    assert not os.path.lexists(job.path)
