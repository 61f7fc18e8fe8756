"""`batcher health`: a line and an exit code, for little memory."""

import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batcher.jobdir.heartbeats import WorkerHeartbeat, write_heartbeat
from batcher.jobdir.pulse import WorkerState
from tests.support.redis_server import free_port
from tests.unit.conftest import Run

#: What takes tens of megabytes, in a container that may have hardly more than its worker takes.
HEAVY = ("pydantic", "redis", "pyarrow", "celery", "kombu", "numpy", "rich", "ssl")


def give_sign(name: str, state: WorkerState = WorkerState.IDLE, *, age_s: float = 0.0, host: str | None = None) -> None:
    beat_at = datetime.now(UTC) - timedelta(seconds=age_s)
    beat = WorkerHeartbeat(
        name, host or socket.gethostname(), 1, "0.1.0", ("tiny",), beat_at, beat_at, state, interval_s=5.0
    )
    Path("batcher-jobs").mkdir(exist_ok=True)
    write_heartbeat(Path("batcher-jobs"), beat)


def test_worker_and_broker_that_answer_are_well(run: Run, broker_url: str) -> None:
    give_sign("w1", WorkerState.WORKING)

    assert run(f"health --broker {broker_url}") == (0, "well: w1 working; the broker answers\n", "")
    assert run("health") == (0, "well: w1 working\n", "")


def test_no_sign_of_life_is_ill(run: Run, workplace: Path) -> None:
    here = socket.gethostname()
    give_sign("old", age_s=60)
    give_sign("elsewhere", host=f"not-{here}")

    for option in ("", " --alive"):
        code, out, _ = run(f"health{option}")
        assert (code, out) == (1, f"ill: no sign of life of a worker on {here} under batcher-jobs\n")


def test_a_worker_can_be_asked_for_by_name(run: Run, workplace: Path) -> None:
    give_sign("w1")

    assert run("health --name w1")[0] == 0
    assert run("health --name w2")[:2] == (
        1,
        f"ill: no sign of life of worker w2 on {socket.gethostname()} under batcher-jobs\n",
    )


@pytest.mark.parametrize("state", [WorkerState.LOADING, WorkerState.RESTARTING, WorkerState.STALLED])
def test_worker_without_an_engine_that_moves_is_ill_but_alive(run: Run, workplace: Path, state: WorkerState) -> None:
    give_sign("w1", state)

    assert run("health")[:2] == (1, f"ill: w1 {state}\n")
    assert run("health --alive")[:2] == (0, f"well: w1 {state}\n")


def test_broker_that_is_away_is_ill_but_no_reason_for_another_worker(run: Run, workplace: Path) -> None:
    give_sign("w1")
    url = f"redis://127.0.0.1:{free_port()}/0"

    code, out, _ = run(f"health --broker {url}")

    assert code == 1
    assert out == f"ill: w1 idle; broker {url}: cannot reach it: Connection refused\n"
    assert run(f"health --broker {url} --alive")[0] == 0


def test_nothing_large_is_imported(workplace: Path, broker_url: str) -> None:
    give_sign("w1")
    script = (
        "import sys; from batcher.cli import run_cli; code = run_cli(['health']); "
        f"sys.exit(code or str([name for name in {HEAVY} if name in sys.modules] or ''))"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "BATCHER_BROKER": broker_url},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.stderr.strip()) == ("well: w1 idle; the broker answers\n", "")
