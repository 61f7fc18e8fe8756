"""The table of `batcher list`: a line for each job, which fits a terminal and is whole in a pipe."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from batcher.api.status_texts import STATE_COLOURS, done_percent
from batcher.api.widths import shortened, width_of
from batcher.cli.texts import table_text, utc_text
from batcher.cli.unserved import is_at_rest
from batcher.words import short_duration_text

if TYPE_CHECKING:
    from batcher.manage.status import Status

_HEADER = ("JOB", "STATE", "DONE", "ROWS", "ERRORS", "TOK/S", "ETA", "MODEL", "CREATED")
#: The state of a job on which somebody has worked, and nobody is alive that goes on, and its colour.
_STOPPED, _STOPPED_COLOUR = "stopped", "red"
#: Models of a job that are named; more are counted.
_MAX_MODELS = 3
#: Blanks between two columns.
_GAP = 2

#: What is done, in this order, until the table fits a terminal: names are shortened, to so many characters at least...
_LEAST = (("MODEL", 10), ("JOB", 13))
#: ... then columns are written shorter (of `2026-11-30 18:32:05 UTC` the day) or left out.
_SHORTER: tuple[tuple[str, Callable[[str], str] | None], ...] = (
    ("CREATED", lambda text: text[5:10]),
    ("CREATED", None),
    ("TOK/S", None),
    ("MODEL", None),
    ("ETA", None),
    ("ERRORS", None),
    ("ROWS", None),
)


@dataclass(frozen=True, slots=True)
class Screen:
    """A terminal: its columns, and whether it shows colours."""

    width: int
    has_colours: bool


def find_screen() -> Screen | None:
    """The terminal that stdout is; None where it goes elsewhere."""
    if not sys.stdout.isatty():
        return None
    from rich.console import Console

    console = Console()
    return Screen(console.width, has_colours=console.color_system is not None and not console.no_color)


def jobs_text(statuses: Sequence["Status"], screen: Screen | None) -> str:
    """The table; on a `screen` no line is longer than it, and states have colours."""
    lines = [_HEADER, *(_cells(status) for status in statuses)]
    if screen is None:
        return table_text(lines[0], lines[1:])
    header, *rows = zip(*_fit(list(zip(*lines, strict=True)), screen.width), strict=True)
    from rich.cells import set_cell_size

    first, *others = (set_cell_size(line, screen.width).rstrip() for line in table_text(header, rows).splitlines())
    if screen.has_colours:
        states = map(_state, statuses)
        others = [_with_colour(line, state) for line, state in zip(others, states, strict=True)]
    return "\n".join([first, *others])


def _cells(status: "Status") -> tuple[str, ...]:
    models = [
        *status.models[:_MAX_MODELS],
        *([f"+{len(status.models) - _MAX_MODELS}"] * (len(status.models) > _MAX_MODELS)),
    ]
    return (
        status.job_id,
        _state(status),
        done_percent(status),
        f"{status.num_rows:,}",
        f"{status.num_errors:,}",
        f"{status.tokens_per_s:,.0f}" if status.is_complete or status.eta_s is not None else "-",
        short_duration_text(status.eta_s),
        ",".join(models) or "-",
        utc_text(status.created_at),
    )


def _state(status: "Status") -> str:
    return _STOPPED if is_at_rest(status) else status.state.value


def _fit(columns: list[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """The columns, header first, as a terminal of `width` has room for them."""
    for name, least in _LEAST:
        if (excess := _width(columns) - width) > 0:
            at = _index(columns, name)
            room = max(least, _longest(columns[at]) - excess)
            columns[at] = tuple(shortened(cell, room) for cell in columns[at])
    for name, instead in _SHORTER:
        if _width(columns) > width:
            at = _index(columns, name)
            columns[at] = (name, *map(instead, columns[at][1:])) if instead is not None else ()
            columns = [column for column in columns if column]
    return columns


def _index(columns: list[tuple[str, ...]], name: str) -> int:
    return next(at for at, (header, *_) in enumerate(columns) if header == name)


def _longest(column: tuple[str, ...]) -> int:
    return max(map(width_of, column))


def _width(columns: list[tuple[str, ...]]) -> int:
    return sum(map(_longest, columns)) + _GAP * (len(columns) - 1)


def _with_colour(line: str, state: str) -> str:
    """The line, its state in the colour of that. No id holds a blank, so the state is the second word."""
    return line.replace(f" {state}", f" {click.style(state, fg=STATE_COLOURS.get(state, _STOPPED_COLOUR))}", 1)
