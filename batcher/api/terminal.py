"""Lines at the bottom of a terminal that are drawn anew, while whatever else is written appears above them.

Meanwhile stderr, and stdout where it is the terminal, too, is a pipe, for this process and for the children that it
starts: what comes out of it is written whole lines at a time, the drawn ones taken away before and put back behind. So
no line of a log is glued to a bar, whoever wrote it. A child that was started before writes to the terminal itself,
unless it was given a `relay`.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from batcher.errors import BatcherError

if TYPE_CHECKING:
    from rich.text import Text

    from workers.process.launch import ChildPipe

#: Seconds for the last lines of what writes to the pipe yet.
_END_PATIENCE_S = 1.0
#: Of what is drawn, so that no line fills a row of the terminal, after which some are in the next one.
_MARGIN = 1

#: Makes the lines for so many columns and rows.
Frame = Callable[[int, int], Sequence["Text"]]


def is_capable(descriptor: int = 2) -> bool:
    """Whether the descriptor is a terminal on which lines can be drawn anew."""
    return os.isatty(descriptor) and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


class BottomLines:
    """Draws on the terminal that stderr is, inside a `with` block; see `is_capable`. For all threads.

    At the end the lines of the last frame stay, or those that `leave` says. Colours are as the terminal and NO_COLOR
    have it.
    """

    def __init__(self) -> None:
        self.is_unicode = (sys.stderr.encoding or "").lower().replace("-", "").startswith("utf")
        self._lock = threading.Lock()
        self._frame: Frame | None = None
        #: The columns of each line that is drawn.
        self._widths: list[int] = []
        self._unfinished = b""

    def __enter__(self) -> Self:
        # Here and not above: a command asks whether there is a terminal before it does anything else.
        from rich.console import Console

        _flush()
        self._terminal = os.dup(2)
        encoding = "utf-8" if self.is_unicode else "ascii"
        self._file = open(self._terminal, "w", encoding=encoding, errors="replace", closefd=False)
        self._console = Console(file=self._file, force_terminal=True, highlight=False, soft_wrap=True)
        reading, writing = os.pipe()
        self._taken = [(number, os.dup(number)) for number in (1, 2) if number == 2 or os.isatty(1)]
        for number, _ in self._taken:
            os.dup2(writing, number)
        os.close(writing)
        self._thread = threading.Thread(target=self._pump, args=(reading,), name="bottom-lines", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _flush()
        for number, saved in self._taken:
            os.dup2(saved, number)
            os.close(saved)
        # Not longer: something that was started meanwhile may hold the other end.
        self._thread.join(_END_PATIENCE_S)
        with self._lock:
            self._write(self._erasure() + self._unfinished + self._drawing())
            self._frame, self._widths, self._unfinished = None, [], b""
        self._file.close()
        # What such a one writes later goes to the terminal yet, and never to a file that has got its number.
        if not self._thread.is_alive():
            os.close(self._terminal)

    def draw(self, frame: Frame) -> None:
        """Put these lines in the place of the last ones, as many as the terminal has room for now."""
        with self._lock:
            self._frame = frame
            self._write(self._erasure() + self._drawing())

    def leave(self, frame: Frame | None) -> None:
        """Have these lines, or none, stay at the end."""
        with self._lock:
            self._frame = frame

    def _pump(self, reading: int) -> None:
        """Write what others write, line by line, until nobody can any more."""
        with contextlib.closing(os.fdopen(reading, "rb", buffering=0)) as pipe:
            while data := pipe.read(1 << 16):
                with self._lock:
                    whole, newline, rest = (self._unfinished + data).rpartition(b"\n")
                    self._unfinished = rest
                    if newline:
                        self._write(self._erasure() + whole + newline + self._drawing())

    def _erasure(self) -> bytes:
        """Takes the drawn lines away. The cursor stands in the row below them."""
        if not self._widths:
            return b""
        columns, _ = self._size()
        # One that was drawn for more columns than there are now takes several rows.
        num_rows = sum(max(1, -(-width // columns)) for width in self._widths)
        self._widths = []
        return b"\r\x1b[%dA\x1b[J" % num_rows

    def _drawing(self) -> bytes:
        """The lines of the frame, and notes their columns."""
        if self._frame is None:
            return b""
        columns, rows = self._size()
        lines = list(self._frame(columns - _MARGIN, rows - 1))[: max(0, rows - 1)]
        for line in lines:
            line.truncate(max(1, columns - _MARGIN), overflow="ellipsis" if self.is_unicode else "crop")
        self._widths = [line.cell_len for line in lines]
        with self._console.capture() as captured:
            for line in lines:
                self._console.print(line)
        return captured.get().encode("utf-8" if self.is_unicode else "ascii", errors="replace")

    def _size(self) -> tuple[int, int]:
        """Columns and rows of the terminal now; it may be resized at any time."""
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(self._terminal)
            if size.columns and size.lines:
                return size.columns, size.lines
        return 80, 24

    def _write(self, data: bytes) -> None:
        _write(self._terminal, data)


def relay() -> "ChildPipe":
    """A pipe for the stderr of children, whose lines go on, as they are, to what stderr is then."""
    from workers.process.launch import ChildPipe

    return ChildPipe(_pass_on)


def _pass_on(reading: int) -> None:
    with open(reading, "rb") as lines:
        for line in lines:
            _write(2, line)


def _write(descriptor: int, data: bytes) -> None:
    # A terminal that is gone is no reason to stop the work.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(descriptor, data) :]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BatcherError, OSError, ValueError):
            stream.flush()
