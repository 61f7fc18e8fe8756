"""Prompt templates."""

import pytest

from batcher.errors import InputError, InvalidRowError
from batcher.template import parse_template


def test_columns_are_filled_in_and_double_braces_stand_for_braces() -> None:
    template = parse_template('{{"q": {question}}} by {my name}: {question}')
    assert template.columns == ("question", "my name")
    assert template.render({"question": "why?", "my name": "A"}) == '{"q": why?} by A: why?'


def test_braces_in_values_are_left_alone() -> None:
    assert parse_template("<{text}>").render({"text": "{x}{{"}) == "<{x}{{>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (1.0, "1.0"),
        (True, "true"),
        ([1, "a"], '[1, "a"]'),
        ({"a": None}, '{"a": null}'),
        ("", ""),
    ],
)
def test_other_values_are_shown_as_text(value: object, text: str) -> None:
    assert parse_template("{v}").render({"v": value}) == text


@pytest.mark.parametrize(
    ("values", "problem"),
    [({"v": None}, "v is null"), ({}, "v is missing")],
)
def test_row_without_a_value_is_refused(values: dict[str, object], problem: str) -> None:
    with pytest.raises(InvalidRowError, match=f"^{problem}; the template needs"):
        parse_template("{v}").render(values)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{a.b}", "reaches into a value"),
        ("{a[0]}", "reaches into a value"),
        ("{a!r}", "has a conversion"),
        ("{a:>5}", "has a format specification"),
        ("{a:{b}}", "has a format specification"),
        ("{}", "names no column"),
        ("{a", "expected '}'"),
        ("a}", "Single '}'"),
        ("no column", "uses no column"),
        ("", "uses no column"),
    ],
)
def test_what_is_more_than_a_column_name_is_refused_up_front(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=r"^template ") as caught:
        parse_template(text)
    assert problem in str(caught.value)
