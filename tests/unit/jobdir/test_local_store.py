"""The one primitive everything durable rests on: create if absent, whole or not at all."""

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from batcher.errors import StorageError
from batcher.jobdir import local_store
from batcher.jobdir.local_store import LOCAL

UMASK = os.umask(0o022)
os.umask(UMASK)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_first_writer_wins_and_the_second_changes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file"

    assert local_store.create_if_absent(target, b"first")
    assert not local_store.create_if_absent(target, b"second")

    assert target.read_bytes() == b"first"
    assert names_in(target.parent) == ["file"]


def test_of_many_writers_at_once_exactly_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "file"
    barrier = threading.Barrier(8)
    won: list[int] = []

    def write(number: int) -> None:
        barrier.wait()
        if local_store.create_if_absent(target, str(number).encode() * 1000):
            won.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert target.read_bytes() == str(won[0]).encode() * 1000
    assert names_in(tmp_path) == ["file"]


def test_file_and_folder_are_flushed_before_and_after_the_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    link, fsync = os.link, os.fsync

    def record_link(source: Path, target: Path) -> None:
        events.append("link")
        link(source, target)

    def record_fsync(descriptor: int) -> None:
        events.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")  # noqa: PTH112 (a descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "link", record_link)
    monkeypatch.setattr(os, "fsync", record_fsync)
    local_store.create_if_absent(tmp_path / "file", b"data")

    assert events == ["file", "link", "folder"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EPERM, errno.EXDEV, errno.EMLINK])
def test_disk_that_says_no_raises_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)

    with pytest.raises(StorageError, match=f"file: cannot create: {os.strerror(code)}"):
        local_store.create_if_absent(tmp_path / "file", b"data")
    assert names_in(tmp_path) == []


def test_disk_that_fills_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(self: Path, data: bytes) -> None:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)

    for write in (local_store.create_if_absent, local_store.replace):
        with pytest.raises(StorageError, match="No space left"):
            write(tmp_path / "file", b"data")
    assert names_in(tmp_path) == []


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match="file/sub: cannot create the folder"):
        local_store.create_if_absent(tmp_path / "file" / "sub" / "x", b"")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("act", [LOCAL.make_folder, LOCAL.delete_tree])
def test_folder_that_may_not_be_entered_is_named(tmp_path: Path, act: Callable[[Path], object]) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65_534)
            act(tmp_path / "closed" / "jobs")
        except StorageError as exc:
            os._exit(0 if "closed/jobs: cannot" in str(exc) else 1)
        finally:
            os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_link_that_leads_in_a_circle_is_an_error_of_the_listing(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")

    assert LOCAL.names(tmp_path) == ["loop"]
    with pytest.raises(StorageError, match=f"{tmp_path}: cannot list: Too many levels of symbolic links"):
        LOCAL.list(tmp_path)


def test_replace_swaps_the_content_whole(tmp_path: Path) -> None:
    target = tmp_path / "file"
    local_store.replace(target, b"one")
    local_store.replace(target, b"two")

    assert target.read_bytes() == b"two"
    assert names_in(tmp_path) == ["file"]


def test_delete_bears_a_file_already_gone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    local_store.delete(tmp_path / "file")
    local_store.delete(tmp_path / "file")
    local_store.delete(tmp_path / "nowhere" / "file")

    assert names_in(tmp_path) == []


def test_delete_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()

    with pytest.raises(StorageError, match="cannot delete"):
        local_store.delete(tmp_path / "folder")


def test_files_that_never_came_to_be_are_no_files(tmp_path: Path) -> None:
    unfinished = [local_store.temp_path(tmp_path / name) for name in ("x", "sub/y")]
    for path in (*unfinished, tmp_path / "part-00000.parquet"):
        path.touch()

    assert {entry.path for entry in LOCAL.leftovers(tmp_path)} == {*unfinished}
    assert [entry.path for entry in LOCAL.leftovers(tmp_path, is_deep=False)] == unfinished[:1]
    assert [entry.path.name for entry in LOCAL.list(tmp_path)] == ["part-00000.parquet"]
    assert LOCAL.names(tmp_path) == ["part-00000.parquet", "sub"]
    assert LOCAL.leftovers(tmp_path / "nowhere") == []


def test_loser_whose_temporary_file_was_swept_hears_that_it_lost(tmp_path: Path) -> None:
    target = tmp_path / "part-00000.parquet"
    temp = local_store.temp_path(target)
    temp.write_bytes(b"loser")
    local_store.create_if_absent(target, b"winner")
    temp.unlink()

    assert not local_store.publish_if_absent(temp, target)
    assert target.read_bytes() == b"winner"


def test_writer_whose_file_was_swept_before_anybody_wrote_it_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def write_and_lose(self: Path, data: bytes) -> None:
        write(self, data)
        self.unlink()

    monkeypatch.setattr(Path, "write_bytes", write_and_lose)

    for function in (local_store.create_if_absent, local_store.replace):
        with pytest.raises(StorageError, match=r"file: cannot .*: its folder was cleared meanwhile"):
            function(tmp_path / "file", b"data")
    (tmp_path / "file").touch()
    assert not local_store.create_if_absent(tmp_path / "file", b"data")
    local_store.replace(tmp_path / "file", b"data")


def test_link_whose_answer_was_lost_by_the_network_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)

    assert local_store.create_if_absent(tmp_path / "file", b"data")
    assert names_in(tmp_path) == ["file"]


