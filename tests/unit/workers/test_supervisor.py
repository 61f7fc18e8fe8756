"""The parent of a worker's child, with small real processes in the child's place."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from batcher.errors import BatcherError, ModelError
from batcher.jobdir.attempts import Cause, Outcome, read_ends
from batcher.jobdir.drains import ask_to_drain
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import read_heartbeats
from batcher.jobdir.pulse import WorkerState
from batcher.types import EngineConfig
from tests.support.clock import Clock
from tests.support.job_files import make_job
from workers.process.events import Beat, EngineLoad, Event, EventKind, OpenAttempt, WorkerConfig
from workers.process.launch import launch_child
from workers.process.lines import decode, encode
from workers.process.supervisor import (
    MAX_CRASHES,
    MAX_CRASHES_WITHOUT_ROW,
    MAX_EARLY_CRASHES,
    Supervisor,
    WorkerCrashedError,
    end_idle,
    stop_all,
)


def make_config(home: Path) -> WorkerConfig:
    return WorkerConfig(
        name="w1",
        models=(("tiny", "/m/tiny.gguf"),),
        broker_url="redis://:pw@h/0",
        jobs_root="/jobs",
        home=str(home),
        grace_s=8.0,
        engine=EngineConfig(num_slots=3),
    )


#: Before each script: `say` sends an event, `stay` lives on.
PRELUDE = """
import json, os, signal, sys, time
def say(kind, message="", exit_code=3, **more):
    more = {"attempt": None, "beat": None} | more
    print(json.dumps({"kind": kind, "message": message, "exit_code": exit_code} | more), flush=True)
def beat(steps, is_busy=True):
    say("beat", beat={"steps": [steps], "is_busy": [is_busy], "longest_step_s": 0.1})
def stay():
    time.sleep(60)
"""


class Nursery:
    """Starts supervisors and ends their children."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.supervisors: list[Supervisor] = []
        self.failures: list[str] = []
        self.deaths: list[str] = []
        self.loaded: list[str] = []

    def start(
        self,
        script: str,
        *,
        on_death: Callable[[], None] = lambda: None,
        spares: list[subprocess.Popen[bytes]] | None = None,
    ) -> Supervisor:
        def note_death(process: str) -> None:
            self.deaths.append(process)
            on_death()

        supervisor = Supervisor(
            self.config,
            on_shard_failure=self.failures.append,
            on_death=note_death,
            on_loaded=self.loaded.append,
            command=(sys.executable, "-c", PRELUDE + script),
            spares=spares,
            # So that no restart is waited for.
            clock=Clock(step_s=100),
        )
        self.supervisors.append(supervisor)
        supervisor.start()
        return supervisor


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    nursery = Nursery(make_config(tmp_path))
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


def test_config_survives_its_way_to_the_child(tmp_path: Path) -> None:
    # A folder whose name is no UTF-8.
    config = replace(make_config(tmp_path), jobs_root="/jobs/\udcff", model_sha256=(("tiny", "0" * 64),))

    assert decode(WorkerConfig, encode(config)) == config


