"""Signs of life: what is written, and what a reader makes of their age."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from batcher.errors import InputError, StorageError
from batcher.jobdir import heartbeats, local_store
from batcher.jobdir.heartbeats import (
    FORGET_AFTER_S,
    Health,
    HeldShard,
    WorkerHeartbeat,
    heartbeat_path,
    read_heartbeats,
    remove_heartbeat,
    sweep_heartbeats,
    workers_dir,
    write_heartbeat,
)
from batcher.jobdir.pulse import WorkerState

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BEAT = WorkerHeartbeat(
    name="w1",
    host="host",
    pid=17,
    version="0.1.0",
    models=("tiny", "other"),
    started_at=NOW - timedelta(hours=1),
    beat_at=NOW,
    state=WorkerState.WORKING,
    interval_s=5.0,
    shards=(HeldShard("job", 3, 1), HeldShard("job", 4, 2)),
    num_crashes=2,
    last_crash="signal SIGSEGV",
)


def give_sign(home: Path, *, at: datetime, beat: WorkerHeartbeat = BEAT) -> Path:
    """A sign of life that the file system stamps with the time `at`."""
    write_heartbeat(home, beat)
    path = heartbeat_path(home, beat.name, beat.instance)
    os.utime(path, (at.timestamp(),) * 2)
    return path


def healths(home: Path, *, now: datetime | None = None) -> dict[str, Health]:
    return {report.beat.name: report.health for report in read_heartbeats(home, now=now)}


def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path: Path) -> None:
    for number in range(3):
        write_heartbeat(tmp_path, replace(BEAT, num_crashes=number))
    write_heartbeat(tmp_path, replace(BEAT, name="w0"))

    reports = read_heartbeats(tmp_path)

    assert [report.beat for report in reports] == [replace(BEAT, name="w0"), BEAT]
    assert [report.health for report in reports] == [Health.ALIVE] * 2
    assert sorted(path.name for path in workers_dir(tmp_path).iterdir()) == ["w0.json", "w1.json"]


def test_home_without_workers_has_none(tmp_path: Path) -> None:
    assert read_heartbeats(tmp_path / "nowhere") == []
    workers_dir(tmp_path).write_text("a file")
    assert read_heartbeats(tmp_path) == []
    assert sweep_heartbeats(tmp_path) == 0


def test_worker_is_gone_after_three_of_its_own_intervals(tmp_path: Path) -> None:
    give_sign(tmp_path, at=NOW)
    give_sign(tmp_path, at=NOW, beat=replace(BEAT, name="slow", interval_s=20.0))
    give_sign(tmp_path, at=NOW, beat=replace(BEAT, name="hasty", interval_s=0.2))

    def after(seconds: float) -> dict[str, Health]:
        return healths(tmp_path, now=NOW + timedelta(seconds=seconds))

    assert after(4.9) == {"hasty": Health.ALIVE, "w1": Health.ALIVE, "slow": Health.ALIVE}
    assert after(14.9) == {"hasty": Health.GONE, "w1": Health.ALIVE, "slow": Health.ALIVE}
    assert after(15.1) == {"hasty": Health.GONE, "w1": Health.GONE, "slow": Health.ALIVE}
    assert after(60.1) == {"hasty": Health.GONE, "w1": Health.GONE, "slow": Health.GONE}
    assert {report.age_s for report in read_heartbeats(tmp_path, now=NOW + timedelta(seconds=80))} == {80.0}


def test_stalled_worker_stalls_on_between_two_signs_until_it_is_gone(tmp_path: Path) -> None:
    give_sign(tmp_path, at=NOW, beat=replace(BEAT, state=WorkerState.STALLED, stalled_s=41.0))

    (report,) = read_heartbeats(tmp_path, now=NOW + timedelta(seconds=4))
    assert (report.health, report.stalled_s) == (Health.STALLED, 45.0)
    (report,) = read_heartbeats(tmp_path, now=NOW + timedelta(seconds=16))
    assert (report.health, report.stalled_s) == (Health.GONE, 0.0)


# -- one name for several -----------------------------------------------------------------------------------------


def test_two_workers_of_one_name_show_both_and_one_that_leaves_leaves_the_other(tmp_path: Path) -> None:
    first, second = replace(BEAT, instance="a1", pid=17), replace(BEAT, instance="b2", pid=18)
    write_heartbeat(tmp_path, first)
    write_heartbeat(tmp_path, second)
    # Of an older version.
    write_heartbeat(tmp_path, BEAT)

    assert [report.beat for report in read_heartbeats(tmp_path)] == [BEAT, first, second]
    remove_heartbeat(tmp_path, "w1", "a1")
    remove_heartbeat(tmp_path, "w1")
    assert [report.beat for report in read_heartbeats(tmp_path)] == [second]


def test_who_died_is_not_shown_beside_one_that_took_its_name_and_is_swept(tmp_path: Path) -> None:
    for number, age_s in enumerate([90, 60, 30, 1]):
        give_sign(tmp_path, at=NOW - timedelta(seconds=age_s), beat=replace(BEAT, instance=f"i{number}"))
    give_sign(tmp_path, at=NOW - timedelta(seconds=90), beat=replace(BEAT, name="dead", instance="i1"))
    give_sign(tmp_path, at=NOW - timedelta(seconds=60), beat=replace(BEAT, name="dead", instance="i0"))

    shown = read_heartbeats(tmp_path, now=NOW)

    assert [(report.beat.name, report.beat.instance) for report in shown] == [("dead", "i0"), ("w1", "i3")]
    assert sweep_heartbeats(tmp_path, now=NOW) == 4
    assert [report.beat for report in read_heartbeats(tmp_path, now=NOW)] == [report.beat for report in shown]


def test_sign_under_the_file_name_of_another_is_passed_over(tmp_path: Path) -> None:
    write_heartbeat(tmp_path, replace(BEAT, instance="a1"))
    path = heartbeat_path(tmp_path, "w1", "a1")
    path.rename(heartbeat_path(tmp_path, "w1", "b2"))

    assert read_heartbeats(tmp_path) == []


# -- clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skew", [timedelta(days=-1), timedelta(days=1), timedelta(days=-2000)])
def test_clock_of_a_worker_does_not_matter(tmp_path: Path, skew: timedelta) -> None:
    moment = datetime.now(UTC) + skew
    write_heartbeat(tmp_path, replace(BEAT, started_at=moment, beat_at=moment))

    assert healths(tmp_path) == {"w1": Health.ALIVE}


@pytest.mark.parametrize("skew_s", [-86400.0, -60.0, 60.0, 86400.0])
def test_clock_of_a_reader_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew_s: float) -> None:
    """Given a reader whose clock is wrong, then the file system's own time says who is alive and who is gone."""
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + skew_s)
    write_heartbeat(tmp_path, BEAT)
    give_sign(tmp_path, at=datetime.now(UTC) - timedelta(hours=3), beat=replace(BEAT, name="old"))

    assert healths(tmp_path) == {"old": Health.GONE, "w1": Health.ALIVE}
    assert read_heartbeats(tmp_path)[0].age_s == pytest.approx(3 * 3600, abs=60)
    assert sorted(path.name for path in workers_dir(tmp_path).iterdir()) == ["old.json", "w1.json"]


