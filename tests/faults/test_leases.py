"""Shards of workers that vanish, at the default pace: soon elsewhere, however many others wait in the queue."""

import os
import signal
import time
from pathlib import Path

import pytest

from batcher.broker.client import queue_key
from batcher.jobdir.folder import JobDir
from batcher.jobdir.scope import scope_of
from tests.faults.injection import inject
from tests.support.family import Command, Family, assert_every_row_once, start_worker, submit, wait_until_ready
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for

#: Seconds, by default, in which the shard of a worker that was killed runs elsewhere.
BOUND_S = 35.0
#: Of a worker whose supervisor lives to tell. An expired lease would take half a minute.
TOLD_BOUND_S = 12.0
SHARD_ROWS = 4


def start_pair(
    family: Family, server: RedisServer, model: Path, *, rows: int, slow_step_s: float
) -> tuple[JobDir, Command, Command]:
    """A job that outlasts the test, and two workers of which both have shards."""
    env = inject(slow_step_s=slow_step_s)
    first, second = (start_worker(family, server.url, model, name, "--slots", 4, env=env) for name in ("w1", "w2"))
    wait_until_ready(first, second)
    job = submit(family, server.url, rows=rows, shard_rows=SHARD_ROWS, options=("--max-tokens", 16))
    wait_for(lambda: len(shards_of(job, "w1")) == 2 and shards_of(job, "w2"), what="both work")
    return job, first, second


def shards_of(job: JobDir, worker: str) -> dict[int, int]:
    """The shards that a worker was the last to claim and has not committed, each with the number of the attempt."""
    found = {}
    for info in job.pending_shards():
        number = job.num_attempts(info.shard)
        path = job.attempts_dir(info.shard) / f"{number:04d}.json"
        if number and f'"{worker}"' in path.read_text():
            found[info.shard] = number
    return found


def num_waiting(server: RedisServer, job: JobDir) -> int:
    with server.client() as client:
        found = client.llen(queue_key("tiny", scope=scope_of(job.path.parent)))
    assert isinstance(found, int)
    return found


def are_claimed_again(job: JobDir, attempts: dict[int, int]) -> bool:
    return all(job.num_attempts(shard) > number for shard, number in attempts.items())


def test_shards_of_a_killed_worker_run_elsewhere_within_35_s(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    job, first, _ = start_pair(family, redis_server, model, rows=200, slow_step_s=0.06)
    child = family.child_of(first)
    assert child is not None

    for pid in (first.pid, child):
        os.kill(pid, signal.SIGKILL)
    killed_at = time.monotonic()
    left = shards_of(job, "w1")
    assert left
    wait_for(lambda: are_claimed_again(job, left), what="the shards run elsewhere", timeout_s=BOUND_S)

    assert time.monotonic() - killed_at < BOUND_S
    assert num_waiting(redis_server, job) > 0, "they did not wait for those before them"
    assert {job.num_attempts(shard) for shard in left} == {2}
    family.start(
        *("worker", "--broker", redis_server.url, "--jobs-dir", family.folder / "jobs"),
        *("--model", f"tiny={model}", "--name", "fast", "--threads", 1),
    )
    wait_for(lambda: job.is_complete, what="the job is complete")
    assert_every_row_once(job, 200)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_shards_of_a_child_that_died_are_sent_again_at_once(
    family: Family, model: Path, redis_server: RedisServer, number: signal.Signals
) -> None:
    job, first, _ = start_pair(family, redis_server, model, rows=160, slow_step_s=0.04)
    child = family.child_of(first)
    assert child is not None

    os.kill(child, number)
    killed_at = time.monotonic()
    left = shards_of(job, "w1")
    assert left
    wait_for(lambda: are_claimed_again(job, left), what="the shards run again", timeout_s=TOLD_BOUND_S)

    assert time.monotonic() - killed_at < TOLD_BOUND_S
    wait_for(lambda: job.is_complete, what="the job is complete")
    assert_every_row_once(job, 160)
