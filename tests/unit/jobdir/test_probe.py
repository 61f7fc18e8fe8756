"""Whether a folder takes jobs is tried, and said with the remedy. More in tests/unit/cli/test_doctor.py."""

import errno
import os
import re
from pathlib import Path

import pytest

from batcher.errors import InputError
from batcher.jobdir.probe import check_takes_jobs, probe


def test_folder_that_takes_jobs_is_left_as_it_was(tmp_path: Path) -> None:
    found = probe(tmp_path / "new" / "jobs")

    assert (found.problem, found.remedy) == ("", "")
    assert abs(found.clock_skew_s) < 1
    assert list(tmp_path.iterdir()) == []


def test_folder_of_somebody_else_is_said_with_both_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As root, whom the tests may run as, nothing is forbidden.
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    tmp_path.chmod(0o755)
    user, group = os.geteuid(), os.getegid()

    with pytest.raises(InputError) as caught:
        check_takes_jobs(tmp_path)

    message = str(caught.value)
    assert message.startswith(f"--jobs-dir {tmp_path}: cannot write: Permission denied; ")
    assert f"is of user {user}, group {group}, mode 755, and this is user {user}, group {group}" in message
    assert f"`install -d -o {user} -g {group} FOLDER`" in message


def test_place_that_is_a_file_is_no_folder_for_jobs(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("")

    assert re.search("Not a directory|File exists", probe(tmp_path / "jobs").problem)
