"""Deletion of a job: its own files and no others, finished where it was interrupted, final for who still writes."""

from pathlib import Path

import pytest

from batcher.errors import JobError, StorageError
from batcher.jobdir import local_store
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import workers_dir
from batcher.jobdir.results import write_file
from batcher.manage import delete as removal
from batcher.manage.delete import can_be_deleted, delete_job
from tests.support.crashing import ProcessDiedError, die_before
from tests.support.job_files import finished_job, make_job, ok, result_table, write_chunk


def make_full_job(path: Path) -> JobDir:
    """A job with a file of every kind."""
    job = finished_job(path)
    write_chunk(job, 0, [ok(0)])
    job.cancel()
    job.pause()
    for extra in (job.damaged_dir / "part-00000-x.parquet", workers_dir(path) / "w1.json", path / ".tmp-abc"):
        extra.parent.mkdir(exist_ok=True)
        extra.touch()
    return job


def test_job_is_gone_with_all_that_is_its_own(tmp_path: Path) -> None:
    job = make_full_job(tmp_path / "job")

    assert delete_job(job) == []

    assert not job.path.exists()
    assert not can_be_deleted(job)
    with pytest.raises(JobError, match="the folder is gone"):
        delete_job(job)


def test_files_of_others_are_left_and_named(tmp_path: Path) -> None:
    job = make_full_job(tmp_path / "job")
    (job.path / "notes.txt").touch()
    (job.path / "mine").mkdir()

    assert delete_job(job) == ["mine", "notes.txt"]

    assert sorted(path.name for path in job.path.iterdir()) == ["mine", "notes.txt"]
    with pytest.raises(JobError, match="no job here"):
        delete_job(job)


@pytest.mark.parametrize("content", ["", "[]", '{"batch": 3}', "{", '{"batch_id": "x"}'])
def test_folder_of_another_with_a_file_of_that_name_is_no_batch(tmp_path: Path, content: str) -> None:
    (tmp_path / "batch.json").write_text(content)

    assert not can_be_deleted(JobDir(tmp_path))
    with pytest.raises(JobError, match="no job here"):
        delete_job(JobDir(tmp_path))
    assert (tmp_path / "batch.json").read_text() == content


def test_link_is_deleted_and_not_what_it_leads_to(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    job.results_dir.symlink_to(elsewhere)

    delete_job(job)

    assert not job.path.exists()
    assert (elsewhere / "precious").exists()


@pytest.mark.parametrize("num_steps", range(10))
def test_deletion_that_dies_anywhere_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_steps: int
) -> None:
    job = make_full_job(tmp_path / "job")

    with monkeypatch.context() as patch:
        die_before(patch, num_steps, [(removal, "_remove"), (local_store, "delete")])
        with pytest.raises(ProcessDiedError):
            delete_job(job)

    assert not job.exists()
    assert can_be_deleted(job)
    assert delete_job(JobDir(job.path)) == []
    assert not job.path.exists()


def test_writer_that_had_not_heard_of_the_deletion_does_not_bring_the_job_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a writer behind its guard, when its file appears in a folder just removed, then that goes as well."""
    job = make_full_job(tmp_path / "job")
    remove = removal._remove
    late = [job.chunk_path(0, attempt=9, uid="ab", sequence=number) for number in (1, 2)]

    def remove_and_write(job: JobDir, path: Path) -> bool:
        is_gone = remove(job, path)
        if path.name == "chunks" and late:
            write_file(late.pop(), result_table([ok(0)]))
        return is_gone

    monkeypatch.setattr(removal, "_remove", remove_and_write)

    assert delete_job(job) == []
    assert late == []
    assert not job.path.exists()


def test_file_that_comes_just_before_the_folder_goes_is_not_taken_for_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_full_job(tmp_path / "job")
    delete = local_store.delete
    late = [workers_dir(job.path)]

    def write_and_delete(path: Path) -> None:
        if late:
            late.pop().mkdir()
        delete(path)

    monkeypatch.setattr(local_store, "delete", write_and_delete)

    assert delete_job(job) == []
    assert not job.path.exists()


def test_writer_that_goes_on_for_ever_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_full_job(tmp_path / "job")
    monkeypatch.setattr(removal, "PATIENCE_S", 0.1)
    monkeypatch.setattr(removal, "_remove", lambda job, path: True)

    with pytest.raises(StorageError, match="is there again and again; stop who writes it"):
        delete_job(job)
