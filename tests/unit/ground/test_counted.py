"""Numbers with their nouns."""

import pytest

from batcher.counted import counted


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1000, "1,000 rows"), (-1, "-1 rows")]
)
def test_noun_has_an_s_unless_there_is_one(number: int, said: str) -> None:
    assert counted(number, "row") == said


def test_other_plurals_are_given() -> None:
    assert [counted(number, "match", "matches") for number in (1, 2)] == ["1 match", "2 matches"]
