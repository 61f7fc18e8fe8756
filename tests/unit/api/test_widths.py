"""Texts that are shortened or padded to columns of a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.api.widths import ELLIPSIS, padded, shortened, width_of


def test_text_that_fits_stays_whole() -> None:
    assert shortened("20261130-qxkv", 13) == "20261130-qxkv"


def test_long_text_keeps_its_beginning_and_its_end() -> None:
    assert shortened("prompts-20261130T183200Z-a1b2c3", 13) == "prompt…a1b2c3"


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("客户评论的分类", 14, "客户评论的分类"),
        ("客户评论的分类", 9, "客户…分类"),
        ("客户评论的分类", 8, "客户…类"),
        ("客", 1, "…"),
        ("客", 0, ""),
        ("cafe\u0301", 4, "cafe\u0301"),
    ],
)
def test_room_is_that_of_the_terminal(text: str, width: int, short: str) -> None:
    assert shortened(text, width) == short


@given(st.text(max_size=60), st.integers(0, 70))
def test_shortened_text_has_room_and_its_ends(text: str, width: int) -> None:
    short = shortened(text, width)

    assert width_of(short) <= width
    if width_of(text) <= width:
        assert short == text
    elif width > 0:
        num_first = len(short) // 2
        num_last = len(short) - 1 - num_first
        assert short == text[:num_first] + ELLIPSIS + text[len(text) - num_last :]


@given(st.text("abc…", max_size=60), st.integers(1, 70))
def test_shortened_names_use_the_room(text: str, width: int) -> None:
    assert width_of(shortened(text, width)) == min(len(text), width)


@given(st.text(max_size=60), st.integers(0, 70))
def test_padded_text_has_its_width(text: str, width: int) -> None:
    assert width_of(padded(text, width)) == max(width_of(text), width)
