"""The progress display: a bar, a notebook's cell or lines."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from batcher.api.progress import Progress, status_json
from batcher.errors import InputError
from batcher.manage.finish import finalize
from batcher.manage.status import Status, read_status
from tests.support.job_files import failed, make_job, ok, write_chunk, write_part


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
        for text in ("2/2 rows", "100%", "1 error", "complete", "tokens/s"):
            assert text in last


@pytest.mark.parametrize(
    ("num_errors", "num_crashes", "text"),
    [(0, 0, ""), (1, 0, "1 error"), (3, 0, "3 errors"), (0, 1, "1 crash"), (3, 1200, "3 errors, 1,200 crashes")],
)
def test_bar_mentions_errors_and_crashes_where_there_are_some(
    tmp_path: Path, num_errors: int, num_crashes: int, text: str
) -> None:
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=200, color_system=None)
    status = replace(read_status(make_job(tmp_path / "job")), num_errors=num_errors, num_crashes=num_crashes)
    with Progress(console=console) as progress:
        progress.update(status)

    last = next(line for line in reversed(terminal.getvalue().splitlines()) if "rows" in line)
    assert last.split("waiting")[1].split("\x1b")[0].strip() == text


def test_progress_ends_its_bar_when_the_work_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A "dumb" one has no cursor to be shown.
    monkeypatch.setenv("TERM", "xterm")
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100, color_system=None)

    with pytest.raises(InputError), Progress(console=console) as progress:  # noqa: PT012 (the block is what is tested)
        progress.update(read_status(make_job(tmp_path / "job")))
        raise InputError("stop")

    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is shown again
