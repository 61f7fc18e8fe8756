"""A fleet and its operator: a huge job, an urgent one, equal ones, a worker that is drained, and one that went astray.

Everything is counted in shards, by the records in the jobs' folders, and nothing in seconds.
"""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq

import batcher
from batcher.jobdir.folder import JobDir
from tests.support.family import (
    Command,
    Family,
    assert_every_row_once,
    start_worker,
    wait_until_ready,
)
from tests.support.waiting import wait_for

#: A worker with these has two shards at a time.
SLOTS = ("--slots", 2)
SHARD_ROWS = 4
NUM_HUGE, NUM_EQUAL = 1000, 20


def submit(
    family: Family, redis_url: str, name: str, num_shards: int, *, max_tokens: int, priority: str = "normal"
) -> JobDir:
    """From Python, which takes no time to start."""
    job = batcher.submit(
        [{"prompt": f"hello {number}"} for number in range(num_shards * SHARD_ROWS)],
        job_id=name,
        model="tiny",
        max_tokens=max_tokens,
        priority=priority,
        shard_rows=SHARD_ROWS,
        broker=redis_url,
        jobs_dir=family.folder / "jobs",
    )
    return JobDir.open(job.path)


def claims(job: JobDir) -> dict[int, float]:
    """When each shard was claimed first, in Unix seconds."""
    found = {}
    for info in job.manifest.shards:
        path = job.attempt_path(info.shard, attempt=1)
        if path.exists():
            found[info.shard] = path.stat().st_mtime
    return found


def commits(job: JobDir) -> dict[int, float]:
    """When each shard was committed, in Unix seconds."""
    return {shard: job.part_path(shard).stat().st_mtime for shard in job.committed_shards()}


def test_fleet_at_work_is_seen_and_steered(family: Family, model: Path, redis_url: str) -> None:
    workers = [start_worker(family, redis_url, model, name, *SLOTS) for name in ("w1", "w2")]
    stray = start_worker(family, redis_url, model, "stray", "--jobs-dir", family.folder / "wrong")
    wait_until_ready(*workers, stray)
    huge = submit(family, redis_url, "huge", NUM_HUGE, max_tokens=200)
    wait_for(lambda: len(huge.committed_shards()) >= 2, what="the huge job is at work")

    check_urgent(family, redis_url, huge)
    check_equal(family, redis_url)
    check_stray(family, redis_url)
    check_drain(family, workers, huge)

    # Cancelled, as a job of this size would take minutes; the other worker lives on.
    family.run("cancel", huge.path, code=0)
    assert not huge.is_complete
    assert workers[1].process.poll() is None


def check_urgent(family: Family, redis_url: str, huge: JobDir) -> None:
    """Its first row comes within a shard's time of the huge job: it waits for no shard that had not begun before."""
    urgent = submit(family, redis_url, "urgent", 1, max_tokens=4, priority="urgent")
    wait_for(lambda: urgent.is_complete, what="the urgent job is complete")

    submitted_at, first_row_at = urgent.manifest_path.stat().st_mtime, min(commits(urgent).values())
    begun = {shard for shard, at in claims(huge).items() if submitted_at < at}
    overtaken = {shard for shard, at in commits(huge).items() if at < first_row_at} & begun
    assert len(overtaken) <= 1


def check_equal(family: Family, redis_url: str) -> None:
    """Of the shards that are committed once three jobs are there, each has as many as the others, give or take."""
    jobs = [submit(family, redis_url, f"equal-{number}", NUM_EQUAL, max_tokens=20) for number in range(3)]
    wait_for(lambda: all(job.is_complete for job in jobs), what="the equal jobs are complete")

    # The first has begun when the last comes.
    all_there_at = max(job.manifest_path.stat().st_mtime for job in jobs)
    in_order = sorted((at, job.job_id) for job in jobs for at in commits(job).values() if at > all_there_at)
    names = [name for _, name in in_order[:NUM_EQUAL]]
    progress = [names.count(job.job_id) for job in jobs]
    assert max(progress) - min(progress) <= NUM_EQUAL / 5, progress
    for job in jobs:
        rows = assert_every_row_once(job, NUM_EQUAL * SHARD_ROWS)
        assert {row["worker"] for row in rows} <= {"w1", "w2"}


def check_stray(family: Family, redis_url: str) -> None:
    """A worker in another jobs folder is named."""
    where = ("--broker", redis_url, "--jobs-dir", family.folder / "jobs")
    listed = family.run("workers", "--json", *where, code=0).stdout.splitlines()
    states = {each["name"]: (each["state"], each["folder"]) for each in map(json.loads, listed)}
    assert states["stray"] == ("elsewhere", str(family.folder / "wrong"))
    assert [states[name][0] for name in ("w1", "w2")] == ["alive", "alive"]
    doctor = family.run("doctor", *where)
    assert f"stray on {os.uname().nodename}: in {family.folder / 'wrong'}" in doctor.stdout


def check_drain(family: Family, workers: list[Command], huge: JobDir) -> None:
    """A drained worker ends well, with no shard given back, and the other goes on."""
    num_before = len(huge.committed_shards())
    wait_for(lambda: len(huge.committed_shards()) > num_before, what="the huge job is at work again")

    family.run("drain", "w1", "--wait", "--jobs-dir", huge.path.parent, code=0)

    assert workers[0].wait() == 0
    num_committed = len(huge.committed_shards())
    assert num_committed < NUM_HUGE
    assert workers[1].process.poll() is None
    wait_for(lambda: len(huge.committed_shards()) > num_committed, what="the other goes on")
    by_w1 = [row for row in pq.read_table(huge.results_dir).to_pylist() if row["worker"] == "w1"]
    assert by_w1
    assert {row["attempts"] for row in by_w1} == {1}
