"""Engines that make no step any more, and rows that take too long."""

import json
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from tests.faults.injection import inject
from tests.support.family import Command, Family, assert_every_row_once

POISON = "POISON"
SLOTS = 4


def run(
    family: Family, model: Path, prompts: list[dict[str, object]], *options: object, env: dict[str, str]
) -> tuple[Command, JobDir]:
    """Run these rows to their end."""
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    path = family.folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in prompts))
    command = family.run(
        *("run", path, "-o", job.path, "--model", f"tiny={model}", "--quiet"),
        *("--threads", 1, "--slots", SLOTS, "--lease-ttl", 3),
        *("--max-tokens", 4, *options),
        env=env,
    )
    return command, job


@pytest.mark.parametrize("fault", ["hang_on", "freeze_on"])
def test_watchdog_ends_a_worker_without_progress_and_sets_its_row_aside(
    family: Family, model: Path, fault: str
) -> None:
    prompts: list[dict[str, object]] = [{"prompt": f"{POISON if row == 7 else 'hello'} {row}"} for row in range(24)]

    command, job = run(family, model, prompts, "--stall-timeout", 3, env=inject(**{fault: POISON}))

    assert command.process.returncode == 1, command.stderr
    rows = assert_every_row_once(job, 24, errors={7: "worker_crashed"})
    assert "no progress" in rows[7]["error_message"]
    assert "3 s" in rows[7]["error_message"]
    assert 2 <= command.stderr.count("no progress") <= SLOTS + 2
    assert family.pids() == []


def test_slow_steps_and_idle_times_are_no_stall(family: Family, model: Path) -> None:
    prompts: list[dict[str, object]] = [{"prompt": f"hello {row}"} for row in range(4)]

    command, job = run(family, model, prompts, "--stall-timeout", 3, env=inject(slow_step_s=1.2))

    assert command.process.returncode == 0, command.stderr
    assert_every_row_once(job, 4)
    assert command.stderr.count("process died") == 0


def test_row_that_takes_longer_than_the_row_timeout_is_an_error_row_and_waiting_does_not_count(
    family: Family, model: Path
) -> None:
    # At 0.05 s a step: 400 tokens take 20 s, 4 a quarter of one; all together they wait for slots longer than 2 s.
    prompts: list[dict[str, object]] = [
        {"prompt": f"hello {row}", "max_tokens": 400 if row in {1, 2} else 4} for row in range(40)
    ]

    command, job = run(family, model, prompts, "--row-timeout", 2, env=inject(slow_step_s=0.05))

    assert command.process.returncode == 1, command.stderr
    assert "40 in = 38 ok + 2 error" in command.stdout
    rows = assert_every_row_once(job, 40, errors={1: "timeout", 2: "timeout"})
    assert "2 s" in rows[1]["error_message"]
    assert "process died" not in command.stderr
