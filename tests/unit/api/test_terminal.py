"""Lines at the bottom of a terminal, while this process, its children and others write above them."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.pseudo_terminal import PseudoTerminal

#: Draws two lines, which say a number, and does as it is told in between.
PROGRAM = """
import os, subprocess, sys, threading, time
from rich.text import Text
from batcher.api.terminal import BottomLines, is_capable, relay

def frame(number):
    return lambda width, height: [Text("=" * width), Text(f"number {number} of {width}x{height}", style="green")]

def show(number):
    lines.draw(frame(number))

assert is_capable()

with BottomLines() as lines:
    %s
%s
"""


def play(
    tmp_path: Path,
    body: str,
    *,
    after: str = 'print("done")',
    columns: int = 40,
    rows: int = 10,
    env: Mapping[str, str] | None = None,
) -> PseudoTerminal:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM % (body.replace("\n", "\n    "), after))
    return PseudoTerminal([sys.executable, program], columns=columns, rows=rows, cwd=tmp_path, env=env)


def test_lines_change_in_their_place_and_stay_at_the_end(tmp_path: Path) -> None:
    with play(tmp_path, "for number in range(50): show(number)") as terminal:
        assert terminal.wait() == 0

    assert terminal.lines == ["=" * 39, "number 49 of 39x9", "done"]


def test_what_anybody_writes_stands_above_in_lines_of_its_own(tmp_path: Path) -> None:
    body = """
import logging
logging.basicConfig(format="%(message)s")
for number in range(3):
    show(number)
    print(f"print {number}")
    print(f"error {number}", file=sys.stderr)
    logging.warning(f"log {number}")
    os.write(2, b"begun ")
    show(number)
    os.write(2, b"and ended\\n")
    subprocess.run(["sh", "-c", f"echo child {number} >&2"], check=True)
"""
    with play(tmp_path, body, rows=30) as terminal:
        assert terminal.wait() == 0

    said = [
        line
        for number in range(3)
        for line in (f"print {number}", f"error {number}", f"log {number}", "begun and ended", f"child {number}")
    ]
    assert terminal.lines == [*said, "=" * 39, "number 2 of 39x9".replace("x9", "x29"), "done"]
    # At no moment was a line of theirs glued to one of ours.
    for screen in terminal.screens:
        assert all(line in {*said, "=" * 39, "done"} or line.startswith("number ") for line in screen), screen


def test_child_that_was_started_before_writes_through_a_relay(tmp_path: Path) -> None:
    body = """
show(1)
with relay() as pipe:
    child = subprocess.Popen(["sh", "-c", "echo said by a child >&2"], stderr=pipe.descriptor)
    child.wait()
show(2)
"""
    with play(tmp_path, body) as terminal:
        assert terminal.wait() == 0

    assert terminal.lines == ["said by a child", "=" * 39, "number 2 of 39x9", "done"]


def test_nothing_stays_of_a_frame_that_is_left_empty(tmp_path: Path) -> None:
    with play(tmp_path, "show(1)\nlines.leave(None)") as terminal:
        assert terminal.wait() == 0

    assert terminal.lines == ["done"]


def test_error_ends_the_lines_first(tmp_path: Path) -> None:
    with play(tmp_path, "show(1)\nraise SystemExit('it went wrong')") as terminal:
        assert terminal.wait() == 1

    assert terminal.lines == ["=" * 39, "number 1 of 39x9", "it went wrong"]


def test_more_lines_than_the_terminal_has_are_left_out(tmp_path: Path) -> None:
    body = """
for number in range(5):
    lines.draw(lambda width, height: [Text(f"{number} {line}") for line in range(50)])
"""
    with play(tmp_path, body, rows=6) as terminal:
        assert terminal.wait() == 0

    assert terminal.lines == [*(f"4 {line}" for line in range(1, 5)), "done"]


@pytest.mark.parametrize(("columns", "rows"), [(25, 10), (80, 10), (40, 6), (60, 30)])
def test_resized_terminal_gets_lines_of_its_size(tmp_path: Path, columns: int, rows: int) -> None:
    body = """
import itertools
for number in itertools.count():
    show(number)
    time.sleep(0.02)
    if os.path.exists("end"):
        break
"""
    with play(tmp_path, body) as terminal:
        terminal.wait_for(lambda lines: "number" in lines[-1] if lines else False, what="a frame")
        terminal.resize(columns, rows)
        size = f" of {columns - 1}x{rows - 1}"
        terminal.wait_for(lambda lines: lines and lines[-1].endswith(size), what="a frame of the new size")
        (tmp_path / "end").touch()
        assert terminal.wait() == 0

    bar, number, done = terminal.lines  # and nothing is left of those of the old size
    assert bar == "=" * (columns - 1)
    assert number.endswith(size)
    assert done == "done"


@pytest.mark.parametrize(("env", "has_colours"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_no_color_is_heeded(tmp_path: Path, env: dict[str, str], has_colours: bool) -> None:
    with play(tmp_path, "show(1)", env=env) as terminal:
        assert terminal.wait() == 0

    assert (b"\x1b[32m" in terminal.output) == has_colours


def test_terminal_that_cannot_move_its_cursor_is_told(tmp_path: Path) -> None:
    program = "from batcher.api.terminal import is_capable; print(is_capable())"
    for name in ("dumb", "unknown", ""):
        command = [sys.executable, "-c", program]
        with PseudoTerminal(command, columns=40, rows=10, cwd=tmp_path, env={"TERM": name}) as terminal:
            assert terminal.wait() == 0
        assert terminal.lines == ["False"]


def test_what_is_said_after_the_end_goes_to_no_file_of_others(tmp_path: Path) -> None:
    """Given a child that outlives the lines, when it speaks, then files that were opened since hold nothing of it."""
    body = "child = subprocess.Popen(['cat'], stdin=subprocess.PIPE)\nshow(1)"
    after = """
thread = next(each for each in threading.enumerate() if each.name == "bottom-lines")
files = [open(f"opened-{number}", "wb") for number in range(20)]
child.communicate(b"late\\n")
thread.join()
"""
    with play(tmp_path, body, after=after) as terminal:
        assert terminal.wait() == 0

    assert {path.stat().st_size for path in tmp_path.glob("opened-*")} == {0}
    assert terminal.lines == ["=" * 39, "number 1 of 39x9", "late"]
