"""The jobs of a jobs root in numbers."""

import shutil
from pathlib import Path

import pytest

from batcher.jobdir.folder import unset_success
from batcher.manage.status import Status, StatusReader
from batcher.server.census import FRESH_S, CensusTaker
from tests.support.clock import Clock
from tests.support.job_files import finished_job, make_job, ok, write_part


def test_jobs_shards_and_rows_are_counted_by_state(tmp_path: Path) -> None:
    done = finished_job(tmp_path / "done")
    half = make_job(tmp_path / "half", [2, 3])
    write_part(half, 0, [ok(0), ok(1)])

    census = CensusTaker(tmp_path).take()

    assert census.jobs["complete"] == 1
    assert sum(census.jobs.values()) == 2
    rows = done.manifest.num_rows + 5
    assert sum(census.rows.values()) == rows
    assert census.rows["pending"] == 3
    assert census.shards["committed"] == len(done.manifest.shards) + 1
    assert census.workers == ()


def test_numbers_are_kept_for_some_seconds(tmp_path: Path) -> None:
    clock = Clock()
    taker = CensusTaker(tmp_path, clock=clock)
    taker.take()

    finished_job(tmp_path / "done")

    assert taker.take().jobs["complete"] == 0
    clock.now += FRESH_S + 1
    assert taker.take().jobs["complete"] == 1


def test_complete_job_is_read_once_until_it_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, reads = Clock(), list[StatusReader]()
    read = StatusReader.read

    def counted(self: StatusReader) -> Status:
        reads.append(self)
        return read(self)

    monkeypatch.setattr(StatusReader, "read", counted)
    job = finished_job(tmp_path / "done")
    taker = CensusTaker(tmp_path, clock=clock)

    for _ in range(3):
        taker.take()
        clock.now += FRESH_S + 1
    assert len(reads) == 1

    unset_success(job)
    assert taker.take().jobs["complete"] == 0
    assert len(reads) == 2


def test_job_that_is_deleted_or_damaged_is_left_out(tmp_path: Path) -> None:
    clock = Clock()
    gone, damaged = finished_job(tmp_path / "gone"), finished_job(tmp_path / "damaged")
    taker = CensusTaker(tmp_path, clock=clock)
    assert taker.take().jobs["complete"] == 2

    shutil.rmtree(gone.path)
    damaged.manifest_path.write_text("{")
    clock.now += FRESH_S + 1

    assert sum(taker.take().jobs.values()) == 0


def test_empty_or_missing_jobs_root_has_nothing(tmp_path: Path) -> None:
    assert sum(CensusTaker(tmp_path / "none").take().jobs.values()) == 0
