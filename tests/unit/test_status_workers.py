"""The workers in a job's status: who is shown, with which shards, and how they are."""

import os
import time
from pathlib import Path

import pytest

from batcher.heartbeats import Health, HeldShard, WorkerHeartbeat, WorkerState, heartbeat_path, utc_now, write_heartbeat
from batcher.jobdir import JobDir
from batcher.status import read_status
from tests.unit.job_files import make_job, ok, write_part


def give_sign(
    home: Path,
    name: str,
    *shards: tuple[str, int, int],
    state: WorkerState = WorkerState.WORKING,
    models: tuple[str, ...] = ("tiny",),
    age_s: float = 0.0,
    stalled_s: float = 0.0,
) -> None:
    """A worker's sign of life; `shards` are job id, shard and attempt."""
    held = tuple(HeldShard(*shard) for shard in shards)
    now = utc_now()
    write_heartbeat(home, WorkerHeartbeat(name, "host", 17, "0.1", models, now, now, state, 5.0, stalled_s, held))
    os.utime(heartbeat_path(home, name), (time.time() - age_s,) * 2)


@pytest.fixture
def running(tmp_path: Path) -> JobDir:
    """A job whose shard 0 has its part, 1 was claimed twice, 2 once, and 3 never."""
    job = make_job(tmp_path / "jobs" / "job", (1, 1, 1, 1))
    write_part(job, 0, [ok(0)])
    for shard in (1, 1, 2):
        job.claim_attempt(shard, worker="w")
    return job


def shards_by_worker(job: JobDir) -> dict[str, tuple[int, ...]]:
    return {worker.name: worker.shards for worker in read_status(job).workers}


def test_workers_are_shown_with_the_shards_they_hold_of_this_job(running: JobDir) -> None:
    root = running.path.parent
    give_sign(root, "a", ("job", 2, 1), ("job", 1, 2))
    give_sign(root, "b", ("other", 1, 2))
    give_sign(running.path, "own", state=WorkerState.LOADING)
    give_sign(root, "idle", state=WorkerState.IDLE)
    give_sign(root, "stranger", ("other", 1, 2), models=("large",))

    found = {worker.name: worker for worker in read_status(running).workers}

    assert list(found) == ["own", "a", "b", "idle"]
    assert {name: worker.shards for name, worker in found.items()} == {"own": (), "a": (1, 2), "b": (), "idle": ()}
    assert [name for name, worker in found.items() if worker.is_busy_elsewhere] == ["b"]
    assert {worker.health for worker in found.values()} == {Health.ALIVE}
    assert found["own"].state is WorkerState.LOADING


def test_health_of_workers_comes_from_the_age_and_the_state_of_their_signs(running: JobDir) -> None:
    root = running.path.parent
    give_sign(root, "gone", ("job", 1, 2), age_s=80)
    give_sign(root, "idle-and-gone", state=WorkerState.IDLE, age_s=80)
    give_sign(root, "stalled", ("job", 2, 1), state=WorkerState.STALLED, stalled_s=45, age_s=2)

    gone, stalled = read_status(running).workers

    assert (gone.name, gone.health, gone.shards) == ("gone", Health.GONE, (1,))
    assert gone.age_s == pytest.approx(80, abs=5)
    assert (stalled.name, stalled.health) == ("stalled", Health.STALLED)
    assert stalled.stalled_s == pytest.approx(47, abs=5)


def test_worker_that_is_gone_is_forgotten_when_somebody_else_has_its_shards(running: JobDir) -> None:
    give_sign(running.path.parent, "gone", ("job", 1, 2), ("job", 2, 1), age_s=80)
    assert shards_by_worker(running) == {"gone": (1, 2)}

    running.claim_attempt(1, worker="w2")
    assert shards_by_worker(running) == {"gone": (2,)}
    write_part(running, 2, [ok(2)])
    assert shards_by_worker(running) == {}


def test_shard_claimed_since_the_attempts_were_listed_is_held(running: JobDir) -> None:
    give_sign(running.path.parent, "w", ("job", 1, 3))

    assert shards_by_worker(running) == {"w": (1,)}


def test_cancelled_job_shows_only_who_still_holds_its_shards(running: JobDir) -> None:
    running.cancel()
    give_sign(running.path.parent, "idle", state=WorkerState.IDLE)
    give_sign(running.path.parent, "holder", ("job", 1, 2))

    assert shards_by_worker(running) == {"holder": (1,)}


def test_complete_job_has_no_workers(running: JobDir) -> None:
    give_sign(running.path.parent, "w", ("job", 1, 2))
    for shard in (1, 2, 3):
        write_part(running, shard, [ok(shard)])

    assert shards_by_worker(running) == {}


def test_job_that_is_the_working_directory_finds_the_workers_of_its_root(
    running: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_sign(running.path.parent, "w")
    monkeypatch.chdir(running.path)

    assert [worker.name for worker in read_status(JobDir(Path())).workers] == ["w"]
