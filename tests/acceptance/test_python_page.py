"""docs/python.md and the notebook are true: their code runs, top to bottom, on the real model."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import PATIENCE_S, ROOT, clean_environment

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def environment(tmp_path: Path, redis_url: str) -> Iterator[dict[str, str]]:
    """That of a program beside a worker of the broker."""
    environment = clean_environment() | {"BATCHER_BROKER": redis_url, "BATCHER_JOBS_DIR": str(tmp_path / "jobs")}
    worker = subprocess.Popen(
        ["batcher", "worker", "--model", "smollm2-135m", "--threads", "1"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield environment
    worker.terminate()
    worker.wait(60)


def test_every_block_of_the_page_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    """One program, as somebody types it who reads the page. What a comment says is printed is printed."""
    program = "\n".join(BLOCKS)
    (tmp_path / "page.py").write_text(program, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", "page.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    said = re.findall(r"^ *print\(\w+\)  # (.+)$", program, flags=re.MULTILINE)
    assert len(said) == 2
    assert [text for text in said if text.removesuffix("...") not in done.stdout] == []


def test_page_names_every_option_and_method() -> None:
    import batcher
    from batcher.api.options import RunOptions

    methods = {name for name in vars(batcher.Job) if not name.startswith("_")}

    assert {name for name in RunOptions.__annotations__ if f"`{name}`" not in PAGE} == set()
    assert {name for name in methods if f"job.{name}" not in PAGE} == set()
    errors = re.findall(r"`(\w+Error)`", PAGE)
    assert {name for name in errors if not hasattr(batcher.errors, name)} == {"TypeError", "TimeoutError"}