def test_reader_writes_nothing_where_all_look_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_heartbeat(tmp_path, BEAT)
    monkeypatch.setattr(heartbeats, "_store_time", lambda folder, store, newest: pytest.fail("asked the file system"))

    assert healths(tmp_path) == {"w1": Health.ALIVE}


@pytest.mark.parametrize(("skew_s", "health"), [(0.0, Health.ALIVE), (-86400.0, Health.ALIVE), (86400.0, Health.GONE)])
def test_reader_that_may_not_write_has_to_trust_its_clock_but_against_later_stamps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew_s: float, health: Health
) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + skew_s)
    write_heartbeat(tmp_path, BEAT)
    # Root may write everywhere, but not into a folder that is not there.
    monkeypatch.setattr(local_store, "TEMP_PREFIX", "nowhere/")

    assert healths(tmp_path) == {"w1": health}


def test_stamp_of_the_future_is_nobodys_sign(tmp_path: Path) -> None:
    """Given the clock was set back by a day, then a worker that lives is back with its next sign, a dead one not."""
    give_sign(tmp_path, at=datetime.now(UTC) + timedelta(days=1))
    give_sign(tmp_path, at=datetime.now(UTC) + timedelta(days=1), beat=replace(BEAT, name="dead"))
    assert healths(tmp_path) == {"dead": Health.GONE, "w1": Health.GONE}

    write_heartbeat(tmp_path, BEAT)

    assert healths(tmp_path) == {"dead": Health.GONE, "w1": Health.ALIVE}


