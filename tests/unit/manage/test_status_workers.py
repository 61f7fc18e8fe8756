"""The workers in a job's status: who is shown, with which shards, and how they are."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from batcher.cli.unserved import is_at_rest, warn_of_unserved
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import Health, HeldShard, WorkerHeartbeat, heartbeat_path, utc_now, write_heartbeat
from batcher.jobdir.pulse import WorkerState
from batcher.manage.speedometer import LEAST_SPAN_S
from batcher.manage.status import StatusReader, read_status
from tests.support.clock import Clock
from tests.support.job_files import failed, make_job, ok, write_chunk, write_part
from tests.support.submitted import write_lines
from tests.unit.conftest import Run


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


@pytest.mark.parametrize("halt", [JobDir.cancel, JobDir.pause])
def test_cancelled_and_paused_jobs_show_only_who_still_holds_their_shards(
    running: JobDir, halt: Callable[[JobDir], object]
) -> None:
    halt(running)
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


# -- models that nobody serves ------------------------------------------------------------------------------------


@pytest.fixture
def mixed(tmp_path: Path) -> JobDir:
    """A job of two models and a refused row; of the second model one row of three is done."""
    job = make_job(tmp_path / "jobs" / "job", (2, 3, 1), models=["tiny", "large", None])
    write_part(job, 2, [failed(5)])
    for shard in (0, 1):
        job.claim_attempt(shard, worker="w")
    write_chunk(job, 1, [ok(2)])
    return job


def test_rows_of_a_model_that_no_living_worker_has_are_counted_and_there_is_no_eta(mixed: JobDir) -> None:
    root = mixed.path.parent
    assert read_status(mixed).unserved_models == {"large": 2, "tiny": 2}
    give_sign(root, "a", models=("tiny", "other"))
    give_sign(root, "gone", models=("large",), age_s=80)

    found = read_status(mixed)

    assert (found.unserved_models, found.served_models) == ({"large": 2}, ("other", "tiny"))
    assert found.rows_per_s > 0
    assert found.eta_s is None


@pytest.mark.parametrize("state", [WorkerState.LOADING, WorkerState.STALLED, WorkerState.RESTARTING])
def test_worker_that_lives_serves_its_models_whatever_it_does(mixed: JobDir, state: WorkerState) -> None:
    give_sign(mixed.path, "own", state=state, models=("large", "tiny"))

    found = StatusReader(mixed, clock=Clock(time.time() + LEAST_SPAN_S)).read()

    assert found.unserved_models == {}
    assert found.eta_s is not None


@pytest.mark.parametrize(
    ("state", "age_s", "unserved"),
    [
        (WorkerState.DRAINING, 0, {"large": 2}),
        (WorkerState.STOPPING, 0, {"large": 2, "tiny": 2}),
        (WorkerState.DRAINING, 80, {"large": 2, "tiny": 2}),
    ],
)
def test_rows_that_a_draining_worker_finishes_wait_for_nobody(
    mixed: JobDir, state: WorkerState, age_s: float, unserved: dict[str, int]
) -> None:
    give_sign(mixed.path.parent, "w", ("job", 0, 1), state=state, age_s=age_s)

    found = read_status(mixed)

    assert (found.unserved_models, found.served_models) == (unserved, ())
    assert is_at_rest(found) == bool(age_s)


def test_nothing_is_unserved_once_nothing_is_to_be_done(mixed: JobDir) -> None:
    mixed.cancel()
    assert read_status(mixed).unserved_models == {}
    mixed.unhalt()
    write_part(mixed, 0, [ok(0), ok(1)])
    write_part(mixed, 1, [ok(2), ok(3), ok(4)])
    assert read_status(mixed).unserved_models == {}


def test_submit_names_the_model_that_no_worker_has(run: Run, broker_url: str, tmp_path: Path) -> None:
    """Given a worker with one model, when rows ask for two, then the other is named with the line that starts it."""
    write_lines(tmp_path / "p.jsonl", {"prompt": "a", "model": "large"}, {"prompt": "b"}, {"prompt": "c"})
    line = f"submit p.jsonl --model tiny --broker {broker_url} --jobs-dir jobs"
    code, out, none = run(f"{line} --job-id first --quiet")
    give_sign(tmp_path / "jobs", "w")
    _, _, other = run(f"{line} --job-id second --quiet")
    give_sign(tmp_path / "jobs", "w", models=("large", "tiny"))
    _, _, all_served = run(f"{line} --job-id third --quiet")

    assert (code, out) == (0, "first\n")
    command = f"  batcher worker --model large=PATH --broker {broker_url} --jobs-dir {tmp_path / 'jobs'}\n"
    assert none == (
        f"Warning: 1 row waits for the model large, and no worker is alive; start one with:\n{command}"
        f"Warning: 2 rows wait for the model tiny, and no worker is alive; start one with:\n"
        f"{command.replace('large', 'tiny')}"
    )
    assert other == (
        "Warning: 1 row waits for the model large, which no worker has that is alive (they have tiny); start one "
        f"with:\n{command}"
    )
    assert all_served == ""


def test_password_of_the_broker_is_not_in_the_line_that_starts_a_worker(
    mixed: JobDir, capsys: pytest.CaptureFixture[str]
) -> None:
    warn_of_unserved(mixed, "redis://user:secret@host:6379/0")

    err = capsys.readouterr().err
    assert f"batcher worker --model large=PATH --jobs-dir {mixed.path.parent}\n" in err
    assert "secret" not in err
