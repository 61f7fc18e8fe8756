"""`batcher.workers`: what is made of signs of life, and of those whom only the broker knows."""

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import batcher
from batcher.broker.presence import Announcer, Presence
from batcher.jobdir.drains import is_to_drain
from batcher.jobdir.heartbeats import HeldShard, WorkerHeartbeat, heartbeat_path, write_heartbeat
from batcher.jobdir.pulse import WorkerState
from batcher.jobdir.scope import scope_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BEAT = WorkerHeartbeat(
    name="w1",
    host="host-a",
    pid=17,
    version="0.1.0",
    models=("tiny",),
    started_at=NOW - timedelta(hours=1),
    beat_at=NOW,
    state=WorkerState.WORKING,
    interval_s=5.0,
    shards=(HeldShard("job", 3, 1),),
    num_crashes=2,
    last_crash="signal SIGSEGV",
    num_slots=4,
    num_running=3,
    tokens_per_s=99.5,
)


def presence(root: Path, beat: WorkerHeartbeat = BEAT, **changes: Any) -> Presence:
    here = Presence(beat.name, beat.host, beat.pid, beat.version, scope_of(root), str(root), beat.models)
    return replace(here, **changes)


def test_worker_is_drained_by_its_name_and_shown_so(tmp_path: Path) -> None:
    write_heartbeat(tmp_path, replace(BEAT, instance="a1"))

    assert batcher.drain("w1", jobs_dir=tmp_path) == ["w1"]

    assert is_to_drain(tmp_path, "w1", "a1")
    # Before the worker has heard of it, too.
    assert [worker.state for worker in batcher.workers(jobs_dir=tmp_path)] == ["draining"]
    write_heartbeat(tmp_path, replace(BEAT, instance="a1", state=WorkerState.DRAINING))
    assert batcher.workers(jobs_dir=tmp_path)[0].state == "draining"
    with pytest.raises(batcher.errors.InputError, match="w2: no worker of"):
        batcher.drain("w2", jobs_dir=tmp_path)


def test_worker_is_told_of_with_all_that_its_sign_says(tmp_path: Path) -> None:
    write_heartbeat(tmp_path, BEAT)

    (worker,) = batcher.workers(jobs_dir=tmp_path)

    assert worker == batcher.Worker(
        *("w1", "host-a", 17, "0.1.0", ("tiny",)),
        state="alive",
        folder=str(tmp_path),
        shards=(HeldShard("job", 3, 1),),
        num_slots=4,
        num_running=3,
        tokens_per_s=99.5,
        uptime_s=worker.uptime_s,
        age_s=worker.age_s,
        num_crashes=2,
        last_crash="signal SIGSEGV",
    )
    assert worker.uptime_s == pytest.approx(3600 + worker.age_s, abs=0.1)


@pytest.mark.parametrize("state", WorkerState)
def test_state_is_that_of_the_sign_and_alive_where_all_is_usual(tmp_path: Path, state: WorkerState) -> None:
    write_heartbeat(tmp_path, replace(BEAT, state=state))

    (worker,) = batcher.workers(jobs_dir=tmp_path)

    assert worker.state == ("alive" if state in (WorkerState.IDLE, WorkerState.WORKING) else state.value)
    assert not worker.is_elsewhere


def test_worker_that_is_gone_computes_nothing(tmp_path: Path) -> None:
    write_heartbeat(tmp_path, BEAT)
    os.utime(heartbeat_path(tmp_path, "w1"), (time.time() - 100,) * 2)

    (worker,) = batcher.workers(jobs_dir=tmp_path)

    assert (worker.state, worker.num_running, worker.tokens_per_s) == ("gone", 0, 0.0)
    assert worker.age_s == pytest.approx(100, abs=60)
    assert worker.uptime_s == 3600


def test_broker_tells_who_works_in_another_folder_and_who_in_a_copy(tmp_path: Path, redis_url: str) -> None:
    here, wrong, copy = (tmp_path / name for name in ("here", "wrong", "copy"))
    for folder in (here, wrong, copy):
        folder.mkdir()
    write_heartbeat(here, BEAT)
    (copy / ".scope").write_text(scope_of(here))
    for each in (
        presence(here),
        presence(wrong, replace(BEAT, name="w2")),
        presence(copy, replace(BEAT, name="w3")),
    ):
        Announcer(redis_url, each, pause_s=4).renew()

    found = batcher.workers(jobs_dir=here, broker=redis_url)

    assert {worker.name: (worker.state, worker.folder) for worker in found} == {
        "w1": ("alive", str(here)),
        "w2": ("elsewhere", str(wrong)),
        "w3": ("in a copy", str(copy)),
    }
    assert [worker.is_elsewhere for worker in found] == [False, True, True]


def test_folder_that_nobody_has_used_has_no_workers_and_gets_no_scope(tmp_path: Path, redis_url: str) -> None:
    Announcer(redis_url, presence(tmp_path), pause_s=4).renew()
    new = tmp_path / "new"
    new.mkdir()

    assert [worker.state for worker in batcher.workers(jobs_dir=new, broker=redis_url)] == ["elsewhere"]
    assert list(new.iterdir()) == []
    assert batcher.workers(jobs_dir=tmp_path / "nowhere") == []


def test_jobs_folder_and_broker_of_the_environment_are_taken(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Announcer(redis_url, presence(tmp_path, scope="another"), pause_s=4).renew()
    write_heartbeat(tmp_path, replace(BEAT, name="w0"))
    monkeypatch.setenv("BATCHER_JOBS_DIR", str(tmp_path))
    monkeypatch.setenv("BATCHER_BROKER", redis_url)

    assert [worker.name for worker in batcher.workers()] == ["w0", "w1"]
