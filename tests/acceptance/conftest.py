"""What a user does: commands, the example jobs, the real model."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from batcher.models.resolver import our_models

ROOT = Path(__file__).parents[2]

#: Seconds. A command that takes longer hangs.
PATIENCE_S = 900

#: Runs `batcher` with these arguments in the test's folder.
Batcher = Callable[..., "subprocess.CompletedProcess[str]"]


def clean_environment() -> dict[str, str]:
    """The environment of a new user: nothing of Batcher's own in it, and the commands of this .venv on PATH.

    But for the folder of profiles, which is the tests' own.
    """
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("BATCHER_") or name == "BATCHER_PROFILES_DIR"
    }
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return environment


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that none of them runs alone at the end. Also sorts fault tests."""
    first = ("test_readme.py", "test_equality.py", "test_chaos.py", "test_serving.py", "test_bench.py")
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@pytest.fixture
def batcher(tmp_path: Path) -> Batcher:
    def run(*arguments: object, stdin: bytes | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["batcher", *map(str, arguments)],
            cwd=tmp_path,
            env=clean_environment(),
            input=None if stdin is None else stdin.decode(),
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """Gemma 3 270M in Q4_K_M, as set-up for the tests has fetched it. It has no chat template."""
    path = ROOT / ".venv" / ".gemma" / "gemma-3-270m-q4_k_m.gguf"
    assert path.exists(), f"{path} is not there: `make test` fetches it"
    return path


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model, which `make` installs."""
    paths = [model.path for model in our_models() if model.name == "smollm2-135m"]
    assert paths, "no smollm2-135m: run make"
    return paths[0]
