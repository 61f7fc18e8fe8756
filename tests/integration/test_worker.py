"""`batcher submit` and `batcher worker` on a broker of their own."""

import os
import signal
import time
from pathlib import Path

import pytest

from batcher.broker.client import connect, queue_key, queue_name
from batcher.jobdir.scope import scope_of
from tests.support.family import (
    Family,
    assert_every_row_once,
    chunk_rows,
    has_chunks,
    start_worker,
    submit,
    wait_until_ready,
)
from tests.support.job_files import result_rows
from tests.support.waiting import wait_for

#: Two shards of several seconds each, so that a chunk appears long before their end, on a much faster machine too.
ROWS = 240


def test_workers_share_a_job_and_a_third_joins(family: Family, model: Path, redis_url: str) -> None:
    workers = [start_worker(family, redis_url, model, name) for name in ("w1", "w2")]
    wait_until_ready(*workers)
    job = submit(family, redis_url, rows=ROWS, shard_rows=8)

    workers.append(start_worker(family, redis_url, model, "w3"))
    wait_until_ready(workers[2])
    assert not job.is_complete
    wait_for(lambda: job.is_complete, what="the job is complete")

    rows = result_rows(job)
    assert [row["row"] for row in rows] == list(range(ROWS))
    assert {row["worker"] for row in rows} == {"w1", "w2", "w3"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_worker_gives_its_shards_to_the_next(
    family: Family, model: Path, redis_url: str, number: signal.Signals
) -> None:
    job = submit(family, redis_url, rows=ROWS, shard_rows=ROWS // 2)
    first = start_worker(family, redis_url, model, "first")
    wait_for(lambda: has_chunks(job), what="a chunk")

    sent_at = time.monotonic()
    os.killpg(first.pid, number)

    assert first.wait() == 0
    assert time.monotonic() - sent_at < 10
    assert family.pids() == []
    assert "Traceback" not in first.stderr
    saved = chunk_rows(job)
    assert saved
    client = connect(redis_url)
    assert client.keys("batcher:lease:*") == []
    # Every shard without a part has its message back in the queue, and none is held by the dead.
    assert client.llen(queue_key("tiny", scope=scope_of(job.path.parent))) == len(job.pending_shards())
    assert client.hlen("batcher:unacked") == 0
    client.close()

    start_worker(family, redis_url, model, "second")
    wait_for(lambda: job.is_complete, what="the job is complete")

    results = {row["row"]: row for row in result_rows(job)}
    assert sorted(results) == list(range(ROWS))
    assert {number: results[number] for number in saved} == saved


def test_child_of_a_killed_supervisor_saves_its_rows_and_ends(family: Family, model: Path, redis_url: str) -> None:
    job = submit(family, redis_url, rows=ROWS, shard_rows=ROWS // 2)
    worker = start_worker(family, redis_url, model, "orphan")
    wait_for(lambda: has_chunks(job), what="a chunk")

    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()

    wait_for(lambda: family.pids() == [], what="the child is gone", timeout_s=10)
    client = connect(redis_url)
    assert client.keys("batcher:lease:*") == []
    client.close()


def test_lost_messages_are_healed_by_the_sweep(family: Family, model: Path, redis_url: str) -> None:
    job = submit(family, redis_url, rows=20, shard_rows=20)
    client = connect(redis_url)
    client.flushall()
    client.close()

    start_worker(family, redis_url, model, "healer")

    wait_for(lambda: job.is_complete, what="the job is complete")
    assert [row["row"] for row in result_rows(job)] == list(range(20))


def test_worker_of_a_paused_job_takes_other_work_until_it_goes_on(family: Family, model: Path, redis_url: str) -> None:
    first = submit(family, redis_url, rows=ROWS, shard_rows=ROWS)
    start_worker(family, redis_url, model, "w1")
    wait_for(lambda: has_chunks(first), what="a chunk")

    family.run("pause", first.path, code=0)
    second = submit(family, redis_url, rows=4, shard_rows=4, options=("--max-tokens", 2))
    wait_for(lambda: second.is_complete, what="the other job is complete")

    saved = chunk_rows(first)
    assert saved
    assert not first.is_complete
    client = connect(redis_url)
    wait_for(lambda: client.keys("batcher:lease:*") == [], what="the leases are given back")
    assert client.llen(queue_key("tiny", scope=scope_of(first.path.parent))) == 0
    client.close()

    family.run("resume", first.path, "--broker", redis_url, code=0)
    wait_for(lambda: first.is_complete, what="the job is complete")

    results = {row["row"]: row for row in assert_every_row_once(first, ROWS)}
    assert {number: results[number] for number in saved} == saved


def test_drained_worker_finishes_its_shards_and_the_other_goes_on(family: Family, model: Path, redis_url: str) -> None:
    first = start_worker(family, redis_url, model, "first")
    wait_until_ready(first)
    # Far more shards than a worker holds, so that some are left for the other.
    job = submit(family, redis_url, rows=2 * ROWS, shard_rows=10)
    wait_for(lambda: job.committed_shards(), what="a part")
    start_worker(family, redis_url, model, "second")

    drain = family.run("drain", "first", "--wait", "--jobs-dir", job.path.parent, code=0)

    assert drain.stdout.splitlines()[-1] == "Ended: first."
    assert first.wait() == 0
    assert "Drained; " in first.stderr
    wait_for(lambda: job.is_complete, what="the job is complete")
    rows = assert_every_row_once(job, 2 * ROWS)
    assert {row["worker"] for row in rows} == {"first", "second"}
    # Its shards were finished by it, none given back and run once more.
    assert {row["attempts"] for row in rows} == {1}
    assert family.run("drain", "first", "--jobs-dir", job.path.parent, code=2).stderr.count("second (on ") == 1


def test_submit_waits_and_reports_like_run(family: Family, model: Path, redis_url: str) -> None:
    worker = start_worker(family, redis_url, model, "w1")
    wait_until_ready(worker)
    prompts = family.folder / "mixed.jsonl"
    prompts.write_text('{"prompt": "hello"}\n{"prompt": 5}\n')

    command = family.run(
        *("submit", prompts, "--broker", redis_url, "--jobs-dir", family.folder / "jobs"),
        *("--model", "tiny", "--job-id", "mixed", "--wait"),
        code=1,
    )

    assert command.stdout.splitlines()[0] == "mixed"
    assert "2 in = 1 ok + 1 error" in command.stdout


def test_messages_that_mean_no_job_of_ours_are_dropped(family: Family, model: Path, redis_url: str) -> None:
    from batcher.broker.messages import RUN_SHARD
    from workers.queue.app import make_celery

    app = make_celery(redis_url)
    for message in (
        {"job_id": "../etc", "shard": 0},
        {"job_id": "none", "shard": 0},
        {"job_id": "x", "shard": "0"},
        {},
    ):
        app.send_task(RUN_SHARD, kwargs=message, queue=queue_name("tiny", scope=scope_of(family.folder / "jobs")))
    app.close()
    job = submit(family, redis_url, rows=5, shard_rows=5)

    worker = start_worker(family, redis_url, model, "w1")

    wait_for(lambda: job.is_complete, what="the job is complete")
    assert worker.stderr.count("a message is dropped") == 4
    assert "Traceback" not in worker.stderr
