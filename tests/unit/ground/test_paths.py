"""What `~` means in front of a path, and whose a folder is."""

import os
import tempfile
from pathlib import Path

import pytest

from batcher.errors import InputError, StorageError
from batcher.paths import expand_home, temp_folder, whose


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "meant"),
    [("~", "/home/somebody"), (Path("~/a"), "/home/somebody/a"), ("~/a/", "/home/somebody/a/"), ("a/~", "a/~")],
)
def test_home_stands_for_a_tilde_in_front(given: str | Path, meant: str) -> None:
    assert expand_home(given) == meant


def test_unknown_users_home_is_refused_and_a_file_of_that_name_is_not(home: Path) -> None:
    with pytest.raises(InputError, match=r"~nobody-here/a: the home folder of ~nobody-here is not known"):
        expand_home("~nobody-here/a")

    (home / "~nobody-here").mkdir()
    assert expand_home("~nobody-here/a") == "~nobody-here/a"


def test_path_that_is_not_there_is_whose_its_folder_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    owner = tmp_path.stat()

    assert whose(tmp_path / "none" / "deeper") == (
        f"{tmp_path} is of user {owner.st_uid}, group {owner.st_gid}, mode 750, "
        f"and this is user {os.geteuid()}, group {os.getegid()}"
    )


def test_no_place_for_temporary_files_is_said_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])

    with pytest.raises(StorageError, match="--tmpfs /tmp"):
        temp_folder()
