"""The progress display, and how numbers are written."""

import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from batcher.cli.display import Progress, duration_text, print_summary, size_text, status_json
from batcher.errors import InputError
from batcher.status import Status, read_status
from batcher.summary import finalize
from tests.unit.job_files import complete_job, failed, make_job, ok, write_chunk, write_part


def test_summary_says_what_came_out_and_how_to_read_it(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = complete_job(workplace / "my job")
    summary = finalize(job)
    assert summary is not None
    print_summary(job, summary)

    lines = capsys.readouterr().out.splitlines()
    found = {line[:11].strip(): line[11:] for line in lines[:-1]}
    assert found["Rows"] == "6 in = 4 ok + 2 error"
    assert found["Errors"] == "context_length_exceeded 1, timeout 1"
    assert found["Choices"] == "5"
    assert found["Tokens"] == "25 prompt (4 from cache) + 15 generated"
    assert found["Finish"] == "length 5"
    assert found["Results"] == "my job/results/*.parquet (3 parts)"
    assert found["Read them"] == "batcher results 'my job' --limit 5"
    python, *arguments = shlex.split(lines[-1])
    assert python == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert "text 0.0" in done.stdout


def statuses(path: Path) -> list[Status]:
    job = make_job(path, (2,))
    first = read_status(job)
    write_chunk(job, 0, [ok(0)])
    second = read_status(job)
    write_part(job, 0, [ok(0), failed(1)])
    finalize(job)
    return [first, second, read_status(job)]


def test_progress_off_a_terminal_is_a_line_every_few_seconds_and_one_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    first, second, last = statuses(tmp_path / "job")
    with Progress(interval_s=5, clock=lambda: now) as progress:
        progress.update(first)
        now = 4.9
        progress.update(second)
        assert len(capsys.readouterr().err.splitlines()) == 1
        now = 5.0
        progress.update(second)
        assert capsys.readouterr().err == status_json(second) + "\n"
        progress.update(last)
        assert capsys.readouterr().err == ""

    captured = capsys.readouterr()
    assert captured.err == status_json(last) + "\n"
    assert captured.out == ""


def test_progress_without_a_status_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress():
        pass

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("width", [40, 80, 200])
def test_progress_on_a_terminal_is_a_bar(tmp_path: Path, width: int) -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=width, color_system=None)
    with Progress(console=console) as progress:
        for status in statuses(tmp_path / "job"):
            progress.update(status)

    shown = terminal.getvalue()
    assert "{" not in shown
    if width >= 80:
        last = next(line for line in reversed(shown.splitlines()) if "rows" in line)
        for text in ("2/2 rows", "100%", "1 errors", "complete", "tokens/s"):
            assert text in last


def test_progress_ends_its_bar_when_the_work_fails(tmp_path: Path) -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100, color_system=None)

    with pytest.raises(InputError), Progress(console=console) as progress:  # noqa: PT012 (the block is what is tested)
        progress.update(read_status(make_job(tmp_path / "job")))
        raise InputError("stop")

    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is shown again


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0.0 s"),
        (8.24, "8.2 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (277200, "3 d 05 h"),
    ],
)
def test_durations_read_as_one_says_them(seconds: float | None, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (98_400_000, "98.4 MB"), (4 * 10**12, "4.0 TB")]
)
def test_sizes_read_as_one_says_them(size: int, text: str) -> None:
    assert size_text(size) == text
