"""A minute of honest clients and attackers on one server, as CI runs it; and that its verdict can fail."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench.soak import GRACE_S, MAX_RSS_BYTES, Report
from bench.soaking.honest import KINDS
from bench.soaking.meter import Reading
from tests.acceptance.conftest import PATIENCE_S, ROOT, clean_environment


def test_a_minute_of_attacks_fails_nobody_honest_and_leaves_nothing_behind(tmp_path: Path) -> None:
    soak = subprocess.run(
        [sys.executable, "-m", "bench.soak", "--minutes", "1", "--seed", "1", "--keep", str(tmp_path / "soak")],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert soak.returncode == 0, f"{soak.stdout}\n{soak.stderr}"
    assert "Nobody honest was failed, and nothing has grown." in soak.stdout


def passed() -> Report:
    """What a soak comes to that has passed."""
    report = Report(readings=[Reading(4, 300 << 20, 40, 30), Reading(4, 310 << 20, 41, 30)])
    for kind in KINDS:
        report.tally.note_done(kind)
    return report


def grow(**more: int) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        second = report.readings[1]
        report.readings[1] = replace(second, **{name: getattr(second, name) + number for name, number in more.items()})

    return change


def test_soak_that_went_well_has_no_problems() -> None:
    assert passed().problems() == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda report: report.tally.note_failure("chat", ValueError("500")), "chat: ValueError: 500"),
        (lambda report: report.tally.done.pop("batch"), "no batch was brought to its end"),
        (grow(num_processes=1), "processes: 4 grew to 5"),
        (grow(num_threads=9), "threads: 30 grew to 39"),
        (grow(num_descriptors=20), "descriptors: 40 grew to 61"),
        (grow(rss_bytes=120 << 20), "bytes of memory"),
        (lambda report: setattr(report, "peak_rss_bytes", MAX_RSS_BYTES + 1), "the server had"),
        (lambda report: setattr(report, "stop_s", 2 * GRACE_S + 3), "to stop, more than"),
        (lambda report: setattr(report, "exit_code", 1), "the server ended with 1"),
        (lambda report: setattr(report, "log", "Traceback (most recent call last)"), "has a traceback"),
    ],
)
def test_soak_fails_with_the_reason(change: Callable[[Report], None], problem: str) -> None:
    report = passed()

    change(report)

    (found,) = report.problems()
    assert problem in found
