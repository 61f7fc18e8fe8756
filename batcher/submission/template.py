"""Prompt templates: text with `{column}` in it, filled from the columns of a row.

The syntax is that of `str.format` reduced to plain names: `{{` and `}}` stand for braces, and attribute or index
access, conversions and format specifications are refused when the template is parsed, not row by row.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batcher.arrow.values import json_text
from batcher.errors import InputError, InvalidRowError

#: A pair stands for one that is text.
_BRACES = re.compile(r"\{\{|\}\}|[{}]")
_NEWLINE = "\n"


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: pieces of literal text, each followed by the column whose value comes after it, if any."""

    pieces: tuple[tuple[str, str | None], ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns the template uses, each once, in order of first use."""
        return tuple(dict.fromkeys(column for _, column in self.pieces if column is not None))

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt of a row. Raises InvalidRowError where a column is missing or null.

        `values` are those of JSON: strings go in as they are, everything else as JSON. Of a table all are text.
        """
        filled = []
        for literal, column in self.pieces:
            filled.append(literal)
            if column is not None:
                value = values.get(column)
                filled.append(value if type(value) is str else _as_text(column, value, values))
        return "".join(filled)


def parse_template(text: str) -> Template:
    """Parse a template. Raises InputError saying what in it can't be used, and where."""
    pieces: list[tuple[str, str | None]] = []
    literal = ""
    start = 0
    while brace := _BRACES.search(text, start):
        literal += text[start : brace.start()]
        start = brace.end()
        if brace[0] in ("{{", "}}"):
            literal += brace[0][0]
            continue
        end = text.find("}", start)
        name = text[start:end]
        if problem := _problem(brace[0], name, is_closed=end >= 0):
            raise _error(text, f"{_place(text, brace.start())}: {problem}")
        pieces.append((literal, name))
        literal, start = "", end + 1
    if not pieces:
        raise _error(text, "it uses no column")
    if literal or start < len(text):
        pieces.append((literal + text[start:], None))
    return Template(tuple(pieces))


def _problem(brace: str, name: str, *, is_closed: bool) -> str | None:
    if brace == "}":
        return "a } without its {"
    if not is_closed:
        return "a { without its }"
    if "{" in name:
        return "a { with another before its }"
    field = _shown("{" + name + "}")
    if not name:
        return "a pair of braces names no column"
    if "!" in name:
        return f"{field} has a conversion"
    if ":" in name:
        return f"{field} has a format specification"
    if "." in name or "[" in name:
        return f"{field} reaches into a value"
    return None


def _place(text: str, position: int) -> str:
    before = text[:position]
    return f"line {before.count(_NEWLINE) + 1}, character {position - (before.rfind(_NEWLINE) + 1) + 1}"


def _error(text: str, problem: str) -> InputError:
    return InputError(
        f"template {_shown(text)}: {problem}; name columns in single braces, as in 'Summarize: {{text}}', and write "
        "{{ and }} for braces that are text, as in JSON"
    )


def _as_text(column: str, value: Any, values: Mapping[str, Any]) -> str:
    if value is None:
        problem = "is null" if column in values else "is missing"
        raise InvalidRowError(f"{column} {problem}; the template needs a value", param=column, kind="missing")
    return json_text(value) or ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
