"""The parent of a worker's child, with small real processes in the child's place."""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from batcher.errors import BatcherError, ModelError
from workers.supervisor import (
    MAX_CRASHES,
    Supervisor,
    WorkerConfig,
    WorkerCrashedError,
    describe_exit,
    stop_all,
)

CONFIG = WorkerConfig(
    name="w1",
    models=(("tiny", "/m/tiny.gguf"),),
    broker_url="redis://:pw@h/0",
    jobs_root="/jobs",
    grace_s=8.0,
    num_slots=3,
)

#: Before each script: `say` sends an event, `stay` lives on.
PRELUDE = """
import json, os, signal, sys, time
def say(kind, message="", exit_code=3):
    print(json.dumps({"kind": kind, "message": message, "exit_code": exit_code}), flush=True)
def stay():
    time.sleep(60)
"""


class Clock:
    """Leaps ahead at each look, so that no restart is waited for."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 100
        return self.now


class Nursery:
    """Starts supervisors and ends their children."""

    def __init__(self) -> None:
        self.supervisors: list[Supervisor] = []
        self.failures: list[str] = []
        self.deaths: list[str] = []

    def start(self, script: str) -> Supervisor:
        supervisor = Supervisor(
            CONFIG,
            on_shard_failure=self.failures.append,
            on_death=self.deaths.append,
            command=(sys.executable, "-c", PRELUDE + script),
            clock=Clock(),
        )
        self.supervisors.append(supervisor)
        supervisor.start()
        return supervisor


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    for supervisor in nursery.supervisors:
        supervisor.kill()


def poll_until(supervisor: Supervisor, condition: Callable[[], bool], *, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        supervisor.poll()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def poll_forever(supervisor: Supervisor) -> None:
    poll_until(supervisor, lambda: False)


def test_config_survives_its_way_to_the_child() -> None:
    assert WorkerConfig.from_json(CONFIG.to_json()) == CONFIG


def test_child_gets_its_config_on_stdin_and_not_on_its_command_line(nursery: Nursery, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"line = sys.stdin.readline(); open({str(seen)!r}, 'w').write(line); say('loaded'); say('ready'); stay()"

    supervisor = nursery.start(script)
    poll_until(supervisor, lambda: supervisor.is_ready)

    assert WorkerConfig.from_json(seen.read_bytes()) == CONFIG


def test_child_that_dies_while_loading_blames_the_model(nursery: Nursery) -> None:
    supervisor = nursery.start("os.kill(os.getpid(), signal.SIGSEGV)")

    with pytest.raises(ModelError, match=r"/m/tiny.gguf: .* while loading it \(signal SIGSEGV\)"):
        poll_forever(supervisor)


@pytest.mark.parametrize(("exit_code", "kind"), [(2, ModelError), (3, BatcherError)])
def test_child_that_refuses_gives_its_reason(nursery: Nursery, exit_code: int, kind: type[BatcherError]) -> None:
    supervisor = nursery.start(f"say('refused', 'no such file', {exit_code}); sys.exit(3)")

    with pytest.raises(kind, match="no such file") as caught:
        poll_forever(supervisor)

    assert caught.value.exit_code == exit_code


def test_dead_child_is_replaced_until_it_has_died_too_often_in_a_row(nursery: Nursery) -> None:
    supervisor = nursery.start("say('loaded'); sys.exit(9)")

    with pytest.raises(WorkerCrashedError, match=f"died {MAX_CRASHES} times .* exit code 9"):
        poll_forever(supervisor)

    assert nursery.deaths == ["w1"] * MAX_CRASHES
    assert not supervisor.is_running


def test_saved_rows_between_deaths_start_the_count_anew(nursery: Nursery) -> None:
    supervisor = nursery.start("say('loaded'); say('progress'); sys.exit(9)")

    poll_until(supervisor, lambda: len(nursery.deaths) == MAX_CRASHES + 2)


def test_failed_shard_is_passed_on_and_the_child_lives(nursery: Nursery) -> None:
    supervisor = nursery.start("say('loaded'); say('failed', 'shard 3 of x: disk full'); stay()")

    poll_until(supervisor, lambda: bool(nursery.failures))

    assert nursery.failures == ["shard 3 of x: disk full"]
    assert supervisor.is_running


def test_many_events_at_once_arrive_whole(nursery: Nursery) -> None:
    supervisor = nursery.start("[say('failed', str(i) * 9000) for i in range(30)]; stay()")

    poll_until(supervisor, lambda: len(nursery.failures) == 30)

    assert nursery.failures == [str(i) * 9000 for i in range(30)]


def test_child_that_obeys_is_not_killed(nursery: Nursery, tmp_path: Path) -> None:
    done = tmp_path / "done"
    script = f"signal.signal(signal.SIGTERM, lambda *_: (open({str(done)!r}, 'w'), sys.exit(0))); say('ready'); stay()"
    supervisor = nursery.start(script)
    poll_until(supervisor, lambda: supervisor.is_ready)

    stop_all([supervisor], grace_s=20)

    assert done.exists()
    assert not supervisor.is_running


def test_child_that_does_not_obey_is_killed_after_the_grace_period(nursery: Nursery) -> None:
    supervisors = [nursery.start("signal.signal(signal.SIGTERM, signal.SIG_IGN); say('ready'); stay()") for _ in "ab"]
    for supervisor in supervisors:
        poll_until(supervisor, partial(getattr, supervisor, "is_ready"))

    started_at = time.monotonic()
    stop_all(supervisors, grace_s=0.3)

    assert 0.3 <= time.monotonic() - started_at < 5
    assert not any(supervisor.is_running for supervisor in supervisors)


def test_urgent_stop_does_not_wait(nursery: Nursery) -> None:
    supervisor = nursery.start("signal.signal(signal.SIGTERM, signal.SIG_IGN); say('ready'); stay()")
    poll_until(supervisor, lambda: supervisor.is_ready)

    started_at = time.monotonic()
    stop_all([supervisor], grace_s=60, is_urgent=lambda: True)

    assert time.monotonic() - started_at < 5
    assert not supervisor.is_running


def test_exit_is_told_in_words() -> None:
    assert describe_exit(1) == "exit code 1"
    assert describe_exit(-9) == "signal SIGKILL"
    assert describe_exit(-200) == "signal 200"
