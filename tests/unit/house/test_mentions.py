"""What a docstring or comment sends its reader to, as "see `lock`", can be found."""

import re
from pathlib import Path

import pytest

from tests.unit.house.test_imports import ROOT, source_files


def module_file(name: str) -> Path | None:
    """The file of a module or package, by its dotted name."""
    path = ROOT / name.replace(".", "/")
    files = [path.with_suffix(".py"), path / "__init__.py"]
    return next((file for file in files if file.is_file()), None)


def defines(source: str, name: str) -> bool:
    """Whether a module defines `name`, or imports it."""
    patterns = (
        rf"(?:def|class) {name}\b",
        rf"(?:self\.)?{name}(?:: .+)? = ",
        rf"from .+ import .*\b{name}\b",
        rf"{name},",
    )
    return any(re.search(rf"^ *{pattern}", source, re.MULTILINE) for pattern in patterns)


def is_found(mention: str, *, file: Path) -> bool:
    """Whether `mention` is a module (beside `file`, or by the rooms to it), or a definition in one of these."""
    package = ".".join(file.relative_to(ROOT).parent.parts)
    head, _, last = mention.rpartition(".")
    for prefix in (f"{package}.", "batcher.", "workers.", ""):
        if module_file(prefix + mention):
            return True
        owner = module_file(prefix + head) if head else None
        if owner and defines(owner.read_text(encoding="utf-8"), last):
            return True
    sources = [path.read_text(encoding="utf-8") for path in file.parent.glob("*.py")]
    return any(all(defines(source, part) for part in mention.split(".")) for source in sources)


def test_each_thing_that_a_reader_is_sent_to_exists() -> None:
    mentions = [
        (file, mention)
        for file in source_files("batcher", "workers")
        for mention in re.findall(r"[Ss]ee `([\w.]+)`", file.read_text(encoding="utf-8"))
    ]

    assert len(mentions) > 20
    lost = [f"{file.relative_to(ROOT)}: `{name}`" for file, name in mentions if not is_found(name, file=file)]
    assert lost == [], "name a module of the same package, or the rooms to it: `jobdir.lock`"


def test_each_file_of_the_tree_that_code_names_exists() -> None:
    path = re.compile(r"(?<![\w/.])(?:batcher|workers|tests|docs|bench|scripts|jobs)/[\w/]+\.(?:py|md|sh|cpp|cmake)\b")
    lost = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in source_files("batcher", "workers", "bench")
        for name in path.findall(file.read_text(encoding="utf-8"))
        if not (ROOT / name).is_file()
    ]

    assert lost == []


@pytest.mark.parametrize(
    ("mention", "is_there"),
    [
        ("lock", False),
        ("jobdir.lock", True),
        ("retry", True),
        ("jobdir.lock.nothing", False),
        ("local_store.create_if_absent", False),
        ("jobdir.local_store.create_if_absent", True),
        ("storage", False),
    ],
)
def test_a_mention_is_looked_for_where_a_reader_would(mention: str, is_there: bool) -> None:
    assert is_found(mention, file=ROOT / "batcher" / "manage" / "retry.py") is is_there
