"""`batcher diff`: two jobs beside each other."""

import json
import textwrap
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batcher.api.widths import shortened
from batcher.cli.completing import complete_job
from batcher.cli.options import find_job, jobs_dir_option, json_option, option
from batcher.words import one_line

if TYPE_CHECKING:
    from batcher.jobdir.folder import JobDir
    from batcher.manage.differences import Diff, Lengths, Pair

#: Changed rows that a person sees who gives no --limit, lines of each answer, and the width off a terminal.
_SHOWN_ROWS, _MAX_LINES, _WIDTH = 5, 12, 100
#: What stands for an answer that is not there.
_NONE = "-"


@click.command("diff")
@click.argument("job_a", metavar="A", shell_complete=complete_job)
@click.argument("job_b", metavar="B", shell_complete=complete_job)
@option("--column", metavar="NAME", help="What to compare. [default: the answer: output, label or text]")
@option("--limit", type=click.IntRange(min=0), help="Most changed rows to show. [default: 5; with --json all]")
@json_option
@jobs_dir_option
def diff_command(
    job_a: str, job_b: str, *, column: str | None, limit: int | None, as_json: bool, jobs_dir: Path
) -> int:
    """Compare the answers of jobs A and B, row by row: by custom_id, or by row where they have no id in common.

    Says how many are equal, changed or only in one; which label became which, of jobs with few different answers; and
    shows the first changed ones side by side.

    \b
    Example:
      batcher diff out-a out-b --column output.name
    """
    from batcher.manage.differences import diff

    a, b = find_job(job_a, jobs_dir), find_job(job_b, jobs_dir)
    found = diff(a, b, column=column)
    if as_json:
        click.echo(_diff_json(found, limit))
    else:
        _print_diff(a, b, found, _SHOWN_ROWS if limit is None else limit)
    return 0


def _diff_json(found: "Diff", limit: int | None) -> str:
    from batcher.manage.finished import json_rows

    facts = {name: getattr(found, name) for name in found.__slots__ if name != "changed"}
    facts["statuses"], facts["labels"] = ([asdict(pair) for pair in facts[name]] for name in ("statuses", "labels"))
    facts["tokens_a"], facts["tokens_b"] = asdict(found.tokens_a), asdict(found.tokens_b)
    return json.dumps(facts | {"changed": list(json_rows(found.changed.slice(0, limit)))}, ensure_ascii=False)


def _print_diff(a: "JobDir", b: "JobDir", found: "Diff", limit: int) -> None:
    from batcher.cli.job_table import find_screen
    from batcher.cli.texts import aligned

    screen = find_screen()
    width = screen.width if screen else _WIDTH
    only = "".join(
        f", {number:,} only in {name}" for name, number in (("A", found.num_only_a), ("B", found.num_only_b)) if number
    )
    lines = {
        "A": a.job_id,
        "B": b.job_id,
        "Rows": f"{found.num_equal:,} equal, {found.num_changed:,} changed{only}",
        "Status": ", ".join(f"{pair.a} became {pair.b} {pair.count:,}" for pair in found.statuses),
        "Tokens": f"A {_lengths_text(found.tokens_a)}; B {_lengths_text(found.tokens_b)}",
        "Compared": f"{found.column}, by {found.key}",
    }
    click.echo(aligned(lines))
    if found.labels and found.num_changed:
        click.echo(f"\n{_labels_text(found.labels)}")
    for row in found.changed.slice(0, limit).to_pylist():
        click.echo(f"\n{_side_by_side(row, width)}")
    if found.num_changed > limit:
        click.echo(f"\n... and {found.num_changed - limit:,} more; --limit shows more of them, --json all.")


def _lengths_text(lengths: "Lengths") -> str:
    return "none" if lengths.mean is None else f"mean {lengths.mean:,.1f}, median {lengths.median:,.1f}"


def _labels_text(pairs: "tuple[Pair, ...]") -> str:
    """Labels of A down, of B across."""
    from batcher.cli.texts import table_text

    rows, columns = ([*dict.fromkeys(getattr(pair, side) for pair in pairs)] for side in "ab")
    counts = {(pair.a, pair.b): pair.count for pair in pairs}
    header = ("A \\ B", *map(_short, columns))
    return table_text(header, [(_short(a), *(f"{counts.get((a, b), 0):,}" for b in columns)) for a in rows])


def _short(label: str | None) -> str:
    return _NONE if label is None else shortened(one_line(label), 20)


def _side_by_side(row: dict[str, Any], width: int) -> str:
    """A changed row: what A has on the left, what B has on the right."""
    from rich.cells import set_cell_size

    room = max(10, (width - 3) // 2)
    sides = []
    for side in "ab":
        answer = row[side] if row[f"status_{side}"] == "ok" else f"({row[f'status_{side}']}) {row[side] or ''}"
        lines = _wrapped(one_line(answer or "") or _NONE, room)
        sides.append(lines if len(lines) <= _MAX_LINES else [*lines[: _MAX_LINES - 1], "..."])
    choice = f".{row['index']}" if row["index"] else ""
    title = set_cell_size(f"[{row['row']}{choice}] {one_line(row['custom_id'])}", width).rstrip()
    pairs = zip_longest(*sides, fillvalue="")
    return "\n".join([title, *(f"{set_cell_size(left, room)} | {right}".rstrip() for left, right in pairs)])


def _wrapped(text: str, room: int) -> list[str]:
    from rich.cells import cell_len, chop_cells

    lines = textwrap.wrap(text, room)
    # Characters of two places don't count as such there.
    return lines if all(cell_len(line) <= room for line in lines) else chop_cells(text, room)
