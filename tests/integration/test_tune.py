"""`batcher tune` really measures, and what it found is used: by `run`, which says so, and by `worker`."""

import json
import re
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from tests.support.family import Command, Family, assert_every_row_once, start_worker, wait_until_ready, write_prompts
from tests.support.waiting import wait_for
from workers.engines import profile


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "profiles"
    monkeypatch.setenv("BATCHER_PROFILES_DIR", str(folder))
    return folder


def run_job(family: Family, model: Path, name: str, *options: object) -> Command:
    prompts = write_prompts(family.folder / "prompts.jsonl", 40)
    job = JobDir(family.folder / name)
    family.jobs.append(job.path)
    done = family.run("run", prompts, "-o", job.path, "--model", f"tiny={model}", "--max-tokens", 4, *options, code=0)
    assert_every_row_once(job, 40)
    return done


def engine_line(command: Command) -> str:
    (line,) = [line for line in command.stderr.splitlines() if line.startswith("Engine ")]
    return line


def test_run_uses_what_tune_measured_and_says_so(family: Family, model: Path, profiles: Path) -> None:
    rows = family.folder / "rows.jsonl"
    rows.write_text('{"question": "hello", "max_tokens": 3}\n{"question": 5}\n{"question": "who?"}\n')

    tuned = family.run(
        *("tune", "--model", f"tiny={model}", "--prompts", rows, "--prompt-column", "question"),
        *("--max-tokens", 8, "--seconds", 0.05),
        code=0,
    )

    lines = tuned.stdout.splitlines()
    assert lines[0] == f"Tuning tiny with 2 of {rows}, 0.05 s each."
    assert re.fullmatch(r"default: 32 slots, \d+ threads?, batch 2048/512 +[\d,]+ +1\.00", lines[2])
    assert any(line.startswith("64 slots ") for line in lines)
    assert any(line.startswith("batch 512/512 ") for line in lines)
    assert family.pids(text="workers.tuning.trial") == []
    (path,) = profiles.iterdir()
    assert f"Saved      {path}" in lines

    # What is fastest is chance with so short a measurement; what the profile says must be what a run does.
    found = json.loads(path.read_text())
    found["values"] |= {"num_slots": 7, "num_threads": 1, "max_batch_tokens": 96, "max_micro_batch_tokens": 48}
    path.write_text(json.dumps(found))
    date = found["measured_at"][:8]
    line = engine_line(run_job(family, model, "tuned"))
    assert line.startswith(f"Engine     tiny: 7 slots (measured by batcher tune on {date}")
    assert "1 thread, batch 96, micro-batch 48 (measured by batcher tune on" in line
    line = engine_line(run_job(family, model, "explicit", "--slots", 3, "--batch-tokens", 24))
    assert "3 slots (--slots)" in line
    assert "batch 24 (--batch-tokens), micro-batch 24 (no more than the batch)" in line
    assert "1 thread (measured by" in line

    shown = family.run("tune", "--model", model, "--show")
    assert str(path) in shown.stdout
    assert "Settings   7 slots, 1 thread, batch 96/48" in shown.stdout
    forgotten = family.run("tune", "--model", model, "--forget")
    assert forgotten.stdout == f"Deleted {path}\n"
    assert list(profiles.iterdir()) == []
    assert "There is no profile" in family.run("tune", "--model", model, "--show").stderr
    assert "32 slots (the default for CPUs)" in engine_line(run_job(family, model, "default"))


def test_damaged_profile_is_named_once_and_the_run_goes_on(family: Family, model: Path, profiles: Path) -> None:
    path = profile.profile_path(profile.model_key(model), profile.machine_key(uses_gpu=False))
    profiles.mkdir()
    path.write_text("{")

    done = run_job(family, model, "out")

    assert done.stderr.count(str(path)) == 1
    assert "the profile is damaged" in done.stderr
    assert "32 slots (the default for CPUs)" in engine_line(done)
    shown = family.run("tune", "--model", model, "--show", code=2)
    assert "`batcher tune --forget`" in shown.stderr


def test_quiet_run_says_nothing_of_its_engine_and_two_workers_say_it_once(family: Family, model: Path) -> None:
    assert "Engine" not in run_job(family, model, "quiet", "--quiet").stderr

    line = engine_line(run_job(family, model, "two", "--workers", 2, "--shard-rows", 5, "--slots", 2))

    assert "2 slots (--slots)" in line
    assert "shared by 2 workers)" in line


def test_worker_logs_how_its_engine_is_set_up(family: Family, model: Path, redis_url: str) -> None:
    worker = start_worker(family, redis_url, model, "w1", "--micro-batch-tokens", 64)

    wait_until_ready(worker)

    wait_for(lambda: "tiny: 32 slots (the default for CPUs)" in worker.stderr, what="the line about the engine")
    assert "1 thread (--threads), batch 2048 (the default), micro-batch 64 (--micro-batch-tokens)" in worker.stderr


def test_tune_refuses_what_it_can_not_use(family: Family, model: Path, profiles: Path) -> None:
    bad = family.folder / "bad.jsonl"
    bad.write_text('{"prompt": 5}\n')

    refused = family.run("tune", "--model", model, "--prompts", bad)
    both = family.run("tune", "--model", model, "--show", "--forget")

    assert refused.process.returncode == both.process.returncode == 2
    assert "no row is good for tiny" in refused.stderr
    assert "give one of them" in both.stderr
    assert not profiles.exists()
