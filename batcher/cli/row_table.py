"""Rows as a table: on a terminal each on one line that fits it, in a pipe whole, with tabs between the cells."""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

import click

from batcher.api.widths import ELLIPSIS
from batcher.cli.job_table import find_screen
from batcher.cli.texts import more_text
from batcher.words import one_line

if TYPE_CHECKING:
    import pyarrow as pa

#: Blanks between two columns, and the characters that a column has at least.
_GAP, _LEAST = 2, 4
#: What stands for null.
_NULL = "-"


def print_shortened(tables: Iterable["pa.Table"], limit: int, *, if_none: str) -> None:
    """Print the first `limit` rows, and where there are more, how to see them."""
    screen = find_screen()
    shown, is_more = print_table(tables, limit, width=screen.width if screen else None)
    if is_more:
        click.echo(more_text(limit), err=screen is None)
    elif not shown:
        click.echo(if_none, err=screen is None)


def print_table(tables: Iterable["pa.Table"], limit: int | None, *, width: int | None) -> tuple[int, bool]:
    """Print the first `limit` rows of tables, which have the same columns, below their names.

    `width` is that of the terminal; None: it is none, and rows are printed as they come. Nothing is printed where there
    is no row. Returns how many were, and whether there are more.
    """
    names: list[str] = []
    numeric: list[bool] = []

    def lines() -> Iterable[tuple[str, ...]]:
        for table in tables:
            names[:], numeric[:] = table.column_names, [_is_number(column.type) for column in table.columns]
            yield from zip(*(_cells(column, width) for column in table.columns), strict=True)

    rows = iter(lines())
    first = list(islice(rows, limit if width is not None else min(1, 1 if limit is None else limit)))
    header = tuple(map(one_line, names))
    if width is not None:
        for line in _fitted([header, *first], numeric, width) if first else ():
            click.echo(line)
        return len(first), next(rows, None) is not None
    num_rows = 0
    left = None if limit is None else limit - len(first)
    for row in chain([header] if first else [], first, islice(rows, left)):
        click.echo("\t".join(row))
        num_rows += 1
    return max(0, num_rows - 1), next(rows, None) is not None


def _cells(column: "pa.ChunkedArray", width: int | None) -> list[str]:
    """The values of a column as text on one line; no more of them than could be shown."""
    from batcher.arrow.values import text_values

    # Many blanks and line ends become one.
    head = None if width is None else 8 * width
    return [_NULL if text is None else one_line(text[:head]) for text in text_values(column)]


def _is_number(found: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found))


def _fitted(rows: Sequence[tuple[str, ...]], numeric: Sequence[bool], width: int) -> Iterable[str]:
    """Lines of a table no longer than `width`; its longest cells are shortened, numbers are to the right."""
    from rich.cells import cell_len, set_cell_size

    longest = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    widths = _shares(longest, width - _GAP * (len(longest) - 1))
    for row in rows:
        cells = []
        for cell, room, is_number in zip(row, widths, numeric, strict=True):
            size = cell_len(cell)
            if size > room:
                cells.append(set_cell_size(cell, room - 1) + ELLIPSIS)
            else:
                cells.append(" " * (room - size) + cell if is_number else cell + " " * (room - size))
        yield set_cell_size((" " * _GAP).join(cells), width).rstrip()


def _shares(longest: Sequence[int], width: int) -> list[int]:
    """The room of each column: what it needs, where all have room, else no more than those that need most."""
    cap = max(longest)
    while cap > _LEAST and sum(min(each, cap) for each in longest) > width:
        cap -= 1
    return [min(each, cap) for each in longest]
