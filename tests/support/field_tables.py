"""The tables of docs/serving.md that say what becomes of each field of a body, made of `batcher.openai.fields`.

    .venv/bin/python -m tests.support.field_tables

writes them anew; a test asks that they are as this makes them.
"""

import json
from pathlib import Path

from batcher.openai.body_field import BodyField, Of, Use
from batcher.openai.fields import FIELDS

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
_BEGIN = "<!-- Made of batcher/openai/fields.py by `python -m tests.support.field_tables`. -->\n"
_END = "<!-- End of the fields. -->\n"
_REQUESTS = {Of.BOTH: "", Of.TEXT: " (completions)", Of.CHAT: " (chats)"}


def main() -> None:
    """Write the tables into the page."""
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def renewed(page: str) -> str:
    """The page with the tables as they should be."""
    before, rest = page.split(_BEGIN)
    _, after = rest.split(_END)
    return f"{before}{_BEGIN}\n{_tables()}\n{_END}{after}"


def _tables() -> str:
    honoured = [
        f"| `{field.name}`{_REQUESTS[field.of]} | {field.values} | {field.default} | {field.meaning} |"
        for field in FIELDS
        if field.use is Use.HONOURED
    ]
    harmless = [f"| {names} | {reason} |" for reason, names in _by_text(Use.HARMLESS).items()]
    refused = [f"| {names} | {remedy} |" for remedy, names in _by_text(Use.REFUSED).items()]
    parts = [
        "**Honoured.**\n",
        *("| field | values | default | meaning |", "|---|---|---|---|"),
        *honoured,
        "\n**Harmless**: accepted, as no answer depends on them.\n",
        *("| fields | what they are about |", "|---|---|"),
        *harmless,
        "\n**Refused**, but for null and the values in brackets, which ask for nothing.\n",
        *("| fields | instead |", "|---|---|"),
        *refused,
    ]
    return "\n".join(parts) + "\n"


def _by_text(use: Use) -> dict[str, str]:
    """The fields of a use by what is said of them."""
    groups: dict[str, list[str]] = {}
    for field in FIELDS:
        if field.use is use:
            groups.setdefault(field.remedy or field.meaning, []).append(_named(field))
    return {text: ", ".join(names) for text, names in groups.items()}


def _named(field: BodyField) -> str:
    neutral = ", ".join(f"`{json.dumps(value)}`" for value in field.nothing)
    return f"`{field.name}`{_REQUESTS[field.of]}" + (f" [{neutral}]" if neutral else "")


if __name__ == "__main__":
    main()
