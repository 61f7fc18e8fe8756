"""Fixtures of the tests that run commands."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from batcher.cli import run_cli

#: Runs a command line; gives its exit code, stdout and stderr.
Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is an empty folder, and no option comes from the environment."""
    for name in list(os.environ):
        if name.startswith("BATCHER_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_line(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_cli(shlex.split(line))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_line
