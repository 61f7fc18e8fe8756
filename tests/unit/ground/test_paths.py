"""What `~` means in front of a path."""

from pathlib import Path

import pytest

from batcher.errors import InputError
from batcher.paths import expand_home


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
