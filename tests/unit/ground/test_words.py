"""Counts with their nouns, parts of a whole, durations."""

import pytest

from batcher.words import counted, duration_text, percent_text, short_duration_text


@pytest.mark.parametrize(
    ("number", "noun", "plural", "text"),
    [
        (0, "row", "", "0 rows"),
        (1, "row", "", "1 row"),
        (1200, "row", "", "1,200 rows"),
        (1, "crash", "crashes", "1 crash"),
        (2, "crash", "crashes", "2 crashes"),
    ],
)
def test_count_has_the_noun_that_goes_with_it(number: int, noun: str, plural: str, text: str) -> None:
    assert counted(number, noun, plural) == text


@pytest.mark.parametrize(
    ("done", "total", "text"), [(0, 3, "0%"), (1, 3, "33%"), (9_999, 10_000, "99%"), (3, 3, "100%"), (0, 0, "100%")]
)
def test_nothing_is_done_whole_before_it_is(done: int, total: int, text: str) -> None:
    assert percent_text(done, total) == text


@pytest.mark.parametrize(
    ("seconds", "text", "short"),
    [
        (None, "-", "-"),
        (0, "0.0 s", "0s"),
        (8.24, "8.2 s", "8s"),
        (59.96, "1 min 00 s", "1m00s"),
        (185, "3 min 05 s", "3m05s"),
        (3599.6, "1 h 00 min", "1h00m"),
        (7800, "2 h 10 min", "2h10m"),
        (277200, "3 d 05 h", "3d05h"),
    ],
)
def test_durations_read_as_one_says_them(seconds: float | None, text: str, short: str) -> None:
    assert duration_text(seconds) == text
    assert short_duration_text(seconds) == short
