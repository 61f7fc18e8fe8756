"""The API is typed: mypy --strict accepts a user's program as it should be, and finds what is wrong with another."""

import subprocess
import sys

import pytest

PROGRAM = """
from pathlib import Path
from typing import reveal_type

import batcher


def main(tickets: list[dict[str, object]]) -> int:
    job = batcher.run(tickets, Path("out"), model=["a.gguf", "b=b.gguf"], max_tokens=3, stop=["x"], threads=2)
    reveal_type(job)
    reveal_type(job.status().eta_s)
    reveal_type(job.wait(progress=True, timeout=3.5).summary().num_errors)
    for row in job.errors():
        reveal_type(row)
    try:
        job.export("a.jsonl", format="openai")
        batcher.submit(["a.jsonl", "b.parquet"], model="a", seed=None).retry(error_code="timeout")
    except batcher.errors.JobError as exc:
        reveal_type(exc.is_retriable)
    except batcher.BatcherError:
        pass
    return len(batcher.open("out").results())
"""

MISTAKES = """
import batcher

batcher.run(7, "out")
batcher.run("a.jsonl", "out", max_tokens="3")
batcher.run("a.jsonl", "out", max_token=3)
batcher.submit("a.jsonl", slots=3)
batcher.open("out").export("a.csv", format="xml")
batcher.nothing
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of each program, in a folder that sees Batcher as it is installed."""
    folder = tmp_path_factory.mktemp("typing")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "mistakes.py").write_text(MISTAKES)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", "cache", "program.py", "mistakes.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    return {name: [line for line in lines if line.startswith(name)] for name in ("program.py", "mistakes.py")}


def test_program_of_a_user_is_typed(said: dict[str, list[str]]) -> None:
    assert [line for line in said["program.py"] if "error:" in line] == []
    assert [line.partition('type is "')[2].rstrip('"') for line in said["program.py"]] == [
        "batcher.api.job.Job",
        "float | None",
        "int",
        "dict[str, Any]",
        "bool",
    ]


def test_mistakes_of_a_user_are_found(said: dict[str, list[str]]) -> None:
    lines = [int(line.split(":")[1]) for line in said["mistakes.py"] if "error:" in line]

    assert lines == [4, 5, 6, 7, 8, 9], said["mistakes.py"]
