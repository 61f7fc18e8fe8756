"""Wall clocks that are a day off, or are set while work is going on: leases and rows do not depend on them."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from batcher.broker.embedded import packaged_server
from tests.faults.injection import inject
from tests.support.family import Family, assert_every_row_once, has_chunks, start_worker, submit, wait_until_ready
from tests.support.redis_server import RedisServer
from tests.support.waiting import wait_for
from tests.support.wall_clock import WallClock

SLOTS = ("--slots", 4)
ROWS = 120


@pytest.fixture
def redis_server_with_clock(tmp_path: Path, clock: WallClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    # Not the one on PATH: Debian's redis-server has its memory from jemalloc, which reads the clock at its first use,
    # while libfaketime needs memory when the clock is first read, and gives up.
    server = RedisServer(tmp_path, program=packaged_server())
    with monkeypatch.context() as patch:
        for name, value in clock.env.items():
            patch.setenv(name, value)
        server.start()
    yield server
    server.kill()


@pytest.mark.parametrize("offset", ["+1d", "-1d"])
def test_worker_whose_clock_is_a_day_off_shares_a_job(
    family: Family, model: Path, clock: WallClock, redis_url: str, offset: str
) -> None:
    clock.set(offset)
    slow = inject(slow_step_s=0.05)
    workers = [
        start_worker(family, redis_url, model, "odd", *SLOTS, env={**slow, **clock.env}),
        start_worker(family, redis_url, model, "even", *SLOTS, env=slow),
    ]
    wait_until_ready(*workers)
    job = submit(family, redis_url, rows=ROWS, shard_rows=10, options=("--max-tokens", 8))

    wait_for(lambda: job.is_complete, what="the job is complete")

    rows = assert_every_row_once(job, ROWS)
    assert {row["worker"] for row in rows} == {"odd", "even"}
    # Each shard was claimed once: nobody took the other for dead.
    assert {job.num_attempts(info.shard) for info in job.manifest.shards} == {1}
    created = {name: [row["created"] for row in rows if row["worker"] == name] for name in ("odd", "even")}
    days = (created["odd"][0] - created["even"][0]).total_seconds() / 86400
    assert round(days) == int(offset.removesuffix("d")), "the clock was off"


@pytest.mark.parametrize("offset", ["+1d", "-1d"])
def test_worker_whose_clock_is_set_while_it_works_keeps_its_shard(
    family: Family, model: Path, clock: WallClock, redis_url: str, offset: str
) -> None:
    job = submit(family, redis_url, rows=ROWS, shard_rows=ROWS, options=("--max-tokens", 8))
    odd = start_worker(family, redis_url, model, "odd", *SLOTS, env={**inject(slow_step_s=0.05), **clock.env})
    wait_for(lambda: has_chunks(job), what="a chunk")
    start_worker(family, redis_url, model, "even", *SLOTS)

    clock.set(offset)
    wait_for(lambda: job.is_complete, what="the job is complete")

    rows = assert_every_row_once(job, ROWS)
    assert {(row["worker"], row["attempts"]) for row in rows} == {("odd", 1)}
    created = [row["created"] for row in rows]
    assert round((max(created) - min(created)).total_seconds() / 86400) == 1, "the clock was set"
    assert odd.process.poll() is None


@pytest.mark.parametrize("offset", ["+1d", "-1d"])
def test_brokers_clock_that_is_set_keeps_no_shard_from_the_living(
    family: Family,
    model: Path,
    clock: WallClock,
    redis_server_with_clock: RedisServer,
    offset: str,
) -> None:
    redis_server = redis_server_with_clock
    job = submit(family, redis_server.url, rows=ROWS, shard_rows=ROWS, options=("--max-tokens", 8))
    slow = start_worker(family, redis_server.url, model, "slow", *SLOTS, "--lease-ttl", 3, env=inject(slow_step_s=0.1))
    wait_for(lambda: has_chunks(job), what="a chunk")
    child = family.child_of(slow)
    assert child is not None

    clock.set(offset)
    for pid in (slow.pid, child):
        os.kill(pid, signal.SIGKILL)
    start_worker(family, redis_server.url, model, "other", *SLOTS, "--lease-ttl", 3)
    wait_for(lambda: job.is_complete, what="the job is complete", timeout_s=45)

    assert {row["worker"] for row in assert_every_row_once(job, ROWS)} == {"slow", "other"}
