"""The progress display, and how numbers are written."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from batcher.api.progress import status_json
from batcher.cli.texts import print_summary, size_text, status_text
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import Health, utc_now
from batcher.jobdir.pulse import WorkerState
from batcher.manage.finish import finalize
from batcher.manage.status import JobState, ShardFailure, WorkerStatus, read_status
from batcher.types import ErrorCode
from tests.support.job_files import complete_job, failed, make_job, ok, write_part


def test_summary_says_what_came_out_and_how_to_read_it(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = complete_job(workplace / "my job")
    summary = finalize(job)
    assert summary is not None
    print_summary(job, summary)

    lines = capsys.readouterr().out.splitlines()
    found = {line[:11].strip(): line[11:] for line in lines[:-1]}
    assert found["Rows"] == "6 in = 4 ok + 2 error"
    assert found["Errors"] == "context_length_exceeded 1, timeout 1"
    assert found["Choices"] == "5"
    assert found["Tokens"] == "25 prompt (4 from cache) + 15 generated"
    assert found["Finish"] == "length 5"
    assert found["Results"] == "my job/results/*.parquet (3 parts)"
    assert found["Read them"] == "batcher results 'my job' --limit 5"
    python, *arguments = shlex.split(lines[-1])
    assert python == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert "text 0.0" in done.stdout


def test_summary_says_where_to_see_the_rows_that_were_set_aside(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = make_job(workplace / "my job", (2,))
    write_part(job, 0, [failed(0, ErrorCode.WORKER_CRASHED), ok(1)])
    summary = finalize(job)
    assert summary is not None
    print_summary(job, summary)

    out = capsys.readouterr().out
    assert "Set aside  1 row that crashed its worker (worker_crashed); see: batcher results 'my job' --errors\n" in out


# -- status -------------------------------------------------------------------------------------------------------

WORKER = WorkerStatus(
    name="w1",
    host="host",
    pid=17,
    health=Health.ALIVE,
    state=WorkerState.WORKING,
    age_s=1.0,
    stalled_s=0.0,
    shards=(3,),
    is_busy_elsewhere=False,
    num_crashes=0,
    last_crash="",
)


def running_job(path: Path) -> JobDir:
    job = make_job(path, (2, 1))
    job.claim_attempt(0, worker="w1")
    return job


@pytest.mark.parametrize(
    ("worker", "text"),
    [
        (WORKER, "alive, working on shard 3"),
        (replace(WORKER, shards=(3, 4)), "alive, working on shards 3, 4"),
        (replace(WORKER, shards=tuple(range(10))), "alive, working on shards 0, 1, 2, 3, 4, 5, 6, 7, ..."),
        (replace(WORKER, shards=(), is_busy_elsewhere=True), "alive, working for other jobs"),
        (replace(WORKER, state=WorkerState.IDLE, shards=()), "alive, idle"),
        (replace(WORKER, state=WorkerState.STOPPING), "alive, stopping, shard 3"),
        (
            replace(WORKER, state=WorkerState.RESTARTING, shards=(), num_crashes=1, last_crash="signal SIGABRT"),
            "alive, restarting; crashed once (signal SIGABRT)",
        ),
        (
            replace(WORKER, health=Health.STALLED, state=WorkerState.STALLED, stalled_s=44.7, shards=(7,)),
            "stalled 45 s, shard 7",
        ),
        (replace(WORKER, health=Health.GONE, age_s=80.2, shards=()), "gone for 1 min 20 s"),
        (
            replace(WORKER, health=Health.GONE, age_s=80.2, num_crashes=2, last_crash="signal SIGSEGV"),
            "gone for 1 min 20 s, held shard 3; crashed 2 times (signal SIGSEGV)",
        ),
    ],
)
def test_status_says_how_a_worker_is(tmp_path: Path, worker: WorkerStatus, text: str) -> None:
    job = running_job(tmp_path / "job")

    shown = status_text(job, replace(read_status(job), workers=(worker,)))

    assert f"\nWorkers   w1  {text}\n" in shown


def test_two_workers_of_one_name_are_told_apart_by_place(tmp_path: Path) -> None:
    job = running_job(tmp_path / "job")
    workers = (WORKER, replace(WORKER, host="elsewhere", pid=4), replace(WORKER, name="w2"))

    shown = status_text(job, replace(read_status(job), workers=workers))

    assert (
        """
