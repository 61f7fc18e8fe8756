"""docs/ names only what exists."""

import re
from pathlib import Path

from tests.support.field_tables import PAGE, renewed

ROOT = Path(__file__).parents[3]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_each_transition_of_a_shard_has_a_test_that_walks_it() -> None:
    rows = re.findall(r"^\| ([A-Z]) \|.*\| `(.+)::(test_\w+)` \|$", PROTOCOL, flags=re.MULTILINE)
    letters = [letter for letter, _, _ in rows]

    assert letters == [chr(ord("A") + i) for i in range(len(letters))]
    picture = PROTOCOL.split("```")[1]
    assert [letter for letter in letters if not re.search(rf"\b{letter} \w", picture)] == []


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(test_\w+)`", PROTOCOL)

    assert len(named) > 15
    assert [test for file, test in named if f"def {test}(" not in (ROOT / file).read_text(encoding="utf-8")] == []


def test_tables_of_fields_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert renewed(page) == page, "run .venv/bin/python -m tests.support.field_tables"
