"""Rows that kill the process which computes them: every other row comes out, and these say what happened."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from tests.faults.injection import inject
from tests.support.family import Command, Family, assert_every_row_once, start_worker, wait_until_ready
from tests.support.job_files import result_rows
from tests.support.waiting import wait_for

POISON = "POISON"
SLOTS = 4
#: Bytes. What the child of a worker of the tiny model takes, several times over.
ENOUGH_MEMORY = 900 * 2**20
#: Bytes. Its threads each take some for themselves, so there are more on a machine with more cores.
ENOUGH_ADDRESSES = 8 * 2**30


def write_rows(path: Path, number: int, *, poison: int | set[int]) -> Path:
    """Short prompts; those of the rows `poison` are marked."""
    marked = poison if isinstance(poison, set) else {poison}
    prompts = (f"{POISON} {row}" if row in marked else f"hello {row}" for row in range(number))
    path.write_text("".join(f"{json.dumps({'prompt': prompt})}\n" for prompt in prompts))
    return path


def run(
    family: Family,
    model: Path,
    prompts: Path,
    *options: object,
    env: dict[str, str] | None = None,
    prefix: Sequence[object] = (),
) -> tuple[Command, JobDir]:
    """Run a file of prompts to its end, with short completions."""
    job = JobDir(family.folder / "out")
    if job.path not in family.jobs:
        family.jobs.append(job.path)
    command = family.run(
        *("run", prompts, "-o", job.path, "--model", f"tiny={model}", "--quiet"),
        *("--threads", 1, "--slots", SLOTS, "--lease-ttl", 3),
        *("--max-tokens", 4, *options),
        env=env,
        prefix=prefix,
    )
    return command, job


def num_crashes(command: Command) -> int:
    return command.stderr.count("its process died")


def test_one_row_in_2000_that_segfaults_costs_itself_and_a_few_restarts(family: Family, model: Path) -> None:
    prompts = write_rows(family.folder / "prompts.jsonl", 2000, poison=1234)

    command, job = run(family, model, prompts, "--shard-rows", 500, env=inject(segfault_on=POISON))

    assert command.process.returncode == 1, command.stderr
    assert "2,000 in = 1,999 ok + 1 error" in command.stdout
    assert "1 row that crashed its worker (worker_crashed)" in command.stdout
    rows = assert_every_row_once(job, 2000, errors={1234: "worker_crashed"})
    assert "SIGSEGV" in rows[1234]["error_message"]
    assert 2 <= num_crashes(command) <= SLOTS + 2
    shown = family.run("results", job.path, "--errors", "--json")
    assert [json.loads(line)["row"] for line in shown.stdout.splitlines()] == [1234]
    assert "worker_crashed" in shown.stdout
    assert family.pids() == []


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        ("segfault_on", "worker_crashed", "SIGSEGV"),
        ("abort_on", "worker_crashed", "SIGABRT"),
        ("engine_error_on", "engine_error", "llama_decode gave -3"),
        ("segfault_tokenizing", "worker_crashed", "SIGSEGV"),
    ],
)
def test_row_that_ends_its_worker_alone_is_set_aside_with_the_reason(
    family: Family, model: Path, fault: str, code: str, reason: str
) -> None:
    prompts = write_rows(family.folder / "prompts.jsonl", 24, poison=7)

    command, job = run(family, model, prompts, env=inject(**{fault: POISON}))

    assert command.process.returncode == 1, command.stderr
    rows = assert_every_row_once(job, 24, errors={7: code})
    assert reason in rows[7]["error_message"]
    assert num_crashes(command) <= SLOTS + 2


def test_two_poison_rows_and_one_choice_of_a_third_in_a_shard_take_nobody_along(family: Family, model: Path) -> None:
    prompts = write_rows(family.folder / "prompts.jsonl", 24, poison={5, 6})
    with prompts.open("a") as file:
        file.write(json.dumps({"prompt": ["hello", f"{POISON} too", "world"]}) + "\n")
        file.write(json.dumps({"prompt": ["hello", "world"]}) + "\n")

    command, job = run(family, model, prompts, env=inject(segfault_on=POISON))

    assert command.process.returncode == 1, command.stderr
    assert "26 in = 23 ok + 3 error" in command.stdout
    found = [(row["row"], row["index"], row["error_code"]) for row in result_rows(job)]
    bad = {5, 6, 24}
    assert found == [
        *((row, 0, "worker_crashed" if row in bad else None) for row in range(25)),
        *((25, index, None) for index in range(2)),
    ]
    # Each bad row ends a worker in company, at most, and once alone.
    assert num_crashes(command) <= 6


def test_poison_row_of_one_model_takes_no_row_of_another_along(family: Family, model: Path) -> None:
    # Both models are at their last rows at the crash, so that their suspects take turns afterwards.
    prompts = family.folder / "prompts.jsonl"
    lines = [
        {"prompt": f"{POISON if row == 19 else 'hello'} {row}", "model": "a" if row < 20 else "b"} for row in range(40)
    ]
    prompts.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    env = inject(segfault_on=POISON, slow_step_s=0.02)

    command, job = run(family, model, prompts, "--model", f"a={model}", "--model", f"b={model}", env=env)

    assert command.process.returncode == 1, command.stderr
    assert_every_row_once(job, 40, errors={19: "worker_crashed"})
    assert num_crashes(command) <= SLOTS + 2


def test_row_that_takes_all_memory_is_set_aside_for_the_kernel_kills_its_worker(
    family: Family, model: Path, make_memory_group: Callable[[int], Path]
) -> None:
    prompts = write_rows(family.folder / "prompts.jsonl", 24, poison=7)
    # The child alone is in the group: where the kernel finds the group full before the memory of the one that it has
    # just killed is free, it kills another.
    env = inject(eat_memory_on=POISON, memory_group=make_memory_group(ENOUGH_MEMORY))

    command, job = run(family, model, prompts, env=env)

    assert command.process.returncode == 1, command.stderr
    rows = assert_every_row_once(job, 24, errors={7: "worker_crashed"})
    assert "memory" in rows[7]["error_message"]
    # One in company and two alone: somebody else may have taken the memory.
    assert num_crashes(command) == 3


def test_row_that_takes_all_addresses_is_set_aside(family: Family, model: Path) -> None:
    prompts = write_rows(family.folder / "prompts.jsonl", 24, poison=7)
    limit = ("sh", "-c", f'ulimit -v {ENOUGH_ADDRESSES // 1024} && exec "$@"', "sh")

    command, job = run(family, model, prompts, env=inject(eat_addresses_on=POISON), prefix=limit)

    assert command.process.returncode == 1, command.stderr
    # No crash of the process: the engine says what it could not get.
    rows = assert_every_row_once(job, 24, errors={7: "engine_error"})
    assert "MemoryError" in rows[7]["error_message"]
    assert num_crashes(command) <= SLOTS + 2


def test_row_that_ends_its_worker_only_in_company_comes_out(family: Family, model: Path) -> None:
    prompts = write_rows(family.folder / "prompts.jsonl", 24, poison=7)

    command, job = run(family, model, prompts, env=inject(segfault_on=POISON, only_in_company=1))

    assert command.process.returncode == 0, command.stderr
    assert_every_row_once(job, 24)
    assert num_crashes(command) == 1


def test_crash_that_comes_once_costs_no_row(family: Family, model: Path) -> None:
    prompts = write_rows(family.folder / "prompts.jsonl", 24, poison=7)

    command, job = run(family, model, prompts, env=inject(segfault_on=POISON, only_once=family.folder / "crashed"))

    assert command.process.returncode == 0, command.stderr
    assert_every_row_once(job, 24)
    assert num_crashes(command) == 1


def test_workers_that_share_a_broker_know_of_each_others_crashes(family: Family, model: Path, redis_url: str) -> None:
    workers = [
        start_worker(family, redis_url, model, name, "--slots", SLOTS, "--lease-ttl", 3, env=inject(segfault_on=POISON))
        for name in ("w1", "w2")
    ]
    wait_until_ready(*workers)
    prompts = write_rows(family.folder / "prompts.jsonl", 40, poison={7, 31})
    submitted = family.run(
        *("submit", prompts, "--broker", redis_url, "--jobs-dir", family.folder / "jobs", "--model", "tiny"),
        *("--max-tokens", 4, "--shard-rows", 20),
    )
    job = JobDir(family.folder / "jobs" / submitted.stdout.splitlines()[0])

    wait_for(lambda: job.is_complete, what="the job is complete")

    assert_every_row_once(job, 40, errors={7: "worker_crashed", 31: "worker_crashed"})
    assert sum(map(num_crashes, workers)) <= 2 * (SLOTS + 2)


def test_row_that_was_set_aside_gets_a_fair_chance_by_retry(family: Family, model: Path) -> None:
    prompts = write_rows(family.folder / "prompts.jsonl", 24, poison=7)
    command, job = run(family, model, prompts, env=inject(segfault_on=POISON))
    assert command.process.returncode == 1, command.stderr

    family.run("retry", job.path, code=0)
    command, _ = run(family, model, prompts)

    assert command.process.returncode == 0, command.stderr
    assert_every_row_once(job, 24)
    assert num_crashes(command) == 0
