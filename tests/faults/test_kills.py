"""Workers that are killed, stopped and frozen while others work on: every row comes out once."""

import os
import re
import signal
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest

from batcher.broker.client import connect, queue_key
from batcher.broker.sender import Sender
from batcher.jobdir.attempts import Cause
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import read_file
from batcher.jobdir.scope import scope_of
from tests.faults.injection import inject
from tests.support.family import (
    Command,
    Family,
    assert_every_row_once,
    attempt_ends,
    chunk_rows,
    has_chunks,
    start_worker,
    submit,
    wait_until_ready,
)
from tests.support.job_files import make_job
from tests.support.waiting import wait_for

#: A shard is free soon, but not where a busy disk holds up whoever is to renew its lease.
PACE = ("--slots", 4, "--lease-ttl", 5)
#: A worker with it computes 4 rows of 17 steps in somewhat more than 1.7 s: it is in the middle of whatever it does.
SLOW = inject(slow_step_s=0.1)
SLOW_ROWS_PER_S = 4 / 1.7
#: A minute's work for a slow worker, a second's for another.
ROWS = 120
#: Seconds between two chunks, and those that a loaded machine may take on top to write one.
FLUSH_INTERVAL_S = 2.0
SLACK_S = 3.0


def submit_job(family: Family, redis_url: str, *, rows: int = ROWS) -> JobDir:
    """One shard."""
    return submit(family, redis_url, rows=rows, shard_rows=rows, options=("--max-tokens", 16))


def start_slow_worker_with_chunks(family: Family, redis_url: str, model: Path, job: JobDir) -> Command:
    slow = start_worker(family, redis_url, model, "slow", *PACE, env=SLOW)
    wait_for(lambda: has_chunks(job), what="a chunk of the slow worker")
    return slow


def pids_of(family: Family, worker: Command) -> list[int]:
    """A worker's supervisor and child."""
    child = family.child_of(worker)
    assert child is not None
    return [worker.pid, child]


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, number)


def wait_for_claim(job: JobDir, shard: int, *, worker: str, timeout_s: float = 60.0) -> None:
    """Wait until the newest attempt is that worker's."""

    def is_claimed() -> bool:
        newest = job.attempts_dir(shard) / f"{job.num_attempts(shard):04d}.json"
        return f'"{worker}"' in newest.read_text()

    wait_for(is_claimed, what=f"{worker} claims shard {shard}", timeout_s=timeout_s)


def finished_rows(job: JobDir) -> set[int]:
    """The rows that the first attempt, which must be under way, has finished so far, saved or not."""
    lines = job.journal_path(0, attempt=1).read_text().splitlines()
    return {int(line.removeprefix("- ")) for line in lines if line.startswith("- ")}


def assert_kept(saved: dict[int, dict[str, object]], job: JobDir) -> None:
    """Saved rows are in the results as they were: who computed them, and when, stands in them."""
    results = {row["row"]: row for info in job.manifest.shards for row in part_rows(job, info.shard)}
    assert {number: results[number] for number in saved} == saved


