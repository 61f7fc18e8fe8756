"""Brokers that are killed, emptied, frozen, cut off and full: workers go on with what they hold, and jobs finish."""

import os
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from batcher.broker.client import KEY_PREFIX, queue_name
from batcher.broker.embedded import folder_for
from batcher.broker.messages import encode_message
from batcher.jobdir.folder import JobDir
from batcher.jobdir.scope import scope_of
from tests.faults.injection import inject
from tests.support.family import (
    Command,
    Family,
    assert_every_row_once,
    chunk_rows,
    has_chunks,
    start_worker,
    submit,
    wait_until_ready,
    write_prompts,
)
from tests.support.redis_server import Proxy, RedisServer
from tests.support.waiting import wait_for

PACE = ("--slots", 4, "--lease-ttl", 3)
#: A worker with it computes some hundred tokens a second: a job takes the time that a test needs.
SLOW = inject(slow_step_s=0.03)
ROWS = 96
#: Two shards are in a worker at a time.
SHARD_ROWS = 24
GRACE_S = 8.0
FLUSH_INTERVAL_S = 2.0


@pytest.fixture
def lasting_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One that keeps over a restart what it was told."""
    folder = tmp_path / "lasting"
    folder.mkdir()
    server = RedisServer(folder, is_persistent=True)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def submit_job(family: Family, url: str, *, shard_rows: int = SHARD_ROWS) -> JobDir:
    return submit(family, url, rows=ROWS, shard_rows=shard_rows, options=("--max-tokens", 16))


def start_job(
    family: Family, url: str, model: Path, *options: object, shard_rows: int = SHARD_ROWS
) -> tuple[JobDir, Command]:
    """A job in the middle of its first shards, and the only worker, which has computed some rows."""
    job = submit_job(family, url, shard_rows=shard_rows)
    worker = start_worker(family, url, model, "w1", *PACE, *options, env=SLOW)
    wait_for(lambda: has_chunks(job), what="a chunk")
    return job, worker


def wait_for_end(job: JobDir, *, timeout_s: float = 120) -> None:
    wait_for(lambda: job.is_complete, what="the job is complete", timeout_s=timeout_s)


def num_attempts(job: JobDir) -> int:
    return sum(job.num_attempts(info.shard) for info in job.manifest.shards)


def newest_chunk_at(job: JobDir) -> float:
    return max(path.stat().st_mtime for path in job.path.glob("chunks/*/*.parquet"))


def finished_rows(job: JobDir) -> set[int]:
    """The rows that journals say are finished, saved or not."""
    lines = [line for path in job.path.glob("attempts/*/*.journal") for line in path.read_text().splitlines()]
    return {int(line[2:]) for line in lines if line.startswith("- ")}


def in_flight(job: JobDir) -> set[int]:
    return {info.shard for info in job.pending_shards() if job.num_attempts(info.shard)}


# -- lost connections ---------------------------------------------------------------------------------------------


def test_killed_connections_are_made_again(family: Family, model: Path, redis_server: RedisServer) -> None:
    job, worker = start_job(family, redis_server.url, model)

    with redis_server.client() as client:
        num_killed = 0
        deadline = time.monotonic() + 120
        while not job.is_complete:
            assert time.monotonic() < deadline, "the job is not completed"
            num_killed += int(client.client_kill_filter(_type="normal", skipme=True))
            time.sleep(2)

    assert num_killed > 0
    assert_every_row_once(job, ROWS)
    assert num_attempts(job) == len(job.manifest.shards), "each shard was run once"
    assert "Traceback" not in worker.stderr
    assert worker.process.poll() is None


def test_half_open_connections_are_given_up_and_work_goes_on(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    with Proxy(redis_server) as proxy:
        job, worker = start_job(family, proxy.url, model)
        held = in_flight(job)

        proxy.cut()
        wait_for(lambda: held <= job.committed_shards(), what="what the worker holds is committed")
        assert not job.is_complete
        proxy.mend()

        wait_for_end(job)

    assert_every_row_once(job, ROWS)
    assert "Traceback" not in worker.stderr


# -- killed, emptied ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_persistent", [True, False])
def test_worker_goes_on_without_its_broker_and_with_it_when_it_is_back(
    family: Family, model: Path, redis_server: RedisServer, lasting_server: RedisServer, is_persistent: bool
) -> None:
    server = lasting_server if is_persistent else redis_server
    job, worker = start_job(family, server.url, model)
    with server.client() as client:
        assert client.hlen("batcher:unacked") <= 2, "a message is taken for each thread, and none in reserve"
    held = in_flight(job)

    server.kill()
    # The worst moment to come back is when nobody listens: both threads have lost their broker while they were busy.
    wait_for(lambda: held <= job.committed_shards(), what="the shards in flight are committed without a broker")
    assert not job.is_complete
    server.start()

    wait_for_end(job)
    assert_every_row_once(job, ROWS)
    assert num_attempts(job) == len(job.manifest.shards), "each shard was run once"
    assert "Traceback" not in worker.stderr
    assert worker.process.poll() is None


def test_flushed_broker_is_refilled_by_whoever_holds_and_sweeps(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    job, worker = start_job(family, redis_server.url, model)

    with redis_server.client() as client:
        client.flushall()
        wait_for(lambda: client.keys("batcher:lease:*"), what="a lease is taken again", timeout_s=10)

    wait_for_end(job)
    assert_every_row_once(job, ROWS)
    assert num_attempts(job) == len(job.manifest.shards), "nobody took the holder for dead"
    assert "Traceback" not in worker.stderr


def test_shard_that_is_queued_fifty_times_is_run_once(family: Family, model: Path, redis_url: str) -> None:
    job = submit_job(family, redis_url, shard_rows=ROWS)
    queue = queue_name("tiny", scope=scope_of(job.path.parent))
    client = redis.Redis.from_url(redis_url)
    for _ in range(49):
        client.lpush(KEY_PREFIX + queue, encode_message(job.job_id, 0, queue=queue))

    worker = start_worker(family, redis_url, model, "w1", *PACE, env=SLOW)
    start_worker(family, redis_url, model, "w2", *PACE, env=SLOW)
    wait_for_end(job)

    wait_for(lambda: not client.exists(KEY_PREFIX + queue, "batcher:unacked"), what="all messages are done with")
    client.close()
    assert_every_row_once(job, ROWS)
    assert job.num_attempts(0) == 1
    assert "Traceback" not in worker.stderr


def test_run_whose_broker_is_gone_for_good_says_how_to_go_on(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    prompts = write_prompts(family.folder / "prompts.jsonl", ROWS)
    arguments = (
        *("run", prompts, "-o", job.path, "--broker", redis_server.url, "--model", f"tiny={model}", "--threads", 1),
        *(*PACE, "--max-tokens", 16, "--shard-rows", SHARD_ROWS),
    )
    run = family.start(*arguments, env=SLOW)
    wait_for(lambda: has_chunks(job), what="a chunk")
    held = in_flight(job)

    redis_server.kill()

    assert run.wait() == 3
    assert held <= job.committed_shards(), "what its worker held is done"
    assert "the broker has been away for 3" in run.stderr
    assert run.stderr.rstrip().endswith(f"Go on with:\n  {shlex.join(['batcher', *map(str, arguments)])}")
    assert family.pids() == []

    redis_server.start()
    family.run(*arguments, code=0)
    assert_every_row_once(job, ROWS)


# -- frozen -------------------------------------------------------------------------------------------------------


def test_worker_stops_in_its_grace_period_while_its_broker_is_frozen(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    job, worker = start_job(family, redis_server.url, model, "--grace", GRACE_S, shard_rows=ROWS)
    redis_server.freeze()
    frozen_at = time.time()
    # Meanwhile a renewal and a look wait for an answer.
    wait_for(lambda: newest_chunk_at(job) > frozen_at + FLUSH_INTERVAL_S, what="rows are saved as ever")
    # Between the two looks they may be saved, but not be finished any less.
    wait_for(lambda: finished_rows(job) - set(chunk_rows(job)), what="rows are finished that are not saved")
    finished = finished_rows(job)

    sent_at = time.time()
    worker.process.terminate()

    assert worker.wait() == 0
    assert time.time() - sent_at < GRACE_S + 2
    assert family.pids() == []
    assert "Traceback" not in worker.stderr
    saved = chunk_rows(job)
    assert finished <= set(saved), "the rows since the last chunk are saved"

    redis_server.thaw()
    start_worker(family, redis_server.url, model, "w2", *PACE)
    wait_for_end(job)
    results = {row["row"]: row for row in assert_every_row_once(job, ROWS)}
    assert {number: results[number] for number in saved} == saved


# -- full ---------------------------------------------------------------------------------------------------------


def test_submit_to_a_full_broker_keeps_the_job_which_is_done_when_there_is_room(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    worker = start_worker(family, redis_server.url, model, "w1", *PACE)
    wait_until_ready(worker)
    prompts = write_prompts(family.folder / "prompts.jsonl", ROWS)
    jobs = family.folder / "jobs"
    with redis_server.client() as client:
        client.config_set("maxmemory", 1)

        refused = family.run(
            *("submit", prompts, "--broker", redis_server.url, "--jobs-dir", jobs, "--job-id", "full"),
            *("--model", "tiny", "--max-tokens", 16, "--shard-rows", SHARD_ROWS),
        )
        client.config_set("maxmemory", 0)

    assert refused.process.returncode == 3
    assert "its memory is full; raise its maxmemory" in refused.stderr
    assert f"batcher resume {jobs / 'full'}" in refused.stderr
    job = JobDir(jobs / "full")
    wait_for_end(job)
    assert_every_row_once(job, ROWS)


def test_worker_bears_a_broker_that_is_full_for_a_while(family: Family, model: Path, redis_server: RedisServer) -> None:
    job, worker = start_job(family, redis_server.url, model)
    held = in_flight(job)

    with redis_server.client() as client:
        client.config_set("maxmemory", 1)
        wait_for(lambda: held <= job.committed_shards(), what="what the worker holds is committed")
        # Until it has asked for more, and was refused.
        wait_for(lambda: "maxmemory" in worker.stderr, what="the worker is refused")
        client.config_set("maxmemory", 0)

    wait_for_end(job)
    assert_every_row_once(job, ROWS)
    assert worker.process.poll() is None
    assert "its process died" not in worker.stderr
    assert "Traceback" not in worker.stderr


# -- the embedded broker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_kills", [1, 3])
def test_run_bears_the_death_of_its_embedded_broker(family: Family, model: Path, num_kills: int) -> None:
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    prompts = write_prompts(family.folder / "prompts.jsonl", ROWS)
    run = family.start(
        *("run", prompts, "-o", job.path, "--model", f"tiny={model}", "--threads", 1, *PACE),
        *("--max-tokens", 16, "--shard-rows", SHARD_ROWS),
        env=SLOW,
    )
    wait_for(lambda: has_chunks(job), what="a chunk")

    killed: set[int] = set()
    for _ in range(num_kills):
        (server,) = wait_for(
            lambda: set(family.pids(text=str(folder_for(job.path) / "broker.sock"))) - killed, what="a server"
        )
        os.kill(server, signal.SIGKILL)
        killed.add(server)

    assert run.wait() == 0, run.stderr
    assert_every_row_once(job, ROWS)
    assert "died (signal SIGKILL)" in run.stderr
    assert "Traceback" not in run.stderr
    assert family.pids() == []
    assert not folder_for(job.path).exists()
