"""The progress display: a bar, a notebook's cell or lines."""

import sys
from pathlib import Path

import pytest

from batcher.api.progress import Progress, status_json
from batcher.api.status_texts import status_line
from batcher.manage.finish import finalize
from batcher.manage.status import Status, read_status
from tests.support.job_files import failed, make_job, ok, write_chunk, write_part
from tests.support.pseudo_terminal import PseudoTerminal


def statuses(path: Path) -> list[Status]:
    job = make_job(path, (2,))
    first = read_status(job)
    job.claim_attempt(0, worker="w")
    write_chunk(job, 0, [ok(0)])
    second = read_status(job)
    write_part(job, 0, [ok(0), failed(1)])
    finalize(job)
    return [first, second, read_status(job)]


def test_progress_off_a_terminal_is_a_short_line_where_something_has_moved_and_one_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    first, second, last = statuses(tmp_path / "job")
    with Progress(clock=lambda: now) as progress:
        progress.update(first)
        assert capsys.readouterr().err == "job: waiting, 0%, 0 of 2 rows\n"
        now = 9.9
        progress.update(second)
        assert capsys.readouterr().err == ""
        now = 10.0
        progress.update(second)
        assert capsys.readouterr().err.startswith("job: running, 50%, 1 of 2 rows, ")
        now = 60.0
        progress.update(second)
        assert capsys.readouterr().err == ""
        progress.update(last)

    captured = capsys.readouterr()
    assert captured.err == f"job: {status_line(last)}\n"
    assert captured.out == ""


def test_progress_that_is_followed_by_a_summary_says_nothing_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, _, last = statuses(tmp_path / "job")
    with Progress(transient=True, clock=lambda: 0.0) as progress:
        progress.update(first)
        progress.update(last)

    assert capsys.readouterr().err == "job: waiting, 0%, 0 of 2 rows\n"


def test_progress_as_json_is_a_line_every_few_seconds_and_one_at_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    first, second, last = statuses(tmp_path / "job")
    with Progress(as_json=True, transient=True, clock=lambda: now) as progress:
        progress.update(first)
        now = 4.9
        progress.update(second)
        assert capsys.readouterr().out == status_json(first) + "\n"
        now = 5.0
        progress.update(second)
        assert capsys.readouterr().out == status_json(second) + "\n"
        progress.update(last)

    assert capsys.readouterr() == (status_json(last) + "\n", "")


def test_progress_without_a_status_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress():
        pass

    assert capsys.readouterr().err == ""


#: Shows a job of which a row is finished, and as it is complete, then fails or not.
PROGRAM = """
import sys, time
from pathlib import Path
from batcher.api.progress import Progress
from batcher.jobdir.folder import JobDir
from batcher.manage.status import StatusReader

job = JobDir(Path("job"))
with Progress(transient="transient" in sys.argv) as progress:
    reader = StatusReader(job)
    progress.update(reader.read())
    print("a line of a program")
    while not (status := reader.read()).is_complete:
        time.sleep(0.02)
    progress.update(status)
    if "failing" in sys.argv:
        sys.exit("it went wrong")
print("the end")
"""


def show(folder: Path, *words: str, columns: int = 80, **env: str) -> tuple[list[str], list[str]]:
    """Runs the program above on a terminal; the screen at first and at the end."""
    job = make_job(folder / "job", (2,))
    job.claim_attempt(0, worker="w")
    write_chunk(job, 0, [ok(0)])
    command = [sys.executable, "-c", PROGRAM, *words]
    with PseudoTerminal(command, columns=columns, rows=24, cwd=folder, env=env) as terminal:
        terminal.wait_for(lambda lines: lines[1:] and "a line of a program" in lines, what="the first status")
        first = terminal.lines
        write_part(job, 0, [ok(0), failed(1)])
        finalize(job)
        terminal.wait()
        return first, terminal.lines


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_progress_on_a_terminal_is_a_bar_that_stays(tmp_path: Path, columns: int) -> None:
    first, last = show(tmp_path, columns=columns)

    bar = columns - 1 - len("  100%")
    assert first == [
        "a line of a program",
        "job  tiny  2 rows  running",
        "━" * (bar // 2) + "─" * (bar - bar // 2) + "   50%",
        *first[3:],
    ]
    assert first[3].startswith("1 of 2 rows")
    assert first[4:] == ["1 row waits for tiny, which no worker has"[: columns - 2] + "…" * (columns == 40)]
    assert last[:3] == ["a line of a program", "job  tiny  2 rows  complete", "━" * bar + "  100%"]
    assert last[3].startswith("2 of 2 rows")
    assert (columns < 80) or ("1 error" in last[3])
    assert last[-1] == "the end"


def test_progress_that_is_followed_by_a_summary_leaves_nothing(tmp_path: Path) -> None:
    assert show(tmp_path, "transient")[1] == ["a line of a program", "the end"]


def test_progress_ends_its_bar_when_the_work_fails(tmp_path: Path) -> None:
    _, last = show(tmp_path, "failing")

    assert last[1] == "job  tiny  2 rows  complete"
    assert last[-1] == "it went wrong"


def test_terminal_without_a_cursor_gets_lines(tmp_path: Path) -> None:
    first, last = show(tmp_path, TERM="dumb")

    assert first[0].startswith("job: running, 50%, 1 of 2 rows")
    assert last[-2].startswith("job: complete, 100%, 2 of 2 rows")
    assert last[-1] == "the end"