# -- files that are none ------------------------------------------------------------------------------------------


def change(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text(path.read_text() + " " * 300_000),
        lambda path: path.rename(path.with_name("w2.json")),
        lambda path: path.rename(path.with_name("-w1.json")),
        lambda path: (path.unlink(), path.mkdir()),
        become_a_pipe,
        change('"interval_s": 5.0', '"interval_s": 0'),
        change('"interval_s": 5.0', '"interval_s": 1e300'),
        change('"stalled_s": 0.0', '"stalled_s": NaN'),
        change('"num_crashes": 2', '"num_crashes": -1'),
        change('"state": "working"', '"state": "asleep"'),
        change('"shard": 3', '"shard": -3'),
    ],
)
def test_file_that_is_no_sign_of_life_is_passed_over(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    write_heartbeat(tmp_path, replace(BEAT, name="other"))
    write_heartbeat(tmp_path, BEAT)
    damage(heartbeat_path(tmp_path, "w1"))

    assert healths(tmp_path) == {"other": Health.ALIVE}


# -- writing, removing, sweeping ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "../w1", "a/b", ".hidden", "w 1", "w\n1"])
def test_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="worker name"):
        write_heartbeat(tmp_path, replace(BEAT, name=name))
    with pytest.raises(InputError, match="worker name"):
        remove_heartbeat(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_disk_that_says_no_is_named(tmp_path: Path) -> None:
    workers_dir(tmp_path).write_text("a file")
    with pytest.raises(StorageError, match=r"\.workers"):
        write_heartbeat(tmp_path, BEAT)

    workers_dir(tmp_path).unlink()
    heartbeat_path(tmp_path, "w1").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"w1\.json: cannot write"):
        write_heartbeat(tmp_path, BEAT)
    assert [path.name for path in workers_dir(tmp_path).iterdir()] == ["w1.json"]


def test_worker_that_takes_leave_is_no_longer_listed(tmp_path: Path) -> None:
    write_heartbeat(tmp_path, BEAT)
    for _ in range(2):
        remove_heartbeat(tmp_path, "w1")
    remove_heartbeat(tmp_path / "nowhere", "w1")

    assert read_heartbeats(tmp_path) == []


def test_sweep_deletes_what_is_gone_for_a_day_and_nothing_of_others(tmp_path: Path) -> None:
    moment = datetime.now(UTC)
    folder = workers_dir(tmp_path)
    for name, age_s in (("old", FORGET_AFTER_S + 60), ("young", FORGET_AFTER_S - 60), ("alive", 0)):
        give_sign(tmp_path, at=moment - timedelta(seconds=age_s), beat=replace(BEAT, name=name))
    for name, text in ((".tmp-left", "{"), (".tmp-new", "{"), ("empty.json", ""), ("notes.json", "{}"), ("notes", "")):
        (folder / name).write_text(text)
        if name != ".tmp-new":
            os.utime(folder / name, (moment.timestamp() - FORGET_AFTER_S - 60,) * 2)

    assert sweep_heartbeats(tmp_path) == 3
    assert sweep_heartbeats(tmp_path) == 0

    assert sorted(path.name for path in folder.iterdir()) == [
        *(".tmp-new", "alive.json", "notes", "notes.json", "young.json")
    ]


def test_sweep_does_not_trust_the_clock_of_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 10 * FORGET_AFTER_S)
    give_sign(tmp_path, at=datetime.now(UTC))

    assert sweep_heartbeats(tmp_path) == 0
