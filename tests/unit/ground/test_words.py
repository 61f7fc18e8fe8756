"""Counts with their nouns, parts of a whole, durations, and texts that are shortened in the middle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.words import ELLIPSIS, counted, duration_text, percent_text, short_duration_text, shortened


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


def test_text_that_fits_stays_whole() -> None:
    assert shortened("20261130-qxkv", 13) == "20261130-qxkv"


def test_long_text_keeps_its_beginning_and_its_end() -> None:
    assert shortened("prompts-20261130T183200Z-a1b2c3", 13) == "prompt…a1b2c3"


@given(st.text(max_size=60), st.integers(0, 70))
def test_shortened_text_has_room_and_its_ends(text: str, width: int) -> None:
    short = shortened(text, width)

    assert len(short) == min(len(text), width)
    if len(text) > width > 0:
        half = len(short) // 2
        assert short[half] == ELLIPSIS or width % 2 == 0
        assert text.startswith(short[: (width - 1) // 2])
        assert text.endswith(short[len(short) - (width - 1) // 2 :])


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
