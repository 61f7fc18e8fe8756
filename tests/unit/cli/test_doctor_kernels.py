"""What `batcher doctor` says of llama.cpp's matrix kernels."""

import re

import pytest

from batcher.cli.doctor import Level
from batcher.cli.doctor import software as software_checks


def test_kernels_that_compute_what_they_should_are_named() -> None:
    check = software_checks.check_kernels()

    assert check.level is Level.OK
    assert re.search("as exact as the plain ones: .* for .*q4_0|only the plain ones", check.message)


@pytest.mark.parametrize(
    ("script", "level", "message", "remedy"),
    [
        ("import os; os.kill(os.getpid(), 11)", Level.FAIL, "die of signal SIGSEGV", "mno-amx-tile"),
        (
            "import json; print(json.dumps([[False, {'layout': 'AMX', 'types': ['q4_K'], 'worst': 'q4_K x 17'}]]))",
            Level.FAIL,
            "AMX computes q4_K x 17 rows wrong",
            "mno-amx-tile",
        ),
        ("raise SystemExit('no function ggml_init')", Level.WARN, "no function ggml_init", "llama.cpp first"),
        ("import time; time.sleep(60)", Level.WARN, "not compared after 0 s", "calm machine"),
    ],
)
def test_kernels_that_die_or_compute_something_else_fail(
    monkeypatch: pytest.MonkeyPatch, script: str, level: Level, message: str, remedy: str
) -> None:
    monkeypatch.setattr(software_checks, "_CHECK_KERNELS", script)
    if "sleep" in script:
        monkeypatch.setattr(software_checks, "IMPORT_TIMEOUT_S", 0.2)

    check = software_checks.check_kernels()

    assert check.level is level
    assert message in check.message
    assert remedy in check.remedy
