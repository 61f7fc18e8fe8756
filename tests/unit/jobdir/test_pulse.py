"""What a health check makes of signs of life, read without pydantic."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batcher.jobdir.heartbeats import WorkerHeartbeat, heartbeat_path, workers_dir, write_heartbeat
from batcher.jobdir.pulse import WorkerState, read_pulses

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BEAT = WorkerHeartbeat("w1", "here", 17, "0.1.0", ("tiny",), NOW, NOW, WorkerState.WORKING, interval_s=5.0)


@pytest.mark.parametrize(("age_s", "is_gone"), [(0, False), (15, False), (15.1, True), (-15, False), (-16, True)])
def test_worker_that_missed_three_beats_is_gone(tmp_path: Path, age_s: float, is_gone: bool) -> None:
    write_heartbeat(tmp_path, BEAT)

    (pulse,) = read_pulses(tmp_path, host="here", now=NOW.timestamp() + age_s)

    assert (pulse.name, pulse.state) == ("w1", "working")
    assert pulse.age_s == pytest.approx(age_s)
    assert pulse.is_gone is is_gone


def test_workers_of_other_machines_and_files_that_are_no_signs_are_passed_over(tmp_path: Path) -> None:
    for beat in (replace(BEAT, name="w2"), BEAT, replace(BEAT, name="w3", host="elsewhere")):
        write_heartbeat(tmp_path, beat)
    for name, text in {"torn": '{"host": "here"', "list": "[]", "none": '{"host": "here", "name": "none"}'}.items():
        (workers_dir(tmp_path) / f"{name}.json").write_text(text)
    (workers_dir(tmp_path) / "deep.json").write_text("[" * 100_000)
    signed = heartbeat_path(tmp_path, "w1").read_text()
    (workers_dir(tmp_path) / "large.json").write_text(signed.replace('"w1"', '"large"') + " " * 300_000)
    (workers_dir(tmp_path) / "later.json").write_text(signed.replace('"w1"', '"later"').replace("working", "unheard"))
    (workers_dir(tmp_path) / "notes.txt").write_text("mine")

    found = read_pulses(tmp_path, host="here", now=NOW.timestamp())

    assert [pulse.name for pulse in found] == ["w1", "w2"]


def test_workers_of_one_name_are_both_found(tmp_path: Path) -> None:
    for instance in ("", "a1", "b2"):
        write_heartbeat(tmp_path, replace(BEAT, instance=instance))
    path = heartbeat_path(tmp_path, "w1", "a1")
    path.rename(path.with_name("w2~a1.json"))

    found = read_pulses(tmp_path, host="here", now=NOW.timestamp())

    assert [pulse.name for pulse in found] == ["w1", "w1"]


def test_folder_without_workers_has_none(tmp_path: Path) -> None:
    assert read_pulses(tmp_path / "none", host="here", now=0.0) == []
