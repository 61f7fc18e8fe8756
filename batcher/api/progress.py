"""How a job proceeds, shown to a person: lines that change in their place, and off a terminal a short line at times.

It goes to stderr, so that stdout holds only what was asked for, as JSON lines are; in a notebook it is output of the
cell.
"""

import html
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from batcher.api.terminal import BottomLines
    from batcher.manage.status import Status

#: Seconds between two lines, where something has moved.
LINE_INTERVAL_S = 10.0
#: The same of JSON lines, which come in any case.
JSON_INTERVAL_S = 5.0
#: The bar goes back only by more than that: how much work is in rows in flight is an estimate.
_BACKLASH = 0.02


class Progress:
    """Shows how a job proceeds: on a terminal and in a notebook lines that change, elsewhere a short line at times.

        with Progress() as progress:
            progress.update(reader.read())

    The last status stays when the block ends, unless it is `transient`: something else is told then. `as_json` has
    JSON lines anywhere, on stdout, each status once. `clock` gives seconds and need not be wall time. What is printed
    meanwhile, by whomever, appears above the lines.
    """

    def __init__(
        self, *, transient: bool = False, as_json: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transient = transient
        self._as_json = as_json
        self._clock = clock
        self._lines: BottomLines | None = None
        self._cell: _Cell | None = None
        self._last: Status | None = None
        self._shown = 0.0
        self._printed: tuple[object, ...] = ()
        self._printed_at: float | None = None

    def __enter__(self) -> Self:
        if not self._as_json:
            self._cell = _open_cell()
        if not self._as_json and self._cell is None and sys.stderr.isatty():
            from batcher.api.terminal import BottomLines, is_capable

            if is_capable():
                self._lines = BottomLines()
                self._lines.__enter__()
        return self

    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._lines is not None:
            last = self._last
            self._lines.leave(None if self._transient or last is None else self._frame(last, is_short=True))
            self._lines.__exit__(None, None, None)
            self._lines = None
        elif self._last is not None and self._cell is None and (self._as_json or not self._transient):
            self._print(self._last)

    def update(self, status: "Status") -> None:
        """Show `status` now, or when the next line is due."""
        self._last = status
        if self._lines is not None:
            self._lines.draw(self._frame(status))
        elif self._cell is not None:
            self._cell.show(status)
        else:
            now = self._clock()
            interval_s = JSON_INTERVAL_S if self._as_json else LINE_INTERVAL_S
            if self._printed_at is None or now - self._printed_at >= interval_s:
                self._print(status)

    def _frame(self, status: "Status", *, is_short: bool = False) -> Any:
        """The lines for a terminal of any size; the short ones are without workers."""
        from dataclasses import replace

        from batcher.api.screen import screen

        lines = self._lines
        assert lines is not None
        if status.progress > self._shown or status.progress < self._shown - _BACKLASH:
            self._shown = status.progress
        shown, status = self._shown, replace(status, workers=()) if is_short else status
        return lambda width, height: screen(
            status, progress=shown, width=width, height=height, is_unicode=lines.is_unicode
        )

    def _print(self, status: "Status") -> None:
        from batcher.api.status_texts import status_line

        moved = (status.state, status.num_done, status.progress, status.num_crashes)
        if moved != self._printed or self._as_json:
            line = status_json(status) if self._as_json else f"{status.job_id}: {status_line(status)}"
            print(line, file=sys.stdout if self._as_json else sys.stderr, flush=True)
            self._printed, self._printed_at = moved, self._clock()
        self._last = None


class _Cell:
    """A bar that is part of a notebook cell's output and changes in its place. Needs IPython, and no widgets."""

    def __init__(self, display: Callable[..., Any]) -> None:
        self._display = display
        self._handle: Any = None

    def show(self, status: "Status") -> None:
        if self._handle is None:
            self._handle = self._display(_CellView(status), display_id=True)
        else:
            self._handle.update(_CellView(status))


class _CellView:
    """A status as IPython shows objects: HTML for a browser, text for the rest."""

    def __init__(self, status: "Status") -> None:
        self._status = status

    def __repr__(self) -> str:
        return f"{self._status.job_id}: {_line(self._status)}"

    def _repr_html_(self) -> str:
        texts = html.escape(_line(self._status)).split(", ")
        return (
            f'<div>{html.escape(self._status.job_id)} <progress value="{self._status.progress}" max="1"></progress> '
            f"{' &middot; '.join(texts)}</div>"
        )


def _open_cell() -> _Cell | None:
    """The running cell of a notebook, where there is one. A terminal with IPython is a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from IPython.display import display

    return _Cell(display)


def _line(status: "Status") -> str:
    from batcher.api.status_texts import status_line

    return status_line(status)


def print_line(line: str) -> None:
    """Tells whoever waits what is fetched before a job begins."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def showing(progress: bool, *, transient: bool = False) -> "Iterator[Callable[[Status], None]]":
    """What to call with each status: it is shown if `progress`, and at the end no more if `transient`."""
    if not progress:
        yield lambda status: None
        return
    with Progress(transient=transient) as display:
        yield display.update


def status_json(status: "Status") -> str:
    """A status as one JSON line: its fields by name, times in ISO 8601."""
    return json.dumps(asdict(status), default=_iso)


def _iso(value: Any) -> str:
    return value.isoformat().replace("+00:00", "Z") if hasattr(value, "isoformat") else str(value)
