"""Which worker is to drain: one instance, once, and nobody after it."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from batcher.jobdir.drains import ask_to_drain, drain_path, is_to_drain
from batcher.jobdir.heartbeats import (
    FORGET_AFTER_S,
    read_heartbeats,
    remove_heartbeat,
    sweep_heartbeats,
    write_heartbeat,
)
from tests.unit.jobdir.test_heartbeats import BEAT, NOW, give_sign

FIRST = replace(BEAT, instance="a1")


def test_one_instance_is_asked_once_and_no_other_of_its_name(tmp_path: Path) -> None:
    write_heartbeat(tmp_path, FIRST)

    assert [ask_to_drain(tmp_path, "w1", "a1"), ask_to_drain(tmp_path, "w1", "a1")] == [True, False]

    assert is_to_drain(tmp_path, "w1", "a1")
    assert not is_to_drain(tmp_path, "w1", "b2")
    assert not is_to_drain(tmp_path, "w2", "a1")
    assert [report.beat for report in read_heartbeats(tmp_path)] == [FIRST]


def test_worker_takes_the_wish_away_at_its_end(tmp_path: Path) -> None:
    write_heartbeat(tmp_path, FIRST)
    ask_to_drain(tmp_path, "w1", "a1")

    remove_heartbeat(tmp_path, "w1", "a1")

    assert not drain_path(tmp_path, "w1", "a1").exists()


def test_wish_is_swept_with_the_sign_of_who_died_before(tmp_path: Path) -> None:
    give_sign(tmp_path, at=NOW - timedelta(seconds=FORGET_AFTER_S + 1), beat=FIRST)
    give_sign(tmp_path, at=NOW, beat=replace(BEAT, instance="b2"))
    ask_to_drain(tmp_path, "w1", "a1")
    ask_to_drain(tmp_path, "w1", "b2")

    sweep_heartbeats(tmp_path, now=NOW)

    assert not is_to_drain(tmp_path, "w1", "a1")
    assert is_to_drain(tmp_path, "w1", "b2")
