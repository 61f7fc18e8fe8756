"""Parts that went bad: found, moved aside and computed anew; never those that merely can't be read now."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from batcher.errors import CorruptFileError, JobError, StorageError
from batcher.jobdir import local_store
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import write_file
from batcher.jobdir.sealed import seal
from batcher.manage import repair as module
from batcher.manage.finish import finalize
from batcher.manage.repair import read_part, repair
from tests.support.damage import flip
from tests.support.job_files import failed, make_job, ok, result_table, write_part


@pytest.fixture
def job(job: JobDir) -> JobDir:
    finalize(job)
    return job


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[JobDir], None]] = {
    "cut": lambda job: put(job.part_path(1), job.part_path(1).read_bytes()[:-1]),
    "empty": lambda job: put(job.part_path(1), b""),
    "zeros": lambda job: put(job.part_path(1), bytes(5000)),
    "a bit in a page": lambda job: flip(job.part_path(1), 0.2),
    "a bit in the footer": lambda job: flip(job.part_path(1), 0.9),
    "another shard's": lambda job: put(job.part_path(1), seal_rows(10, 11, 12)),
    "another job's": lambda job: put(job.part_path(1), bytes(seal(result_table([ok(2)]).drop_columns("tags")))),
    "too few rows": lambda job: put(job.part_path(1), seal_rows(2, 3)),
}


def seal_rows(*rows: int) -> bytes:
    """The bytes of a part with these rows."""
    path = Path(__file__).parent / "never-written"
    written: list[bytes] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_store, "create_if_absent", lambda target, data, guard=None: written.append(bytes(data)))
        write_file(path, result_table([ok(row) for row in rows]))
    return written[0]


def test_sound_job_stays_as_it_is(job: JobDir) -> None:
    before = {path: path.stat().st_mtime_ns for path in job.path.rglob("*")}

    assert repair(job) == []
    assert {path: path.stat().st_mtime_ns for path in job.path.rglob("*")} == before


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_part_is_moved_aside_and_its_shard_pending(job: JobDir, what: str) -> None:
    DAMAGES[what](job)
    content = job.part_path(1).read_bytes()

    (damage,) = repair(job)

    assert [info.shard for info in job.pending_shards()] == [1] == [damage.info.shard]
    assert not job.is_complete
    assert not job.summary_path.exists()
    (moved,) = job.damaged_dir.iterdir()
    assert moved == damage.moved_to
    assert moved.read_bytes() == content
    assert str(damage).startswith(f"{job.part_path(1)}: ")
    assert str(damage).endswith(f"; moved to {moved}, its 3 rows are computed again")
    assert repair(job) == []


def test_job_is_complete_again_once_the_rows_are(job: JobDir) -> None:
    flip(job.part_path(0), 0.2)
    repair(job)

    write_part(job, 0, [ok(0), failed(1)])

    summary = finalize(job)
    assert summary is not None
    assert (summary.num_ok, summary.num_errors) == (4, 2)
    assert job.is_complete


def test_part_of_refused_rows_is_written_anew_at_once(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 2), models=["tiny", None])
    write_part(job, 0, [ok(0)])
    write_file(job.part_path(1), result_table([failed(1), failed(2)]))
    flip(job.part_path(1), 0.9)

    assert finalize(job) is None  # moves it aside
    assert job.pending_shards() == []
    assert finalize(job) is not None
    assert read_part(job, 1)["error_code"].to_pylist() == ["invalid_request"] * 2


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_part_that_cannot_be_read_now_is_not_moved(job: JobDir, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    opened = Path.open

    def fail(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name.startswith("part-"):
            raise OSError(code, "not now")
        return opened(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        with pytest.raises(StorageError, match=r"part-00000\.parquet: cannot read: not now") as raised:
            repair(job)

    assert raised.value.is_retriable
    assert job.is_complete
    assert repair(job) == []


def test_manifest_that_disagrees_with_shard_and_part_is_what_is_wrong(job: JobDir) -> None:
    first, *others = job.manifest.shards
    shards = (replace(first, num_rows=first.num_rows + 1, num_choices=first.num_choices + 1), *others)
    changed = replace(job.manifest, shards=shards, num_rows=job.manifest.num_rows + 1)
    job.manifest_path.unlink()
    job.create_manifest(changed)

    with pytest.raises(JobError, match=r"manifest\.json: damaged or changed \(it gives shard 0 3 rows"):
        repair(JobDir.open(job.path))

    assert job.pending_shards() == []


def test_committed_shard_needs_its_file_no_more(job: JobDir) -> None:
    job.shard_path(1).unlink()

    assert repair(job) == []


def test_part_computed_anew_between_the_look_and_the_move_is_put_back(
    job: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given two that find the same damage, when the first has had it mended, then the second does no harm."""
    whole = job.part_path(1).read_bytes()
    flip(job.part_path(1), 0.2)
    move_aside = module._move_aside

    def mend_and_move(*args: Any) -> object:
        local_store.replace(job.part_path(1), whole)
        return move_aside(*args)

    monkeypatch.setattr(module, "_move_aside", mend_and_move)

    assert repair(job) == []
    assert job.part_path(1).read_bytes() == whole
    assert list(job.damaged_dir.iterdir()) == []
    assert finalize(job) is not None


def test_part_that_somebody_else_has_moved_is_no_trouble(job: JobDir, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(job.part_path(1), 0.2)
    move_aside = module._move_aside

    def move_twice(*args: Any) -> object:
        assert move_aside(*args) is not None
        return move_aside(*args)

    monkeypatch.setattr(module, "_move_aside", move_twice)

    assert repair(job) == []
    assert [info.shard for info in job.pending_shards()] == [1]
    assert len(list(job.damaged_dir.iterdir())) == 1


def test_success_never_stands_beside_a_missing_part(job: JobDir, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(job.part_path(1), 0.2)
    move = local_store.move
    seen: list[bool] = []

    def look_and_move(source: Path, target: Path) -> None:
        seen.append(job.is_complete or job.summary_path.exists())
        move(source, target)

    monkeypatch.setattr(local_store, "move", look_and_move)
    repair(job)

    assert seen == [False]


def test_reader_of_a_damaged_part_is_told_what_mends_it(job: JobDir) -> None:
    flip(job.part_path(1), 0.2)

    with pytest.raises(CorruptFileError, match=r"part-00001\.parquet: .*`batcher resume .*/job` moves it aside"):
        read_part(job, 1)