def test_child_gets_its_config_on_stdin_and_not_on_its_command_line(nursery: Nursery, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"line = sys.stdin.readline(); open({str(seen)!r}, 'w').write(line); say('loaded'); say('ready'); stay()"

    supervisor = nursery.start(script)
    poll_until(supervisor, lambda: supervisor.is_ready)

    config = decode(WorkerConfig, seen.read_bytes())
    assert config == replace(nursery.config, process=config.process)
    assert config.process


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
    supervisor = nursery.start("say('loaded'); say('ready'); sys.exit(9)")

    with pytest.raises(WorkerCrashedError, match=f"died {MAX_CRASHES} times .* exit code 9"):
        poll_forever(supervisor)

    assert len(set(nursery.deaths)) == MAX_CRASHES, "each child has an id of its own"
    assert not supervisor.is_running


def test_child_that_never_becomes_ready_is_soon_given_up(nursery: Nursery) -> None:
    supervisor = nursery.start("say('loaded'); sys.exit(9)")

    with pytest.raises(WorkerCrashedError, match="exit code 9"):
        poll_forever(supervisor)

    assert len(nursery.deaths) == MAX_EARLY_CRASHES


def test_saved_rows_between_deaths_start_the_count_anew(nursery: Nursery) -> None:
    supervisor = nursery.start("say('loaded'); say('progress'); sys.exit(9)")

    poll_until(supervisor, lambda: len(nursery.deaths) == MAX_CRASHES + 2)


def test_rows_set_aside_between_deaths_help_for_long_but_not_for_ever(nursery: Nursery) -> None:
    supervisor = nursery.start("say('loaded'); say('ready'); say('set aside'); sys.exit(9)")

    with pytest.raises(WorkerCrashedError, match=f"died {MAX_CRASHES_WITHOUT_ROW} times"):
        poll_until(supervisor, lambda: False, timeout_s=60)

    assert len(nursery.deaths) == MAX_CRASHES_WITHOUT_ROW


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


def claim(job: JobDir) -> str:
    """A line of script by which the child claims an attempt of the job's first shard."""
    attempt = {"job": str(job.path), "shard": 0, "attempt": job.claim_attempt(0, worker="w1")}
    return f"say('claimed', attempt={attempt!r});"


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    return make_job(tmp_path / "job", (1,))


@pytest.mark.parametrize(("has_shard", "num_deaths"), [(False, 1), (True, 2)])
def test_model_whose_loading_ends_the_process_is_left_out_and_no_row_is_blamed(
    nursery: Nursery, job: JobDir, tmp_path: Path, caplog: pytest.LogCaptureFixture, has_shard: bool, num_deaths: int
) -> None:
    """Given others that are computed meanwhile, only a second death is held against the model."""
    seen = tmp_path / "seen"
    work = claim(job) if has_shard else ""
    script = (
        f"config = json.loads(sys.stdin.readline()); open({str(seen)!r}, 'w').write(json.dumps(config)); "
        f"say('loaded'); say('ready'); fatal = config['fatal_models']; stay() if fatal else None; {work} "
        "say('loading', 'good'); say('loading'); say('loading', 'huge'); os.kill(os.getpid(), signal.SIGSEGV)"
    )

    supervisor = nursery.start(script)

    poll_until(supervisor, lambda: '"huge"' in (seen.read_text() if seen.exists() else ""))
    assert {(end.cause, end.detail) for end in read_ends(job, 0)} <= {(Cause.KILLED, "signal SIGSEGV")}
    assert bool(read_ends(job, 0)) is has_shard
    assert json.loads(seen.read_text())["fatal_models"] == ["huge"]
    assert len(nursery.deaths) == num_deaths
    assert "its process died while it loaded huge" in caplog.text
    # A run ends by it, which would wait for the shards of that model.
    (failure,) = nursery.failures
    assert "(signal SIGSEGV); that model is left out" in failure


def test_model_that_is_loaded_when_others_stand_still_is_not_blamed(
    nursery: Nursery, job: JobDir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = tmp_path / "seen"
    script = (
        f"config = json.loads(sys.stdin.readline()); open({str(seen)!r}, 'a').write(json.dumps(config) + chr(10)); "
        f"say('loaded'); say('ready'); {claim(job)} beat(7); say('loading', 'huge'); time.sleep(0.2); beat(7); stay()"
    )

    supervisor = nursery.start(script)

    poll_until(supervisor, lambda: seen.exists() and len(seen.read_text().splitlines()) == 2)
    assert read_ends(job, 0)[0].cause is Cause.STALLED
    assert json.loads(seen.read_text().splitlines()[1])["fatal_models"] == []
    assert "engines that were loaded before stood still" in caplog.text
    assert nursery.failures == []


def test_asked_worker_drains_and_says_so_until_its_child_has_no_shard_left(nursery: Nursery, job: JobDir) -> None:
    home = Path(nursery.config.home)
    go_on = home / "go on"
    supervisor = nursery.start(
        f"sys.stdin.readline(); say('loaded'); say('ready'); {claim(job)} order = sys.stdin.readline()\n"
        f"while not os.path.exists({str(go_on)!r}): time.sleep(0.01)\n"
        "say('drained' if order == 'drain\\n' else 'refused', order); stay()"
    )
    poll_until(supervisor, lambda: supervisor.holds_shards)
    (report,) = read_heartbeats(home)
    assert report.beat.state is WorkerState.WORKING

    ask_to_drain(home, "w1", report.beat.instance)
    poll_until(supervisor, lambda: read_heartbeats(home)[0].beat.state is WorkerState.DRAINING)
    assert not supervisor.is_drained

    go_on.touch()
    poll_until(supervisor, lambda: supervisor.is_drained)
    assert supervisor.is_running


def test_worker_that_has_no_model_yet_is_drained_at_once(nursery: Nursery) -> None:
    supervisor = nursery.start("say('loading', 'tiny'); stay()")

    supervisor.drain()

    assert supervisor.is_drained


def test_child_that_dies_while_it_drains_has_no_successor_and_its_shards_go_to_others(
    nursery: Nursery, job: JobDir
) -> None:
    supervisor = nursery.start(
        f"sys.stdin.readline(); say('loaded'); say('ready'); {claim(job)} sys.stdin.readline(); os._exit(5)"
    )
    poll_until(supervisor, lambda: supervisor.holds_shards)

    supervisor.drain()
    poll_until(supervisor, lambda: supervisor.is_drained)

    assert len(nursery.deaths) == 1
    assert [end.detail for end in read_ends(job, 0)] == ["exit code 5"]
    for _ in range(3):
        supervisor.poll()
    assert not supervisor.is_running


def test_supervisor_takes_a_spare_first_and_launches_its_successor(nursery: Nursery, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f"line = sys.stdin.readline(); open({str(seen)!r}, 'w').write(line); say('loaded'); say('ready'); "
    spare = launch_child((sys.executable, "-c", PRELUDE + script + "os.kill(os.getpid(), signal.SIGKILL)"))

    supervisor = nursery.start("say('loaded'); say('ready'); stay()", spares=[spare])

    poll_until(supervisor, lambda: bool(nursery.deaths))
    assert spare.returncode == -signal.SIGKILL
    assert '"w1"' in seen.read_text()
    poll_until(supervisor, lambda: supervisor.is_ready)


def test_only_children_without_a_shard_are_ended_unasked(nursery: Nursery, job: JobDir) -> None:
    idle = nursery.start("say('loaded'); say('ready'); stay()")
    busy = nursery.start(f"say('loaded'); say('ready'); {claim(job)} stay()")
    poll_until(idle, lambda: idle.is_ready)
    poll_until(busy, lambda: busy.holds_shards)

    left = end_idle([idle, busy])

    assert left == [busy]
    assert not idle.is_running
    assert busy.is_running
    assert nursery.deaths == []


@pytest.mark.parametrize(
    ("death", "cause", "detail"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", Cause.FAULT, "signal SIGSEGV"),
        ("os.abort()", Cause.FAULT, "signal SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGKILL)", Cause.KILLED, "signal SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGTERM)", Cause.KILLED, "signal SIGTERM"),
        ("os._exit(5)", Cause.KILLED, "exit code 5"),
    ],
)
def test_crash_is_recorded_with_its_cause_before_the_death_is_told(
    nursery: Nursery, job: JobDir, death: str, cause: Cause, detail: str
) -> None:
    known: list[int] = []
    supervisor = nursery.start(
        f"import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0)); say('loaded'); {claim(job)} {death}",
        on_death=lambda: known.append(len(read_ends(job, 0))),
    )

    poll_until(supervisor, lambda: bool(known))

    assert known == [1]
    (end,) = read_ends(job, 0)
    assert (end.outcome, end.cause, end.detail, end.worker) == (Outcome.CRASHED, cause, detail, "w1")
    report = read_heartbeats(Path(nursery.config.home))[0].beat
    assert (report.num_crashes, report.last_crash) == (1, detail)


def test_attempt_that_ended_before_the_death_is_no_crash(nursery: Nursery, job: JobDir) -> None:
    script = f"say('loaded'); {claim(job)} {claim(job).replace('claimed', 'ended')} os._exit(5)"
    supervisor = nursery.start(script.replace("'attempt': 2", "'attempt': 1"))

    poll_until(supervisor, lambda: bool(nursery.deaths))

    assert read_ends(job, 0) == []


def test_child_whose_engine_stands_still_is_ended(nursery: Nursery, job: JobDir) -> None:
    nursery.config = replace(nursery.config, stall_timeout_s=50)
    script = f"say('loaded'); say('ready'); {claim(job)} [(beat(7), time.sleep(0.001)) for _ in range(99999)]"
    supervisor = nursery.start(script)

    poll_until(supervisor, lambda: bool(nursery.deaths))

    (end,) = read_ends(job, 0)
    assert end.cause is Cause.STALLED
    assert end.detail.startswith("no progress for")


def test_child_whose_engine_moves_lives_on(nursery: Nursery) -> None:
    nursery.config = replace(nursery.config, stall_timeout_s=50)
    supervisor = nursery.start("say('loaded'); [(beat(i), time.sleep(0.001)) for i in range(400)]; sys.exit(9)")

    poll_until(supervisor, lambda: bool(nursery.deaths))

    assert read_heartbeats(Path(nursery.config.home))[0].beat.last_crash == "exit code 9"


def test_child_killed_while_loading_is_tried_again_a_few_times(nursery: Nursery) -> None:
    supervisor = nursery.start("os.kill(os.getpid(), signal.SIGKILL)")

    with pytest.raises(ModelError, match="signal SIGKILL"):
        poll_forever(supervisor)

    assert len(nursery.deaths) == MAX_EARLY_CRASHES


def test_orderly_end_leaves_no_sign_of_life(nursery: Nursery) -> None:
    supervisor = nursery.start("say('loaded'); say('ready'); stay()")
    poll_until(supervisor, lambda: supervisor.is_ready)
    assert read_heartbeats(Path(nursery.config.home))[0].beat.state is WorkerState.IDLE

    stop_all([supervisor], grace_s=20)

    assert read_heartbeats(Path(nursery.config.home)) == []


def test_sign_of_life_says_how_many_slots_are_taken(nursery: Nursery) -> None:
    load = "{'num_slots': 4, 'num_running': 3, 'num_completion_tokens': 7}"
    busy = f"say('beat', beat={{'steps': [1], 'is_busy': [True], 'longest_step_s': 0.1, 'loads': [{load}]}})"
    supervisor = nursery.start(f"say('loaded'); {busy}; say('ready'); stay()")

    poll_until(supervisor, lambda: supervisor.is_ready)

    found = read_heartbeats(Path(nursery.config.home))[0].beat
    assert (found.num_running, found.num_slots) == (3, 4)


def test_event_survives_its_way_to_the_parent() -> None:
    for event in (
        Event(EventKind.READY),
        Event(EventKind.FAILED, "disk full\n", 2),
        Event(EventKind.CLAIMED, attempt=OpenAttempt("/jobs/a", 3, 2)),
        Event(EventKind.BEAT, beat=Beat((1, 2), (True, False), 0.5, (EngineLoad(4, 3), None))),
    ):
        line = encode(event)
        assert line.count(b"\n") == 1
        assert decode(Event, line) == event


def test_how_the_engines_were_set_up_is_passed_on(nursery: Nursery) -> None:
    supervisor = nursery.start("say('loaded', 'tiny: 32 slots'); say('ready'); stay()")

    poll_until(supervisor, lambda: supervisor.is_ready)

    assert nursery.loaded == ["tiny: 32 slots"]
