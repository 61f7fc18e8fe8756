"""Brokers that answer and refuse while work is queued: a clear line each, and the work goes on once they are mended."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import redis

from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import read_heartbeats
from tests.faults.injection import inject
from tests.support.family import (
    Command,
    Family,
    assert_every_row_once,
    attempt_ends,
    has_chunks,
    start_worker,
    submit,
    wait_until_ready,
    write_prompts,
)
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for

PACE = ("--slots", 4, "--lease-ttl", 3)
#: A worker with it computes some hundred tokens a second.
SLOW = inject(slow_step_s=0.03)
ROWS = 8
#: Keys of somebody else's, and the microseconds that each takes to load: four seconds, in which the server answers to
#: everybody after each thousand keys that it is loading.
NUM_OTHERS, LOAD_DELAY_US = 20_000, 200


@pytest.fixture
def slow_server(tmp_path: Path) -> Iterator[RedisServer]:
    """One that keeps over a restart what it was told, and takes seconds to load it."""
    folder = tmp_path / "lasting"
    folder.mkdir()
    server = RedisServer(folder, is_persistent=True)
    try:
        server.start()
        with server.client() as client, client.pipeline(transaction=False) as pipe:
            for number in range(NUM_OTHERS):
                pipe.set(f"other:{number}", "x")
            pipe.execute()
        yield server
    finally:
        server.kill()


def be_replica(client: redis.Redis) -> None:
    client.replicaof("127.0.0.1", 1)


def be_primary(client: redis.Redis) -> None:
    client.replicaof("NO", "ONE")


def have_few_clients(client: redis.Redis) -> None:
    client.config_set("maxclients", 1)
    client.client_kill_filter(_type="normal", skipme=True)


def have_many_clients(client: redis.Redis) -> None:
    client.config_set("maxclients", 1000)


def forbid(client: redis.Redis) -> None:
    client.acl_setuser("default", categories=["-@write"], enabled=True)


def allow(client: redis.Redis) -> None:
    client.acl_setuser("default", categories=["+@all"], enabled=True)


Change = Callable[[redis.Redis], None]

TROUBLES: list[tuple[Change, Change, str]] = [
    (be_replica, be_primary, "it is a replica, which takes no writes; give the URL of the primary"),
    (have_few_clients, have_many_clients, "it has as many clients as it takes; raise its maxclients"),
    (forbid, allow, "the user may not do what Batcher does"),
]


def says(command: Command, text: str) -> bool:
    return text in command.stderr


def is_back(worker: Command, times: int) -> bool:
    return worker.stderr.count("it is back") == times


def is_complete(job: JobDir) -> bool:
    return job.is_complete


def submit_in_trouble(family: Family, server: RedisServer, job_id: str) -> tuple[JobDir, Command]:
    """Submit a job that is refused by the broker."""
    jobs = family.folder / "jobs"
    prompts = write_prompts(family.folder / "prompts.jsonl", ROWS)
    options = ("--broker", server.url, "--jobs-dir", jobs, "--model", "tiny", "--max-tokens", 4)
    command = family.run("submit", prompts, "--job-id", job_id, *options, code=3)
    return JobDir(jobs / job_id), command


def test_worker_waits_for_a_broker_that_refuses_and_does_what_was_submitted_meanwhile(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    worker = start_worker(family, redis_server.url, model, "w1", *PACE)
    wait_until_ready(worker)
    child = family.child_of(worker)
    jobs = []

    for number, (begin, end, expected) in enumerate(TROUBLES):
        with redis_server.client() as admin:
            admin.ping()
            begin(admin)
            wait_for(partial(says, worker, expected), what=f"the worker says: {expected}")
            job, command = submit_in_trouble(family, redis_server, f"job-{number}")
            assert expected in command.stderr
            end(admin)
        wait_for(partial(is_back, worker, number + 1), what="the worker is back")
        if job.has(job.manifest_path):
            jobs.append(job)

    assert len(jobs) == 2, "the job is whole on disk where the broker was reached at first"
    for job in jobs:
        wait_for(partial(is_complete, job), what="the job is complete")
        assert_every_row_once(job, ROWS)
        assert attempt_ends(job) == []
    assert "Traceback" not in worker.stderr
    assert family.child_of(worker) == child


def test_shards_in_work_are_finished_while_the_broker_is_a_replica(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    job = submit(family, redis_server.url, rows=48, shard_rows=12, options=("--max-tokens", 16))
    worker = start_worker(family, redis_server.url, model, "w1", *PACE, env=SLOW)
    wait_for(lambda: has_chunks(job), what="a chunk")
    held = {info.shard for info in job.pending_shards() if job.num_attempts(info.shard)}

    with redis_server.client() as admin:
        be_replica(admin)
        wait_for(lambda: held <= job.committed_shards(), what="what the worker holds is committed")
        assert not job.is_complete
        resumed = family.run("resume", job.path, "--broker", redis_server.url, code=3)
        shown = family.run("status", job.path, code=0)
        be_primary(admin)

    assert "it is a replica, which takes no writes" in resumed.stderr
    assert "running" in shown.stdout
    wait_for(lambda: job.is_complete, what="the job is complete")
    assert_every_row_once(job, 48)
    assert attempt_ends(job) == []
    assert "Traceback" not in worker.stderr


def test_broker_that_loads_its_data_is_waited_for(family: Family, model: Path, slow_server: RedisServer) -> None:
    worker = start_worker(family, slow_server.url, model, "w1", *PACE)
    wait_until_ready(worker)

    slow_server.kill()
    slow_server.settings = {"key-load-delay": LOAD_DELAY_US}
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(slow_server.start)
        wait_for(lambda: is_loading(slow_server), what="it loads its data")
        job = submit(family, slow_server.url, rows=ROWS, shard_rows=ROWS, options=("--max-tokens", 4))
        starting.result()

    wait_for(lambda: job.is_complete, what="the job is complete")
    assert_every_row_once(job, ROWS)
    assert "Traceback" not in worker.stderr
    assert worker.process.poll() is None


def is_loading(server: RedisServer) -> bool:
    with server.client() as client:
        try:
            client.ping()
        except redis.BusyLoadingError:
            return True
        except redis.RedisError:
            pass
    return False


@pytest.mark.parametrize("has_slots", [False, True])
def test_cluster_is_refused_by_every_command(family: Family, model: Path, tmp_path: Path, has_slots: bool) -> None:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with contextlib.closing(RedisServer(folder, settings={"cluster-enabled": "yes"})) as server:
        server.start()
        if has_slots:
            with server.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)  # type: ignore[no-untyped-call]
        prompts = write_prompts(tmp_path / "prompts.jsonl", ROWS)
        jobs = ("--broker", server.url, "--jobs-dir", tmp_path / "jobs")
        commands = [
            ("submit", prompts, *jobs, "--model", "tiny"),
            ("worker", *jobs, "--model", f"tiny={model}"),
            ("run", prompts, "-o", tmp_path / "out", "--broker", server.url, "--model", f"tiny={model}"),
        ]
        doctor = family.start("doctor", *jobs, "--model", f"tiny={model}")
        for command in [family.start(*arguments) for arguments in commands]:
            assert command.wait() == 3, command.stderr
            assert "it is a Redis Cluster" in command.stderr
            assert "give one that runs without cluster mode" in command.stderr
            assert "Traceback" not in command.stderr
        assert doctor.wait() == 1
        assert "it is a Redis Cluster" in doctor.stdout


# -- one name for two ------------------------------------------------------------------------------------------------


def test_two_workers_of_one_name_are_both_seen_and_the_shards_of_one_are_not_the_others(
    family: Family, model: Path, redis_server: RedisServer
) -> None:
    first = start_worker(family, redis_server.url, model, "w1", *PACE, env=SLOW)
    wait_until_ready(first)
    second = start_worker(family, redis_server.url, model, "w1", *PACE, env=SLOW)
    wait_until_ready(second)
    job = submit(family, redis_server.url, rows=48, shard_rows=12, options=("--max-tokens", 20))
    wait_for(lambda: len(holding(job)) == 2, what="both hold shards")

    shown = json.loads(family.run("status", job.path, "--json", code=0).stdout)
    assert {worker["pid"] for worker in shown["workers"]} == {first.pid, second.pid}
    assert f"another of this name is alive (on {os.uname().nodename}, pid {first.pid})" in second.stderr
    child = family.child_of(second)
    assert child is not None
    kept = holding(job)[first.pid]
    os.kill(child, signal.SIGKILL)

    wait_for(lambda: job.is_complete, what="the job is complete")
    assert_every_row_once(job, 48)
    assert {shard for shard in kept if job.num_attempts(shard) > 1} == set(), "nobody took the first one for dead"
    assert "its process died" not in first.stderr
    first.process.terminate()
    assert first.wait() == 0
    assert [report.beat.pid for report in read_heartbeats(job.path.parent)] == [second.pid]


def holding(job: JobDir) -> dict[int, set[int]]:
    """The shards that each worker holds, by its pid; without those who hold none."""
    beats = [report.beat for report in read_heartbeats(job.path.parent)]
    return {beat.pid: {held.shard for held in beat.shards} for beat in beats if beat.shards}
