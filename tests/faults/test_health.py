"""What `batcher status` says of real workers while they work, stall, crash and vanish."""

import json
import os
import re
import signal
from pathlib import Path

from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import STALLED_AFTER_S, Health, workers_dir
from batcher.manage.status import WorkerStatus, read_status
from tests.faults.injection import inject
from tests.support.family import Family, assert_every_row_once, start_worker, submit
from tests.support.waiting import wait_for

PACE = ("--slots", 4, "--lease-ttl", 3)
SLOW = inject(slow_step_s=0.05)
POISON = "POISON"


def worker_of(job: JobDir, name: str) -> WorkerStatus | None:
    return next((worker for worker in read_status(job).workers if worker.name == name), None)


def wait_for_health(job: JobDir, name: str, health: Health) -> WorkerStatus:
    """Wait until a worker that holds a shard of `job` is this well."""

    def look() -> WorkerStatus | None:
        worker = worker_of(job, name)
        return worker if worker is not None and worker.health is health and worker.shards else None

    found = wait_for(look, what=f"{name} is {health.value}")
    assert isinstance(found, WorkerStatus)
    return found


def worker_line(family: Family, job: JobDir, name: str) -> str:
    """What `batcher status` says of a worker, but for its slots and rate."""
    status = family.run("status", job.path, code=0)
    found = re.search(rf"^(?:Workers)? +{name}  +(.*)$", status.stdout, re.MULTILINE)
    assert found is not None, status.stdout
    return re.sub(r"; \d+ of \d+ slots.*", "", found[1])


def test_worker_is_alive_stalls_recovers_and_is_gone(family: Family, model: Path, redis_url: str) -> None:
    job = submit(family, redis_url, rows=8, shard_rows=8)
    worker = start_worker(family, redis_url, model, "w1", *PACE, env=SLOW)
    wait_for_health(job, "w1", Health.ALIVE)
    assert worker_line(family, job, "w1") == "alive, working on shard 0"

    child = family.child_of(worker)
    assert child is not None
    os.kill(child, signal.SIGSTOP)
    assert wait_for_health(job, "w1", Health.STALLED).stalled_s >= STALLED_AFTER_S
    assert re.fullmatch(r"stalled \d+ s, shard 0", worker_line(family, job, "w1"))

    os.kill(child, signal.SIGCONT)
    wait_for_health(job, "w1", Health.ALIVE)

    os.kill(worker.pid, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    wait_for_health(job, "w1", Health.GONE)
    assert re.fullmatch(r"gone for \d+\.\d s, held shard 0", worker_line(family, job, "w1"))
    assert "none alive for its models" in family.run("status", job.path).stdout

    start_worker(family, redis_url, model, "w2", *PACE)
    wait_for(lambda: job.is_complete, what="the job is complete")
    assert_every_row_once(job, 8)
    assert read_status(job).workers == ()


def test_worker_that_ends_in_good_order_leaves_no_sign(family: Family, model: Path, redis_url: str) -> None:
    job = submit(family, redis_url, rows=8, shard_rows=8)
    worker = start_worker(family, redis_url, model, "w1", *PACE, env=SLOW)
    wait_for_health(job, "w1", Health.ALIVE)

    worker.process.terminate()
    assert worker.wait() == 0

    assert worker_of(job, "w1") is None
    assert list(workers_dir(job.path.parent).iterdir()) == []


def test_crashes_and_rows_set_aside_are_counted_and_shown(family: Family, model: Path, redis_url: str) -> None:
    start_worker(family, redis_url, model, "w1", *PACE, env={**SLOW, **inject(segfault_on=POISON)})
    prompts = family.folder / "poison.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{POISON if n == 5 else 'hello'} {n}"}) + "\n" for n in range(8)))
    submitted = family.run(
        *("submit", prompts, "--broker", redis_url, "--jobs-dir", family.folder / "jobs", "--model", "tiny"),
        *("--max-tokens", 4),
    )
    job = JobDir(family.folder / "jobs" / submitted.stdout.splitlines()[0])
    wait_for(lambda: job.is_complete, what="the job is complete")
    assert_every_row_once(job, 8, errors={5: "worker_crashed"})

    status = read_status(job)
    assert status.num_quarantined == 1
    assert 2 <= status.num_crashes < status.num_attempts
    shown = family.run("status", job.path).stdout
    assert f"\nAttempts   {status.num_attempts}, of which {status.num_crashes} crashed\n" in shown
    assert "Set aside  1 row that crashed its worker (worker_crashed); see: batcher results" in shown
    errors = " ".join(family.run("results", job.path, "--errors").stdout.split())
    assert f"[5] row-5 (error worker_crashed, {status.num_attempts} attempts) {POISON} 5 ->" in errors
    assert "signal SIGSEGV" in errors

    # The worker lives on with what happened to it.
    longer = submit(family, redis_url, rows=8, shard_rows=8)
    assert wait_for_health(longer, "w1", Health.ALIVE).num_crashes == status.num_crashes
    assert worker_line(family, longer, "w1") == (
        f"alive, working on shard 0; crashed {status.num_crashes} times (signal SIGSEGV)"
    )
    found = json.loads(family.run("status", longer.path, "--json").stdout)
    assert [(worker["name"], worker["health"], worker["shards"]) for worker in found["workers"]] == [
        ("w1", "alive", [0])
    ]


def test_workers_of_a_run_are_shown_while_it_works(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    prompts = family.folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"hello {n}"}) + "\n" for n in range(8)))
    run = family.start(
        *("run", prompts, "-o", job.path, "--model", f"tiny={model}", "--max-tokens", 480),
        *("--threads", 1, "--workers", 2, "--shard-rows", 2, *PACE),
        env=SLOW,
    )

    def working() -> list[WorkerStatus]:
        workers = read_status(job).workers if job.exists() else ()
        return [worker for worker in workers if worker.health is Health.ALIVE and worker.shards]

    # Each takes two at a time.
    wait_for(lambda: sum(len(worker.shards) for worker in working()) == 4, what="both workers have their shards")
    assert sorted(shard for worker in working() for shard in worker.shards) == [0, 1, 2, 3]
    assert len(working()) == 2
    run.process.terminate()
    assert run.wait() == 130
    assert read_status(job).workers == ()


def test_shard_that_cannot_be_read_is_a_failure_that_status_shows(family: Family, model: Path, redis_url: str) -> None:
    job = submit(family, redis_url, rows=8, shard_rows=4)
    job.shard_path(1).write_bytes(b"damaged")
    start_worker(family, redis_url, model, "w1", *PACE)

    wait_for(lambda: read_status(job).failures, what="a failure of shard 1")

    (failure,) = read_status(job).failures
    assert (failure.shard, failure.worker) == (1, "w1")
    shown = family.run("status", job.path).stdout
    assert re.search(r"^Failures +shard 1: .*00001\.parquet.* \(attempt \d+ by w1\)$", shown, re.MULTILINE), shown
