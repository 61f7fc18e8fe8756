"""Counts have their nouns by one function: no message of a command says "1 rows"."""

import re

import pytest

from tests.unit.house.test_imports import ROOT, source_files

_NOUNS = (
    "rows|shards|workers|lines|models|jobs|files|choices|completions|attempts|errors|messages|batches|requests|tokens|"
    "slots|cores|characters"
)
#: A value in an f-string that is no constant, and behind it a noun that is right for most numbers.
_BARE = re.compile(rf"\{{(?![\w.]*\b[A-Z][A-Z_]+:)[^{{}}]*(:,|num_\w+|len\([^{{}}]*\))\}} (?:{_NOUNS})\b")
#: What tells one from many, in the same line.
_TOLD = ("== 1", "> 1")


def bare_counts(source: str) -> list[str]:
    lines = enumerate(source.splitlines(), 1)
    return [f"{number}: {line.strip()}" for number, line in lines if _BARE.search(line) and not _is_told(line)]


def _is_told(line: str) -> bool:
    return any(text in line for text in _TOLD)


def test_what_commands_say_counts_nouns_by_one_function() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): bare
        for path in source_files("batcher/cli", "batcher/api", "batcher/manage")
        if (bare := bare_counts(path.read_text(encoding="utf-8")))
    }

    assert found == {}, "batcher/words.py: counted(number, noun)"


@pytest.mark.parametrize(
    ("line", "is_bare"),
    [
        ('f"Submitted {manifest.num_rows:,} rows"', True),
        ('f"{len(found)} shards"', True),
        ('f"{found.num_measured:,} completions"', True),
        ("f\"{counted(manifest.num_rows, 'row')} done\"", False),
        ('f"{limits.MAX_CHARS:,} characters at most"', False),
        ('f"{which} rows are refused"', False),
        ('"1 file" if number == 1 else f"{number:,} files"', False),
    ],
)
def test_bare_count_is_found(line: str, is_bare: bool) -> None:
    assert bool(bare_counts(line)) == is_bare
