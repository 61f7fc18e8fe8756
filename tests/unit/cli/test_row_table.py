"""Rows as a table: fitted to a terminal of any width, whole in a pipe."""

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from batcher.cli.row_table import print_table

TABLE = pa.table({"row": [7, 12], "text": ["word " * 40, "zwei\nZeilen\tund \x1b[2J"], "label": ["good", None]})

texts = st.none() | st.text(max_size=30)


def shown(capsys: pytest.CaptureFixture[str], *tables: pa.Table, limit: int | None, width: int | None) -> list[str]:
    print_table(tables, limit, width=width)
    return capsys.readouterr().out.splitlines()


def test_longest_cells_give_way_until_a_line_fits(capsys: pytest.CaptureFixture[str]) -> None:
    header, first, second = shown(capsys, TABLE, limit=9, width=40)

    assert header.split() == ["row", "text", "label"]
    assert [len(first), first[:8], first[-6:]] == [39, "  7  wor", "  good"]
    assert "…" in first
    assert second.startswith(" 12  zwei Zeilen und [2J")
    assert second.endswith("  -")


def test_pipe_has_cells_whole_with_tabs_between(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, TABLE, limit=None, width=None) == [
        "row\ttext\tlabel",
        f"7\t{'word ' * 39}word\tgood",
        "12\tzwei Zeilen und [2J\t-",
    ]


@pytest.mark.parametrize("width", [None, 80])
def test_rows_beyond_the_limit_are_not_shown_and_known_of(
    capsys: pytest.CaptureFixture[str], width: int | None
) -> None:
    results = [print_table(iter([TABLE, TABLE]), limit, width=width) for limit in (0, 1, 3, 4, 5, None)]

    assert results == [(0, True), (1, True), (3, True), (4, False), (4, False), (4, False)]
    assert len(capsys.readouterr().out.splitlines()) == 1 + 1 + 1 + 3 + 3 * (1 + 4)


def test_no_rows_are_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, limit=None, width=80) == shown(capsys, TABLE.slice(2), limit=3, width=None) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(texts, texts, st.none() | st.integers(-(2**50), 2**50)), min_size=1, max_size=4),
    st.integers(12, 100),
)
def test_no_line_is_wider_than_the_terminal(
    capsys: pytest.CaptureFixture[str], rows: list[tuple[str | None, str | None, int | None]], width: int
) -> None:
    """Whatever is in the cells: characters that take two places of a terminal, line ends, none at all."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = pa.table({"a": pa.array(columns[0], pa.string()), "b" * 30: pa.array(columns[1], pa.string())})

    lines = shown(capsys, table.append_column("n", pa.array(columns[2], pa.float64())), limit=None, width=width)

    assert len(lines) == 1 + len(rows)
    assert max(map(cell_len, lines)) <= width
