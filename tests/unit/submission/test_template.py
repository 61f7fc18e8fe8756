"""Prompt templates."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import InputError, InvalidRowError
from batcher.submission.template import parse_template


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
        ("{a:{b}}", "a { with another before its }"),
        ("{}", "names no column"),
        ("{a", "line 1, character 1: a { without its }"),
        ("a}", "line 1, character 2: a } without its {"),
        ('As JSON:\n\n  {"q": {text}}', "line 3, character 3: a { with another before its }"),
        ('{text} as {"a": 1}', "line 1, character 11: '{\"a\": 1}' has a format specification"),
        ("no column", "uses no column"),
        ("", "uses no column"),
    ],
)
def test_what_is_more_than_a_column_name_is_refused_up_front(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=r"^template ") as caught:
        parse_template(text)
    assert problem in str(caught.value)


@given(st.text(st.sampled_from(["{", "}", "a", " ", "\n", '"']), max_size=12))
def test_templates_are_read_as_format_strings_are(text: str) -> None:
    try:
        fields = [(literal, name) for literal, name, _, _ in string.Formatter().parse(text)]
    except ValueError:
        fields = []
    is_plain = any(name is not None for _, name in fields) and all(
        name != "" and "{" not in (name or "") for _, name in fields
    )
    values = {name: f"<{name}>" for _, name in fields if name is not None}
    if is_plain:
        assert parse_template(text).render(values) == "".join(
            literal + ("" if name is None else values[name]) for literal, name in fields
        )
    else:
        with pytest.raises(InputError):
            parse_template(text)


@given(st.text(st.sampled_from(["{", "}", "a", ":", "!", '"', "\n"]), max_size=12))
def test_remedy_for_braces_that_are_text_holds(text: str) -> None:
    doubled = text.replace("{", "{{").replace("}", "}}")
    assert parse_template(doubled + "{x}").render({"x": "v"}) == text + "v"