class GoneError(Exception):
    pass


@pytest.mark.parametrize("num_answers", [0, 1])
def test_guard_is_asked_before_the_folder_is_made_and_before_the_name_appears(tmp_path: Path, num_answers: int) -> None:
    target = tmp_path / "folder" / "file"
    answers = iter([None] * num_answers)

    def guard() -> None:
        try:
            next(answers)
        except StopIteration:
            raise GoneError from None

    with pytest.raises(GoneError):
        local_store.create_if_absent(target, b"data", guard=guard)

    assert target.parent.exists() is (num_answers > 0)
    assert not target.parent.exists() or names_in(target.parent) == []


def test_guard_keeps_a_file_from_being_replaced(tmp_path: Path) -> None:
    target = tmp_path / "file"
    local_store.replace(target, b"one")

    def guard() -> None:
        raise GoneError

    with pytest.raises(GoneError):
        local_store.replace(target, b"two", guard=guard)
    assert target.read_bytes() == b"one"
    assert names_in(tmp_path) == ["file"]


def test_moved_file_has_only_its_new_name(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "sub" / "b"
    source.write_bytes(b"data")

    local_store.move(source, target)

    assert target.read_bytes() == b"data"
    assert names_in(tmp_path) == ["sub"]
    with pytest.raises(FileNotFoundError):
        local_store.move(source, target)


def test_file_moved_to_another_file_system_is_hidden_and_then_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "results" / "part", tmp_path / "damaged" / "part-1.parquet"
    source.parent.mkdir()
    source.write_bytes(b"data")
    rename = Path.rename

    def rename_within(self: Path, other: Path) -> Path:
        if self.parent != other.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", rename_within)

    local_store.move(source, target)

    assert target.read_bytes() == b"data"
    assert names_in(source.parent) == []


def test_file_that_cannot_be_moved_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()

    def refuse(self: Path, other: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", refuse)

    with pytest.raises(StorageError, match=r"a: cannot move to .*b: Read-only file system; make it writable"):
        local_store.move(tmp_path / "a", tmp_path / "b")


def test_temporary_names_are_hidden_from_dataset_readers(tmp_path: Path) -> None:
    temp = local_store.temp_path(tmp_path / "part-00000.parquet")

    assert temp.parent == tmp_path  # a hard link does not cross file systems
    assert temp.name.startswith(".")
    assert temp.suffix != ".parquet"
    assert not temp.exists()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "manifest.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()

    for read in (LOCAL.read, LOCAL.open, lambda path: LOCAL.tail(path, 8)):
        with pytest.raises(StorageError, match=r"manifest\.json: cannot read: it is a folder, a pipe or a device"):
            read(path)


@pytest.mark.parametrize(("mode", "is_closed"), [(0o1777, True), (0o777, False), (0o755, False)])
def test_new_folder_in_one_of_strangers_is_closed_to_them(tmp_path: Path, mode: int, is_closed: bool) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(mode)

    assert LOCAL.make_folder(shared / "jobs" / "nightly")
    assert not LOCAL.make_folder(shared / "jobs" / "nightly")

    usual = 0o777 & ~UMASK
    assert stat.S_IMODE((shared / "jobs").stat().st_mode) == (0o700 if is_closed else usual)
    assert stat.S_IMODE((shared / "jobs" / "nightly").stat().st_mode) == usual


def test_folder_that_is_there_keeps_its_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "jobs").mkdir(0o755)

    LOCAL.make_folder(tmp_path / "jobs" / "nightly")

    assert stat.S_IMODE((tmp_path / "jobs").stat().st_mode) == 0o755 & ~UMASK
