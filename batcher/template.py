"""Prompt templates: text with `{column}` in it, filled from the columns of a row.

The syntax is that of `str.format` reduced to plain names: `{{` and `}}` stand for braces, and attribute or index
access, conversions and format specifications are refused when the template is parsed, not row by row.
"""

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batcher.errors import InputError, InvalidRowError
from batcher.values import json_text


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
    """Parse a template. Raises InputError saying what in it can't be used."""
    try:
        fields = list(string.Formatter().parse(text))
    except ValueError as exc:
        raise InputError(f"template {_shown(text)}: {exc}; write {{{{ and }}}} for literal braces") from exc
    pieces = []
    for literal, name, spec, conversion in fields:
        if name is not None:
            _check_field(text, name, spec or "", conversion)
        pieces.append((literal, name))
    if all(name is None for _, name in pieces):
        raise InputError(f"template {_shown(text)}: it uses no column; name one in braces, as in 'Summarize: {{text}}'")
    return Template(tuple(pieces))


def _check_field(text: str, name: str, spec: str, conversion: str | None) -> None:
    field = "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
    if not name:
        problem = "a pair of braces names no column"
    elif conversion:
        problem = f"{field} has a conversion"
    elif spec:
        problem = f"{field} has a format specification"
    elif "." in name or "[" in name:
        problem = f"{field} reaches into a value"
    else:
        return
    raise InputError(f"template {_shown(text)}: {problem}; use a plain column name in braces, as in {{text}}")


def _as_text(column: str, value: Any, values: Mapping[str, Any]) -> str:
    if value is None:
        problem = "is null" if column in values else "is missing"
        raise InvalidRowError(f"{column} {problem}; the template needs a value", param=column, kind="missing")
    return json_text(value) or ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
