"""The benchmarks run; what they measure is no matter of tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.conftest import PATIENCE_S, ROOT, clean_environment

#: Stands for a model that computes next to nothing.
TINY = "TINY"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["bench.throughput", "--workload", "uniform", "--sides", "loop,ours", "--scale", "0.05", "--repeats", "1"],
            "create_completion loop",
        ),
        (
            [
                "bench.serving",
                "--sides",
                "batcher serve",
                "--scale",
                "0.02",
                "--clients",
                "3",
                "--repeats",
                "1",
                "--model",
                TINY,
            ],
            "first token",
        ),
        (["bench.job", "--rows", "2", "--repeats", "1"], "bare engine"),
        (["bench.job", "--growth", "--growth-rows", "20", "--repeats", "1"], "peak RSS"),
        (["bench.submit", "--rows", "2000"], "bare pyarrow read"),
        (["bench.overhead", "--steps", "3", "--shape", "0"], "own share of a step"),
        (["bench.sampling", "--repeats", "1", "--rows", "1"], "peaked"),
        (["bench.labels", "--rows", "4", "--repeats", "1"], "scores"),
        (["bench.structured", "--rows", "4", "--repeats", "1", "--sides", "schema,free", "--model", TINY], "schema"),
    ],
)
def test_benchmark_prints_its_table(arguments: list[str], words: str, model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *(str(model) if each == TINY else each for each in arguments)],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout
    assert "|---" in done.stdout