Workers   w1 (on host, pid 17)      alive, working on shard 3
          w1 (on elsewhere, pid 4)  alive, working on shard 3
          w2                        alive, working on shard 3
"""
        in shown
    )


def test_status_lines_up_several_workers_attempts_and_failures(workplace: Path) -> None:
    job = running_job(workplace / "my job")
    failures = tuple(ShardFailure(n, 2, "w1", f"failure {n}", utc_now(), True) for n in range(5))
    status = replace(
        read_status(job),
        num_attempts=12,
        num_crashes=2,
        num_quarantined=1234,
        failures=failures,
        workers=(WORKER, replace(WORKER, name="worker-2")),
        unserved_models={},
    )

    assert """
Set aside  1,234 rows that crashed their workers (worker_crashed); see: batcher results 'my job' --errors
""" in status_text(job, status)
    assert """
Shards     0 of 2 committed, 1 claimed, 1 waiting
Attempts   12, of which 2 crashed
Failures   shard 0: failure 0 (attempt 2 by w1)
           shard 1: failure 1 (attempt 2 by w1)
           shard 2: failure 2 (attempt 2 by w1)
           ... and 2 more shards; --json shows them
Workers    w1        alive, working on shard 3
           worker-2  alive, working on shard 3
Created """ in status_text(job, status)


def test_status_of_a_job_that_nobody_works_on_says_how_it_goes_on(workplace: Path) -> None:
    job = running_job(workplace / "my job")
    line = "batcher resume 'my job' --model tiny=PATH"
    hint = f"none alive for its models; start a `batcher worker`, or go on here with: {line}"
    status = read_status(job)
    gone = replace(WORKER, health=Health.GONE)

    assert f"\nWorkers   {hint}\n" in status_text(job, status)
    assert f"\n          {hint}\n" in status_text(job, replace(status, workers=(gone,)))
    assert hint not in status_text(job, replace(status, workers=(gone, WORKER)))
    assert "Workers" not in status_text(job, replace(status, state=JobState.CANCELLED))
    assert "Workers" not in status_text(job, replace(status, num_committed=2))


def test_status_names_the_models_that_no_worker_has_and_the_line_that_starts_one(workplace: Path) -> None:
    job = running_job(workplace / "jobs" / "job")
    status = replace(
        read_status(job), workers=(WORKER,), unserved_models={"gemma3:27b": 2, "the model": 1}, served_models=("tiny",)
    )

    assert """
Unserved  2 rows wait for the model gemma3:27b, which no worker has that is alive (they have tiny); start one with:
            batcher worker --model gemma3:27b=PATH --broker URL --jobs-dir jobs
          1 row waits for the model the model, which no worker has that is alive (they have tiny); start one with:
            batcher worker --model 'the model=PATH' --broker URL --jobs-dir jobs
Created """ in status_text(job, status)
    waiting = replace(status, workers=(), served_models=(), started_at=None)
    many = replace(waiting, unserved_models={f"m{n}": 1 for n in range(10)})
    assert "1 row waits for the model m0, and no worker is alive; start one with:" in status_text(job, many)
    assert "... and 7 more models; --json shows them" in status_text(job, many)
    evil = replace(status, served_models=("\x1b[2Jred",))
    assert "\x1b" not in status_text(job, evil)


def test_job_that_was_worked_on_and_has_no_worker_any_more_says_so(workplace: Path) -> None:
    job = running_job(workplace / "job")
    fresh, at_rest = make_job(workplace / "fresh"), "Job       job: running, but no worker shows a sign of life\n"
    status = read_status(job)

    assert at_rest in status_text(job, status)
    assert """