def part_rows(job: JobDir, shard: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = read_file(job.part_path(shard)).to_pylist()
    return rows


@pytest.mark.parametrize("victims", ["child", "supervisor", "both"])
def test_sigkill_costs_at_most_a_flush_interval(family: Family, model: Path, redis_url: str, victims: str) -> None:
    job = submit_job(family, redis_url)
    slow = start_slow_worker_with_chunks(family, redis_url, model, job)
    other = start_worker(family, redis_url, model, "other", *PACE)
    wait_until_ready(other)
    supervisor, child = pids_of(family, slow)

    finished = finished_rows(job)
    saved = chunk_rows(job)
    send(signal.SIGKILL, {"child": [child], "supervisor": [supervisor], "both": [supervisor, child]}[victims])

    wait_for(lambda: job.is_complete, what="the job is complete")

    rows = assert_every_row_once(job, ROWS)
    assert_kept(saved, job)
    recomputed = finished & {row["row"] for row in rows if row["attempts"] > 1}
    assert len(recomputed) <= SLOW_ROWS_PER_S * (FLUSH_INTERVAL_S + SLACK_S)
    assert not job.chunks_dir(0).exists()


def test_shard_of_a_terminated_worker_runs_elsewhere_within_3_s(family: Family, model: Path, redis_url: str) -> None:
    job = submit_job(family, redis_url)
    slow = start_slow_worker_with_chunks(family, redis_url, model, job)
    other = start_worker(family, redis_url, model, "other", *PACE)
    wait_until_ready(other)

    finished = finished_rows(job)
    slow.process.terminate()
    wait_for_claim(job, 0, worker="other", timeout_s=3)

    assert slow.wait() == 0
    wait_for(lambda: job.is_complete, what="the job is complete")
    rows = assert_every_row_once(job, ROWS)
    assert finished <= {row["row"] for row in rows if row["worker"] == "slow"}, "nothing finished is computed again"
    assert {row["worker"] for row in rows} == {"slow", "other"}
    assert attempt_ends(job) == [], "a stop is no failed attempt"


@pytest.mark.parametrize("fault", ["hang_on", "freeze_on"])
def test_worker_with_a_deadlocked_engine_stops_in_its_grace_period(
    family: Family, model: Path, redis_url: str, fault: str
) -> None:
    job = submit_job(family, redis_url)
    reached = family.folder / "reached"
    env = inject(**{fault: "hello 30", "only_once": reached})
    stuck = start_worker(family, redis_url, model, "stuck", *PACE, "--grace", 3, env=env)
    wait_for(reached.exists, what="the engine hangs")
    other = start_worker(family, redis_url, model, "other", *PACE)
    wait_until_ready(other)

    sent_at = time.monotonic()
    stuck.process.terminate()
    if fault == "hang_on":
        wait_for_claim(job, 0, worker="other", timeout_s=3)

    assert stuck.wait() == 0
    assert time.monotonic() - sent_at < 3 + SLACK_S
    assert family.child_of(stuck) is None
    wait_for(lambda: job.is_complete, what="the job is complete")
    rows = assert_every_row_once(job, ROWS)
    # Where no thread can move, nothing is saved.
    assert {row["worker"] for row in rows} == ({"stuck", "other"} if fault == "hang_on" else {"other"})


def test_part_of_a_zombie_is_not_made(family: Family, model: Path, redis_url: str) -> None:
    job = submit_job(family, redis_url)
    zombie = start_slow_worker_with_chunks(family, redis_url, model, job)
    frozen = pids_of(family, zombie)
    send(signal.SIGSTOP, frozen)
    saved = chunk_rows(job)
    start_worker(family, redis_url, model, "other", *PACE)
    wait_for(lambda: job.is_complete, what="the other worker completes the job")
    client = connect(redis_url)
    # Otherwise the lease stops the zombie, which is to notice the part by itself.
    wait_for(lambda: client.keys("batcher:lease:*") == [], what="the other worker gives the shard back")
    part = job.part_path(0).stat()

    send(signal.SIGCONT, frozen)
    wait_for(lambda: re.search(r"shard 0 of \S+: ", zombie.stderr), what="the zombie lets go", timeout_s=15)

    assert "shard 0 of " + job.job_id + ": committed" not in zombie.stderr
    assert (job.part_path(0).stat().st_ino, job.part_path(0).stat().st_mtime_ns) == (part.st_ino, part.st_mtime_ns)
    assert [path.name for path in job.results_dir.iterdir() if path.suffix == ".parquet"] == ["part-00000.parquet"]
    rows = assert_every_row_once(job, ROWS)
    assert {row["row"] for row in rows if row["worker"] == "slow"} == set(saved)
    assert_kept(saved, job)
    wait_for(lambda: not job.chunks_dir(0).exists(), what="the zombie's rows are gone", timeout_s=5)
    assert client.keys("batcher:lease:*") == []
    client.close()
    assert zombie.process.poll() is None


def test_message_lost_in_a_dead_workers_socket_is_sent_again(family: Family, model: Path, redis_url: str) -> None:
    idle = start_worker(family, redis_url, model, "idle", *PACE)
    wait_until_ready(idle)
    pids = pids_of(family, idle)
    job = make_job(family.folder / "jobs" / "lost", (8,))
    freeze_with_message(pids, job, redis_url)
    assert job.num_attempts(0) == 0
    send(signal.SIGKILL, pids)

    start_worker(family, redis_url, model, "other", *PACE)
    wait_for(lambda: job.is_complete, what="the job is complete", timeout_s=30)

    assert {row["worker"] for row in assert_every_row_once(job, 8)} == {"other"}


def freeze_with_message(pids: list[int], job: JobDir, redis_url: str) -> None:
    """Have the server send the message of the only shard to a worker that will never read it."""
    sender = Sender(redis_url)
    client = connect(redis_url)
    queue = queue_key("tiny", scope=scope_of(job.path.parent))
    try:
        # A worker asks for a message once a second; between the answer and the next question, it gets none.
        for _ in range(50):
            send(signal.SIGSTOP, pids)
            sender(job, job.pending_shards())
            if client.llen(queue) == 0:
                assert client.hlen("batcher:unacked") == 0
                return
            client.delete(queue)
            send(signal.SIGCONT, pids)
            wait_for(lambda: client.info("clients")["blocked_clients"], what="the worker waits for a message")
        raise AssertionError("the worker never waited for a message")
    finally:
        client.close()
        sender.close()


def test_rows_that_were_in_flight_when_others_killed_their_worker_are_not_blamed(
    family: Family, model: Path, redis_url: str
) -> None:
    job = submit_job(family, redis_url)
    worker = start_worker(family, redis_url, model, "slow", *PACE, env=SLOW)
    for attempt in (1, 2):
        wait_for(partial(has_chunks_of, job, attempt=attempt), what=f"attempt {attempt} saves rows")
        child = family.child_of(worker)
        assert child is not None
        os.kill(child, signal.SIGKILL)
        wait_for(partial(has_ends, job, attempt), what=f"the end of attempt {attempt} is written")
    worker.process.terminate()
    start_worker(family, redis_url, model, "other", *PACE)

    wait_for(lambda: job.is_complete, what="the job is complete")

    assert_every_row_once(job, ROWS)
    assert [(end.cause, end.detail) for end in attempt_ends(job)] == [(Cause.KILLED, "signal SIGKILL")] * 2


def has_chunks_of(job: JobDir, *, attempt: int) -> bool:
    return any(chunk.attempt == attempt for chunk in job.chunks(0))


def has_ends(job: JobDir, number: int) -> bool:
    return len(attempt_ends(job)) == number
