"""The lock on a job's folder: one command at a time, and none on a folder that is another by now."""

import errno
import threading
from pathlib import Path

import pytest

from batcher.errors import JobError, StorageError
from batcher.jobdir import local_store
from batcher.jobdir.folder import JobDir
from batcher.jobdir.lock import exclusive


def test_second_command_is_refused_until_the_first_is_done(tmp_path: Path) -> None:
    job = JobDir(tmp_path)

    with (
        exclusive(job) as is_locked,
        pytest.raises(JobError, match=r"another command .* is changing this job; wait until it is done"),
        exclusive(JobDir(tmp_path), patience_s=0),
    ):
        pytest.fail("two had the lock")

    assert is_locked
    with exclusive(job, patience_s=0):
        pass


def test_command_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    job = JobDir(tmp_path)
    has_lock, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with exclusive(job):
            has_lock.set()
            assert may_end.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert has_lock.wait(30)
    threading.Timer(0.1, may_end.set).start()

    with exclusive(job, patience_s=30) as is_locked:
        assert is_locked
    holder.join()


def test_lock_is_of_the_folder_that_is_there_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a holder that removed the folder, when another made it anew, then the lock is on the new one."""
    job = JobDir(tmp_path / "job")
    job.path.mkdir()
    opened = local_store._open_folder

    def open_and_replace(folder: Path) -> int:
        descriptor = opened(folder)
        monkeypatch.setattr(local_store, "_open_folder", opened)
        job.path.rmdir()
        job.path.mkdir()
        return descriptor

    monkeypatch.setattr(local_store, "_open_folder", open_and_replace)

    with (
        exclusive(job),
        pytest.raises(JobError, match="is changing this job"),
        exclusive(job, patience_s=0),
    ):
        pytest.fail("two had the lock")


def test_folder_that_is_gone_or_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JobError, match="the folder is gone"), exclusive(JobDir(tmp_path / "nowhere")):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match="is not a folder"), exclusive(JobDir(tmp_path / "file")):
        pass

    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(StorageError, match="cannot open the folder: Permission denied"), exclusive(JobDir(tmp_path)):
        pass


def test_file_system_without_locks_is_borne_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)

    with exclusive(JobDir(tmp_path)) as is_locked:
        assert not is_locked
