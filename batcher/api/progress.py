"""How a job proceeds, shown to a person: a live bar, or where there is none a JSON line every few seconds.

All of it goes to stderr, so that stdout holds only what was asked for; in a notebook it is output of the cell.
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

from batcher.words import counted, duration_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

    from batcher.manage.status import Status

#: Seconds between two JSON lines.
LINE_INTERVAL_S = 5.0


class Progress:
    """Shows how a job proceeds: a live bar on a terminal and in a notebook, elsewhere a JSON line every few seconds.

        with Progress() as progress:
            progress.update(reader.read())

    The last status is always shown, when the block ends. `clock` gives seconds and need not be wall time. Text printed
    to stdout or stderr meanwhile appears above the bar.
    """

    def __init__(
        self,
        *,
        console: "Console | None" = None,
        interval_s: float = LINE_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._interval_s = interval_s
        self._clock = clock
        self._bar: RichProgress | None = None
        self._cell: _Cell | None = None
        self._last: Status | None = None
        self._printed_at: float | None = None

    def __enter__(self) -> Self:
        if self._console is None:
            self._cell = _open_cell()
        if self._console is None and self._cell is None and sys.stderr.isatty():
            from rich.console import Console

            self._console = Console(stderr=True)
        if self._console is not None and self._console.is_terminal:
            self._bar = _make_bar(self._console)
            self._bar.start()
        return self

    def __exit__(self, *exc_info: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._last is not None:
            self._print_line(self._last)

    def update(self, status: "Status") -> None:
        """Show `status` now (bar), or when the next line is due."""
        if self._bar is not None:
            fields: dict[str, Any] = _texts(status)
            if self._bar.task_ids:
                self._bar.update(self._bar.task_ids[0], completed=status.num_done, **fields)
            else:
                self._bar.add_task(status.job_id, completed=status.num_done, total=status.num_rows, **fields)
            return
        if self._cell is not None:
            self._cell.show(status)
            return
        self._last = status
        now = self._clock()
        if self._printed_at is None or now - self._printed_at >= self._interval_s:
            self._printed_at = now
            self._print_line(status)

    def _print_line(self, status: "Status") -> None:
        print(status_json(status), file=sys.stderr, flush=True)
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
        return "  ".join(filter(None, [self._status.job_id, *_texts(self._status).values()]))

    def _repr_html_(self) -> str:
        done, total = self._status.num_done, self._status.num_rows
        texts = [html.escape(text) for text in _texts(self._status).values() if text]
        return (
            f'<div>{html.escape(self._status.job_id)} <progress value="{done}" max="{total}"></progress> '
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


def _texts(status: "Status") -> dict[str, str]:
    """What is said beside the bar; "" where there is nothing to say."""
    return {
        "rows": f"{status.num_done:,}/{status.num_rows:,} rows",
        "speed": f"{status.tokens_per_s:,.0f} tokens/s",
        "eta": f"ETA {duration_text(status.eta_s)}" if status.eta_s is not None else status.state.value,
        "errors": _trouble_text(status),
    }


def print_line(line: str) -> None:
    """Tells whoever waits what is fetched before a job begins."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def showing(progress: bool) -> "Iterator[Callable[[Status], None]]":
    """What to call with each status: it is shown if `progress`."""
    if not progress:
        yield lambda status: None
        return
    with Progress() as display:
        yield display.update


def _make_bar(console: "Console") -> "RichProgress":
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]}", markup=False),
        TextColumn("{task.fields[speed]}", markup=False),
        TextColumn("{task.fields[eta]}", markup=False),
        TextColumn("{task.fields[errors]}", markup=False, style="red"),
    ]
    # Piped stdout stays what it is: redirected, it would land on the terminal and be missing in the pipe.
    return RichProgress(*columns, console=console, expand=True, redirect_stdout=sys.stdout.isatty())


def status_json(status: "Status") -> str:
    """A status as one JSON line: its fields by name, times in ISO 8601."""
    return json.dumps(asdict(status), default=_iso)


def _trouble_text(status: "Status") -> str:
    """What the live bar says of errors and crashes; nothing where there are none."""
    texts = [counted(status.num_errors, "error")] if status.num_errors else []
    if status.num_crashes:
        texts.append(counted(status.num_crashes, "crash", "crashes"))
    return ", ".join(texts)


def _iso(value: Any) -> str:
    return value.isoformat().replace("+00:00", "Z") if hasattr(value, "isoformat") else str(value)
