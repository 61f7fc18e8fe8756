"""Functions of the user's, found by name in whatever folder their module is."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batcher.errors import InputError, JobError
from workers.shard.validators import ValidatorRef, check_name, find_validator, load_validator, name_validator


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a module, a package and one that fails."""
    (tmp_path / "own_checks.py").write_text("def is_good(answer):\n    return answer == 'good'\n\nvalue = 3\n")
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package/__init__.py").write_text("")
    (tmp_path / "own_package/deep.py").write_text("class Rules:\n    @staticmethod\n    def all(answer): ...\n")
    (tmp_path / "own_failing.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["own_checks:is_good", "own_package.deep:Rules.all"])
def test_functions_are_found_in_the_working_directory_and_named_with_it(folder: Path, name: str) -> None:
    assert find_validator(name) == ValidatorRef(name, str(folder))
    assert callable(load_validator(ValidatorRef(name, str(folder))))


def test_functions_that_are_installed_are_found_where_they_are(folder: Path) -> None:
    import pydantic

    assert find_validator("pydantic:create_model").folder == str(Path(pydantic.__file__).parents[1])


@pytest.mark.parametrize("name", ["", "own_checks", "own_checks:", "a b:c", "own_checks:is-good"])
def test_names_of_no_function_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="name a function as module:function"):
        check_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_nothing:f", "No module named 'own_nothing'"),
        ("own_checks:is_bad", "has no attribute 'is_bad'"),
        ("own_checks:value", "is no function"),
        ("own_failing:f", "division by zero"),
    ],
)
def test_what_is_not_there_is_told(folder: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_validator(name)
    with pytest.raises(JobError, match=message):
        load_validator(ValidatorRef(name, str(folder)))


def test_modules_that_processes_of_ours_go_without_are_there_for_a_validator(folder: Path) -> None:
    (folder / "own_frames.py").write_text("import pandas\ndef check(answer): pandas.DataFrame([answer])\n")
    program = (
        "from batcher.startup import start_fast; start_fast()\n"
        "from workers.shard.validators import find_validator, load_validator\n"
        "load_validator(find_validator('own_frames:check'))({'a': 1})"
    )

    subprocess.run([sys.executable, "-P", "-c", program], check=True, timeout=120)


def test_functions_that_other_processes_find_have_a_name() -> None:
    assert name_validator(check_name) == "workers.shard.validators:check_name"


def test_functions_that_no_other_process_finds_are_refused() -> None:
    def local(answer: object) -> None:
        """Is not called."""

    for function in (local, lambda answer: True, object()):
        with pytest.raises(InputError, match="put the function into a module"):
            name_validator(function)
