"""Uploaded files in the jobs root: they appear whole or not at all, and go when their time is over."""

import os
import time
from pathlib import Path

import pytest

from batcher.errors import InputError, StorageError
from batcher.server.batches.uploads import LEFTOVER_AGE_S, FileStore, StoredFile, Upload, as_label
from tests.support.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(time.time())


@pytest.fixture
def files(tmp_path: Path, clock: Clock) -> FileStore:
    return FileStore(tmp_path, clock=clock)


def put(files: FileStore, content: bytes = b"abc", *, expires_after_s: int | None = None) -> StoredFile:
    upload = files.begin()
    upload.write(content)
    return upload.commit(purpose="batch", filename="in.jsonl", expires_after_s=expires_after_s)


def content_of(files: FileStore, file_id: str) -> bytes:
    file = files.open(file_id)
    assert file is not None
    with file:
        return file.read()


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in (root / ".files").iterdir())


def test_upload_is_there_for_every_server_on_the_root_and_after_a_restart(tmp_path: Path, files: FileStore) -> None:
    stored = put(files, b"one\ntwo\n")

    other = FileStore(tmp_path)

    assert other.get(stored.id) == stored
    assert content_of(other, stored.id) == b"one\ntwo\n"
    assert other.list_files() == [stored]
    assert (stored.num_bytes, stored.purpose, stored.filename) == (8, "batch", "in.jsonl")


def test_file_that_is_not_committed_does_not_exist(tmp_path: Path, files: FileStore) -> None:
    upload = files.begin()
    upload.write(b"abc")

    assert files.list_files() == []
    upload.discard()

    assert folders(tmp_path) == []
    with pytest.raises(StorageError, match="discarded"):
        upload.write(b"more")


def test_discard_after_a_commit_does_nothing(files: FileStore) -> None:
    upload = files.begin()
    stored = upload.commit(purpose="batch", filename="in.jsonl")

    upload.discard()

    assert files.get(stored.id) == stored


@pytest.mark.parametrize(
    "file_id", ["file-../../etc", "file-0123", "x", "", "file-" + "0" * 24 + "\n", "../" + "0" * 24]
)
def test_id_that_is_none_reaches_no_path(files: FileStore, file_id: str) -> None:
    assert files.get(file_id) is None
    assert files.open(file_id) is None
    assert not files.delete(file_id)


def test_deleted_file_is_gone_for_other_servers_too(tmp_path: Path, files: FileStore) -> None:
    stored = put(files)
    other = FileStore(tmp_path)
    assert other.get(stored.id) is not None

    assert files.delete(stored.id)

    assert other.get(stored.id) is None
    assert not other.delete(stored.id)
    assert folders(tmp_path) == []


def test_file_whose_time_is_over_is_gone_and_a_sweep_frees_its_space(
    tmp_path: Path, files: FileStore, clock: Clock
) -> None:
    stored = put(files, expires_after_s=3600)
    stays = put(files)
    assert stored.expires_at == stored.created_at + 3600

    clock.now += 3601

    assert files.get(stored.id) is None
    assert files.sweep() == 1
    assert folders(tmp_path) == [stays.id]


def test_leftover_of_a_killed_upload_is_swept_after_a_day(tmp_path: Path, files: FileStore, clock: Clock) -> None:
    upload = files.begin()
    upload.write(b"abc")
    assert files.sweep() == 0

    clock.now += LEFTOVER_AGE_S + 60

    assert files.sweep() == 1
    assert folders(tmp_path) == []
    upload.discard()


def test_upload_that_still_grows_is_no_leftover(tmp_path: Path, files: FileStore, clock: Clock) -> None:
    upload = files.begin()
    clock.now += LEFTOVER_AGE_S + 60
    temp = next((tmp_path / ".files").glob("*/.tmp-*"))
    os.utime(temp, (clock.now, clock.now))

    assert files.sweep() == 0
    upload.discard()


def test_damaged_record_hides_one_file_only(tmp_path: Path, files: FileStore) -> None:
    damaged, sound = put(files), put(files)
    (tmp_path / ".files" / damaged.id / "meta.json").write_text("{")

    assert FileStore(tmp_path).list_files() == [sound]


@pytest.mark.parametrize(("purpose", "expires_after_s"), [("other", None), ("batch", 3599), ("batch", 2_592_001)])
def test_purpose_and_time_that_can_not_be_are_refused(
    files: FileStore, purpose: str, expires_after_s: int | None
) -> None:
    upload: Upload = files.begin()

    with pytest.raises(InputError):
        upload.commit(purpose=purpose, filename="x", expires_after_s=expires_after_s)
    upload.discard()

    assert files.list_files() == []


def test_name_is_a_label_and_no_path() -> None:
    assert as_label("../../etc/passwd") == "passwd"
    assert as_label("C:\\x\\a.jsonl") == "a.jsonl"
    assert as_label("a\nb\x00.jsonl") == "ab.jsonl"
    assert as_label("") == "upload"
    assert len(as_label("x" * 1000)) == 255