Unserved  3 rows wait for the model tiny, and no worker is alive; if the job was submitted to a broker, start one with:
            batcher worker --model tiny=PATH --broker URL --jobs-dir .
""" in status_text(job, status)
    assert "Job       job: running\n" in status_text(job, replace(status, unserved_models={}, served_models=("tiny",)))
    assert "Job       fresh: waiting\n" in status_text(fresh, read_status(fresh))
    assert "no worker is alive; start one with:" in status_text(fresh, read_status(fresh))


def test_job_whose_only_worker_drains_is_running_and_its_other_rows_wait_for_another(workplace: Path) -> None:
    job = running_job(workplace / "job")
    draining = replace(WORKER, state=WorkerState.DRAINING, shards=(0,))
    status = replace(read_status(job), workers=(draining,), unserved_models={"tiny": 1})

    shown = status_text(job, status)

    assert "Job       job: running\n" in shown
    assert "Workers   w1  alive, draining, shard 0\n" in shown
    assert "1 row waits for the model tiny, and nobody takes more shards (w1 is about to end); start one with:" in shown
    two = replace(status, workers=(draining, replace(draining, name="w2")))
    assert "(w1, w2 are about to end)" in status_text(job, two)


@pytest.mark.parametrize("names", [("BATCHER_BROKER",), ("BATCHER_BROKER_FILE",)])
def test_line_that_goes_on_here_leaves_out_the_broker_of_the_environment(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    job = running_job(workplace / "job")
    for name in names:
        monkeypatch.setenv(name, "redis://127.0.0.1:1/0")

    without = " ".join(f"-u {name}" for name in names)
    line = f"go on here with: env {without} batcher resume job --model tiny=PATH\n"
    assert line in status_text(job, read_status(job))


def test_status_of_a_fleet_names_those_that_are_not_well_and_counts_the_others(tmp_path: Path) -> None:
    job = running_job(tmp_path / "job")
    fleet = [replace(WORKER, name=f"w{n}", shards=()) for n in range(100)]
    fleet[70] = replace(WORKER, name="w70")
    fleet[80] = replace(WORKER, name="w80", num_crashes=1)
    fleet[90] = replace(WORKER, name="w90", health=Health.GONE)

    shown = status_text(job, replace(read_status(job), workers=tuple(fleet)))

    lines = shown[shown.index("Workers") :].splitlines()
    assert [line[10:].split()[0] for line in lines[:5]] == ["w80", "w90", "w70", "w0", "w1"]
    assert lines[20] == "          ... and 80 more; --json shows them"


def test_status_of_a_quiet_job_does_not_mention_trouble(tmp_path: Path) -> None:
    job = complete_job(tmp_path / "job")
    finalize(job)

    shown = status_text(job, read_status(job))

    assert "\nAttempts  3\n" in shown
    for label in ("Workers", "Failures", "Set aside", "crashed"):
        assert label not in shown


def test_what_workers_say_cannot_drive_the_terminal(tmp_path: Path) -> None:
    job = running_job(tmp_path / "job")
    evil = "\x1b[2Jred\r\x07\n\u202e\x9bafter" + "long " * 1000
    worker = replace(WORKER, name=evil, num_crashes=1, last_crash=evil)
    failure = ShardFailure(1, 2, evil, evil, utc_now(), False)
    status = replace(read_status(job), workers=(worker,), failures=(failure,))

    shown = status_text(job, status)

    assert all(char.isprintable() or char == "\n" for char in shown)
    assert max(map(len, shown.splitlines())) < 1000
    assert status_json(status).isascii()
    assert json.loads(status_json(status))["workers"][0]["last_crash"] == evil


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (98_400_000, "98.4 MB"), (4 * 10**12, "4.0 TB")]
)
def test_sizes_read_as_one_says_them(size: int, text: str) -> None:
    assert size_text(size) == text
