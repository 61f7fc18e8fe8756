"""`batcher run` from end to end, and what is left when it is stopped, killed, or run twice."""

import csv
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batcher.broker.client import connect
from batcher.broker.embedded import folder_for
from batcher.cli import EXIT_INTERRUPTED
from batcher.jobdir.folder import JobDir
from tests.faults.injection import inject
from tests.support.family import Family, assert_every_row_once, chunk_rows, has_chunks, write_prompts
from tests.support.job_files import result_rows
from tests.support.waiting import wait_for

ROWS = 400
#: One shard of several seconds, so that a chunk appears long before its end, on a much faster machine too. One thread:
#: threads that wait for each other in a busy loop take a multiple of the time where others need the cores.
LONG = ("--max-tokens", 400, "--shard-rows", ROWS, "--threads", 1)


def start_run(family: Family, model: Path, job: JobDir, *options: object, rows: int = ROWS) -> list[object]:
    """The command line of a run, its input written and its job known to the family."""
    prompts = write_prompts(family.folder / "prompts.jsonl", rows)
    family.jobs.append(job.path)
    return ["run", prompts, "-o", job.path, "--model", f"tiny={model}", *options]


def assert_nothing_left(family: Family, job: JobDir) -> None:
    assert family.pids() == []
    assert not folder_for(job.path).exists()


def test_run_completes_a_file_and_says_so_when_run_again(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    arguments = start_run(family, model, job, "--max-tokens", 8, "--workers", 2, "--shard-rows", 30, rows=70)
    (family.folder / "workers.py").write_text("raise RuntimeError('a file of the user was taken for ours')")

    first = family.run(*arguments, code=0)

    assert "70 in = 70 ok + 0 error" in first.stdout
    assert "Submitted 70 rows in 3 shards." in first.stderr
    assert_every_row_once(job, 70)
    assert [row["note"] for row in result_rows(job)] == [f"n{i}" for i in range(70)]
    assert {row["completion_tokens"] for row in result_rows(job)} == {8}
    assert_nothing_left(family, job)

    parts = {path: path.stat().st_mtime_ns for path in job.results_dir.iterdir()}
    again = family.run(*arguments, code=0)

    assert "The job is complete" in again.stderr
    assert again.stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in job.results_dir.iterdir()} == parts


def test_run_of_a_folder_of_csv_carries_cells_and_folders_and_resumes(family: Family, model: Path) -> None:
    for lang, start in (("de", 0), ("en", 40)):
        folder = family.folder / "tickets" / f"lang={lang}"
        folder.mkdir(parents=True)
        with (folder / "tickets.csv").open("w", newline="") as file:
            rows = [[f"{i:03d}", f'It says:\n"no, {i}"', i] for i in range(start, start + 40)]
            csv.writer(file).writerows([["custom_id", "prompt", "priority"], *rows])
    (family.folder / "tickets" / "_SUCCESS").touch()
    job = JobDir(family.folder / "tickets" / "out")
    family.jobs.append(job.path)
    arguments = ["run", family.folder / "tickets", "-o", job.path, "--model", f"tiny={model}", "--max-tokens", 2]

    first, again = (family.run(*arguments, "--file-column", "file") for _ in range(2))

    assert first.process.returncode == 0, first.stderr
    assert again.process.returncode == 0, again.stderr
    assert "The job is complete" in again.stderr
    results = result_rows(job)
    assert [row["custom_id"] for row in results] == [f"{i:03d}" for i in range(80)]
    assert [row["prompt"] for row in results] == [f'It says:\n"no, {i}"' for i in range(80)]
    assert [(row["priority"], row["lang"]) for row in results] == [(i, "de" if i < 40 else "en") for i in range(80)]
    assert {row["file"] for row in results[40:]} == {str(family.folder / "tickets" / "lang=en" / "tickets.csv")}


def test_two_runs_of_a_file_share_no_id_and_no_draw_and_the_seed_of_one_draws_it_again(
    family: Family, model: Path
) -> None:
    # Given a file, completed at temperature 1 by a model with a name of the API
    prompts = write_prompts(family.folder / "prompts.jsonl", 40)
    runs = [JobDir(family.folder / name) for name in ("first", "second", "again")]
    family.jobs.extend(job.path for job in runs)

    def run(job: JobDir, *options: object) -> list[dict[str, object]]:
        family.run(
            "run", prompts, "-o", job.path, "--model", f"org/tiny:1b@x={model}", "--max-tokens", 4, *options, code=0
        )
        return result_rows(job)

    # When
    first, second = run(runs[0]), run(runs[1])
    again = run(runs[2], "--seed", runs[0].manifest.seed)

    # Then
    assert {row["model"] for row in first} == {"org/tiny:1b@x"}
    assert len({row["id"] for rows in (first, second, again) for row in rows}) == 120
    same = [sum(a["text"] == b["text"] for a, b in zip(first, other, strict=True)) for other in (second, again)]
    # Some texts of four tokens are equal by chance, and some differ as sums differ with what else is in a batch.
    assert same[0] < 20
    assert same[1] > 30


