"""A terminal as a person has it: a program runs on it, and what stands on its screen can be read.

The kernel's side is a real pseudo terminal, of a size, with Ctrl-C; the screen is drawn by pyte, as xterm draws it.
"""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyte

from tests.support.waiting import PATIENCE_S, wait_for

#: Seconds without output after which a screen is what the program wanted it to be.
_QUIET_S = 0.05
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class PseudoTerminal:
    """Runs `command` on a terminal, within a `with` block; whatever of it still lives at the end is killed.

    `screens` are those that stood for a moment, each as its lines without the empty ones at the end; `output` is all
    that was written.
    """

    def __init__(
        self, command: Sequence[object], *, columns: int, rows: int, cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.screens: list[list[str]] = []
        self.output = b""
        self._screen = pyte.HistoryScreen(columns, rows, history=10_000)
        self._stream = pyte.ByteStream(self._screen)
        self._master, slave = pty.openpty()
        self._set_size(columns, rows)
        # Not what this process was told of its own terminal.
        inherited = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
        self.process = subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env={**inherited, "TERM": "xterm-256color", **(env or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        self._thread.join(PATIENCE_S)
        os.close(self._master)

    @property
    def lines(self) -> list[str]:
        """What stands on the screen, without blanks at the ends of lines and empty lines at the end."""
        with self._lock:
            return _trimmed(self._screen.display)

    @property
    def text(self) -> str:
        """All that was ever written, without what moves the cursor or sets colours."""
        return _ESCAPES.sub("", self.output.decode(errors="replace"))

    def wait(self) -> int:
        """The exit code, when the last of the output is on the screen."""
        code = self.process.wait(PATIENCE_S)
        self._thread.join(PATIENCE_S)
        return code

    def wait_for(self, condition: Callable[[list[str]], Any], *, what: str) -> Any:
        """Wait until `condition` of the screen's lines is true."""
        try:
            return wait_for(lambda: condition(self.lines), what=what)
        except AssertionError as exc:
            raise AssertionError(f"{exc}; the screen is:\n" + "\n".join(self.lines)) from None

    def press(self, keys: str) -> None:
        """Type: `\\x03` is Ctrl-C."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Draw the window to another size; the program is told."""
        with self._lock:
            self._screen.resize(rows, columns)
        self._set_size(columns, rows)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self) -> None:
        is_new = False
        while True:
            if is_new and not select.select([self._master], [], [], _QUIET_S)[0]:
                with self._lock:
                    self.screens.append(_trimmed(self._screen.display))
                is_new = False
                continue
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:
                # The last program on it has ended.
                break
            if not data:
                break
            with self._lock:
                self.output += data
                self._stream.feed(data)
            is_new = True


def _trimmed(display: Sequence[str]) -> list[str]:
    lines = [line.rstrip() for line in display]
    while lines and not lines[-1]:
        lines.pop()
    return lines
