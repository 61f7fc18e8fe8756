"""Draining: who is meant, what is said where that is not clear, and how the end of it is told."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from batcher.errors import InputError
from batcher.jobdir.drains import is_to_drain
from batcher.jobdir.heartbeats import WorkerHeartbeat, heartbeat_path, remove_heartbeat, utc_now, write_heartbeat
from batcher.jobdir.pulse import WorkerState
from batcher.manage.drain import drain, wait_until_ended


def give_sign(home: Path, name: str, instance: str, *, host: str = "host", age_s: float = 0.0) -> WorkerHeartbeat:
    now = utc_now()
    beat = WorkerHeartbeat(name, host, 17, "0.1", ("tiny",), now, now, WorkerState.WORKING, 5.0, instance=instance)
    write_heartbeat(home, beat)
    os.utime(heartbeat_path(home, name, instance), (time.time() - age_s,) * 2)
    return beat


def test_worker_is_asked_by_its_name_and_twice_is_no_error(tmp_path: Path) -> None:
    give_sign(tmp_path, "w1", "a1")
    give_sign(tmp_path, "w2", "b2")

    assert [each.is_new for each in drain(tmp_path, "w1") + drain(tmp_path, "w1")] == [True, False]

    assert is_to_drain(tmp_path, "w1", "a1")
    assert not is_to_drain(tmp_path, "w2", "b2")


def test_all_workers_of_a_host_are_asked_unless_one_has_its_name(tmp_path: Path) -> None:
    give_sign(tmp_path, "w1", "a1", host="gpu")
    give_sign(tmp_path, "w2", "b2", host="gpu")
    give_sign(tmp_path, "w3", "c3", host="other")

    assert [each.beat.name for each in drain(tmp_path, "gpu")] == ["w1", "w2"]

    give_sign(tmp_path, "gpu", "d4", host="other")
    assert [each.beat.name for each in drain(tmp_path, "gpu")] == ["gpu"]


def test_of_several_of_one_name_the_choice_is_named(tmp_path: Path) -> None:
    give_sign(tmp_path, "w1", "a1")
    give_sign(tmp_path, "w1", "b2", host="gpu")

    with pytest.raises(InputError, match=r"2 workers have that name; give one of w1~a1 \(on host, .*w1~b2 \(on gpu"):
        drain(tmp_path, "w1")
    assert not is_to_drain(tmp_path, "w1", "a1")

    assert [each.beat.instance for each in drain(tmp_path, "w1~b2")] == ["b2"]
    assert not is_to_drain(tmp_path, "w1", "a1")


def test_worker_started_later_under_a_drained_name_is_not_meant(tmp_path: Path) -> None:
    give_sign(tmp_path, "w1", "a1")
    drain(tmp_path, "w1")
    remove_heartbeat(tmp_path, "w1", "a1")
    give_sign(tmp_path, "w1", "b2")

    assert not is_to_drain(tmp_path, "w1", "b2")


def test_who_is_not_there_is_told_from_who_is_gone_and_the_living_are_named(tmp_path: Path) -> None:
    give_sign(tmp_path, "w1", "a1")
    give_sign(tmp_path, "dead", "b2", age_s=60)

    with pytest.raises(InputError, match=r"nobody: no worker of .*; alive: w1 \(on host, pid 17\)$"):
        drain(tmp_path, "nobody")
    with pytest.raises(InputError, match="dead: gone: it has given no sign of life for 60 s"):
        drain(tmp_path, "dead")
    with pytest.raises(InputError, match=r"alive: none$"):
        drain(tmp_path / "empty", "w1")


def test_worker_that_knows_no_draining_is_left_to_signals(tmp_path: Path) -> None:
    give_sign(tmp_path, "old", "")

    with pytest.raises(
        InputError,
        match=r"older Batcher \(0.1\), which can't drain; end it with SIGTERM",
    ):
        drain(tmp_path, "old")


def test_end_is_told_from_a_death(tmp_path: Path) -> None:
    beats = [give_sign(tmp_path, "w1", "a1"), give_sign(tmp_path, "w2", "b2"), give_sign(tmp_path, "w3", "c3")]
    remove_heartbeat(tmp_path, "w1", "a1")

    def pause(seconds: float) -> None:
        if heartbeat_path(tmp_path, "w2", "b2").exists():
            remove_heartbeat(tmp_path, "w2", "b2")
        else:
            give_sign(tmp_path, "w3", "c3", age_s=60)

    ended = wait_until_ended(tmp_path, [*beats, replace(beats[0])], pause=pause)

    assert [(beat.name, is_orderly) for beat, is_orderly in ended] == [("w1", True), ("w2", True), ("w3", False)]