def test_killed_run_is_resumed_by_the_same_command_without_computing_saved_rows(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    arguments = start_run(family, model, job, *LONG)
    killed = family.start(*arguments)
    wait_for(lambda: has_chunks(job), what="a chunk")
    assert len(family.pids()) >= 3, "the run, its broker and its worker"

    family.kill_all()

    killed.wait()
    saved = chunk_rows(job)
    committed = {row["row"]: row for row in result_rows(job)}
    assert 0 < len(saved.keys() | committed.keys()) < ROWS

    resumed = family.run(*arguments, code=0)

    assert f"Resuming: {len(saved.keys() | committed.keys())} of {ROWS} rows done." in resumed.stderr
    assert_every_row_once(job, ROWS)
    # Who computed a row, when and at which attempt stands in it: saved rows are the very same rows.
    results = {row["row"]: row for row in result_rows(job)}
    assert {number: results[number] for number in saved} == saved
    assert {number: results[number] for number in committed} == committed
    assert_nothing_left(family, job)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_run_ends_soon_keeps_its_rows_and_prints_how_to_resume(
    family: Family, model: Path, number: signal.Signals
) -> None:
    job = JobDir(family.folder / "out")
    arguments = start_run(family, model, job, *LONG)
    run = family.start(*arguments)
    wait_for(lambda: has_chunks(job), what="a chunk")

    sent_at = time.monotonic()
    # As a terminal does for Ctrl-C: to the whole group.
    os.killpg(run.pid, number)

    assert run.wait() == EXIT_INTERRUPTED
    assert time.monotonic() - sent_at < 10
    assert_nothing_left(family, job)
    assert "Traceback" not in run.stderr
    done = len(chunk_rows(job).keys() | {row["row"] for row in result_rows(job)})
    assert f"Stopped: {done} of {ROWS} rows done and kept." in run.stderr
    line = run.stderr.strip().splitlines()[-1].strip()
    assert line == " ".join(["batcher", *map(str, arguments)])


def test_line_of_a_status_goes_on_here_though_the_environment_names_a_broker(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    run = family.start(*start_run(family, model, job, *LONG))
    wait_for(lambda: has_chunks(job), what="a chunk")
    os.killpg(run.pid, signal.SIGINT)
    run.wait()
    # Nobody listens there: what would be queued fails.
    broker = {"BATCHER_BROKER": "redis://127.0.0.1:1/0"}

    told = family.run("status", "out", env=broker, code=0).stdout
    line = told.partition("go on here with: ")[2].partition("\n")[0].replace("tiny=PATH", f"tiny={model}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    gone_on = subprocess.run(
        ["sh", "-c", line],
        cwd=family.folder,
        env={**os.environ, **family.environment, **broker, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )

    assert line.startswith("env -u BATCHER_BROKER batcher resume out ")
    assert gone_on.returncode == 0, gone_on.stderr
    assert_every_row_once(job, ROWS)


def test_second_run_on_the_same_job_is_refused_by_name(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    arguments = start_run(family, model, job, *LONG)
    first = family.start(*arguments)
    wait_for(lambda: has_chunks(job), what="a chunk")

    second = family.run(*arguments, code=3)

    assert f"another run (pid {first.pid}) is working on this job" in second.stderr
    assert first.process.poll() is None


def test_cancelled_run_ends_with_its_rows_kept_and_can_be_resumed(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    run = family.start(*start_run(family, model, job, *LONG))
    wait_for(lambda: has_chunks(job), what="a chunk")

    family.run("cancel", job.path, code=0)

    assert run.wait() == 3
    assert "cancelled" in run.stderr
    assert_nothing_left(family, job)
    saved = chunk_rows(job)
    assert saved

    family.run("resume", job.path, "--model", f"tiny={model}", "--threads", 1, code=0)

    assert_every_row_once(job, ROWS)
    results = {row["row"]: row for row in result_rows(job)}
    assert {number: results[number] for number in saved} == saved


def test_paused_run_ends_with_the_line_that_goes_on(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    run = family.start(*start_run(family, model, job, *LONG))
    wait_for(lambda: has_chunks(job), what="a chunk")

    pause = family.run("pause", job.path, code=0)

    assert pause.stdout.startswith("Paused. Finished rows are kept")
    assert run.wait() == 3
    said = run.stderr.splitlines()
    assert said[-2].startswith("Paused: ")
    assert "Error" not in run.stderr
    assert_nothing_left(family, job)
    saved = chunk_rows(job)
    assert saved

    family.run(*shlex.split(said[-1])[1:], code=0)

    assert_every_row_once(job, ROWS)
    results = {row["row"]: row for row in result_rows(job)}
    assert {number: results[number] for number in saved} == saved


def test_run_whose_workers_are_drained_ends_with_the_reason(family: Family, model: Path) -> None:
    """There is nobody else who could complete it."""
    prompts = write_prompts(family.folder / "prompts.jsonl", 200)
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    size = ("--shard-rows", 5, "--slots", 2, "--max-tokens", 8)
    line = ("run", prompts, "-o", job.path, "--model", f"tiny={model}", *size)
    run = family.start(*line, env=inject(slow_step_s=0.02))
    wait_for(lambda: job.exists() and job.committed_shards(), what="a part")

    family.run("drain", socket.gethostname(), "--jobs-dir", job.path, code=0)

    assert run.wait() == 3
    assert "its workers were drained before it was complete; `batcher resume" in run.stderr
    assert "Traceback" not in run.stderr
    assert not job.is_complete
    assert len(chunk_rows(job)) == 0, "what they held is committed"


def test_dead_child_is_replaced_and_the_run_goes_on(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    run = family.start(*start_run(family, model, job, *LONG))
    wait_for(lambda: has_chunks(job), what="a chunk")
    (child,) = family.pids(text="workers.child")

    os.kill(child, signal.SIGKILL)

    assert run.wait() == 0, run.stderr
    assert "its process died (signal SIGKILL)" in run.stderr
    assert_every_row_once(job, ROWS)
    assert_nothing_left(family, job)


def test_model_that_cannot_be_loaded_ends_the_run_with_the_reason(family: Family, model: Path) -> None:
    torn = family.folder / "torn.gguf"
    torn.write_bytes(model.read_bytes()[:5000])
    job = JobDir(family.folder / "out")

    run = family.run(*start_run(family, torn, job, rows=3), code=2)

    assert str(torn) in run.stderr
    assert_nothing_left(family, job)


def test_run_that_fails_at_its_input_leaves_no_process(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)

    run = family.run("run", "nowhere.jsonl", "-o", job.path, "--model", f"tiny={model}", "--workers", 2, code=2)

    assert "nowhere.jsonl" in run.stderr
    assert_nothing_left(family, job)


def test_process_that_waits_for_a_killed_run_ends_by_itself(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    run = family.start(*start_run(family, model, job, rows=3))
    wait_for(lambda: family.child_of(run), what="a process for the worker")

    os.kill(run.pid, signal.SIGKILL)

    wait_for(lambda: not family.pids(text="workers.child"), what="it is gone")
    family.kill_all()


def test_worker_does_not_hold_pandas_in_memory(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    run = family.start(*start_run(family, model, job, *LONG))
    wait_for(lambda: has_chunks(job), what="a chunk")

    for pid in (run.pid, *family.pids(text="workers.child")):
        libraries = Path(f"/proc/{pid}/maps").read_text()
        assert "/pyarrow/" in libraries
        assert "/pandas/" not in libraries


def test_run_leaves_nothing_of_its_job_on_a_shared_broker(family: Family, model: Path, redis_url: str) -> None:
    job = JobDir(family.folder / "out")

    family.run(*start_run(family, model, job, "--broker", redis_url, "--shard-rows", 1, rows=5), code=0)

    client = connect(redis_url)
    assert client.keys("batcher:lease:*") == []
    assert client.keys("*") == []
    client.close()
    assert_nothing_left(family, job)


def test_unusable_broker_ends_the_run_before_anything_is_loaded(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")

    broker = {"BATCHER_BROKER": "redis://:geheim@127.0.0.1:1/0"}
    run = family.run(*start_run(family, model, job, rows=3), env=broker, code=3)

    assert "cannot reach it" in run.stderr
    assert "geheim" not in run.stdout + run.stderr
    assert_nothing_left(family, job)
