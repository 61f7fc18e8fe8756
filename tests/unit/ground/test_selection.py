"""Which rows of an input a job has, in words."""

import pytest

from batcher.selection import ALL_ROWS, RowSelection


@pytest.mark.parametrize(
    ("selection", "text"),
    [
        (ALL_ROWS, "all rows"),
        (RowSelection(limit=1), "the first row"),
        (RowSelection(limit=2000), "the first 2,000 rows"),
        (RowSelection(sample=1), "a sample of 1 row"),
        (RowSelection(sample=2000), "a sample of 2,000 rows"),
    ],
)
def test_a_selection_is_said_in_words(selection: RowSelection, text: str) -> None:
    assert str(selection) == text


def test_an_input_with_too_few_rows_is_told() -> None:
    assert "has 3 rows, fewer than 4" in RowSelection(sample=4).find_shortage(3)
    assert "has 1 row, fewer than 4" in RowSelection(limit=4).find_shortage(1)
    assert RowSelection(sample=3).find_shortage(3) == ALL_ROWS.find_shortage(0) == ""
