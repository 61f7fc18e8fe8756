"""The pages name only what exists: tests, files, headings."""

import re
from pathlib import Path

import pytest

from tests.support.field_tables import PAGE, renewed

ROOT = Path(__file__).parents[3]
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("jobs/*.md"))
)
MAX_README_LINES = 250


def text_of(page: str) -> str:
    """A page without its code blocks, whose brackets and hashes are no links and headings."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: str) -> set[str]:
    """What `#...` can mean on a page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_there(target: str, *, page: str) -> bool:
    """Whether a link on `page` leads to a file of the tree and a heading of it."""
    file, _, anchor = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    if not (path.exists() and path.resolve().is_relative_to(ROOT)):
        return False
    return not anchor or anchor in anchors(path.resolve().relative_to(ROOT).as_posix())


@pytest.mark.parametrize("page", PAGES)
def test_each_link_leads_to_a_file_and_heading_of_the_tree(page: str) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_of(page))

    assert [target for target in targets if not is_there(target, page=page)] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_each_file_of_the_tree_that_is_named_exists(page: str) -> None:
    named = re.findall(r"`((?:batcher|workers|tests|bench|scripts|docs|jobs|requirements)/[\w./*-]*)", text_of(page))

    assert [name for name in named if not list(ROOT.glob(name.rstrip("/")))] == []


@pytest.mark.parametrize("page", PAGES)
def test_each_module_that_a_page_has_run_exists(page: str) -> None:
    named = re.findall(r"-m ((?:bench|tests|batcher|workers)\.[\w.]*\w)", (ROOT / page).read_text(encoding="utf-8"))

    assert [name for name in named if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file()] == []


def test_each_page_is_reached_from_readme() -> None:
    reached, waiting = set(), {"README.md"}
    while waiting:
        page = waiting.pop()
        reached.add(page)
        links = re.findall(r"\]\((?!https?:)([^)\s#]+\.md)", text_of(page))
        found = {(ROOT / page).parent.joinpath(link).resolve().relative_to(ROOT).as_posix() for link in links}
        waiting |= found - reached

    assert set(PAGES) - reached == set()


def test_each_definition_that_contributing_names_is_in_its_file() -> None:
    named = re.findall(r"`([\w/]+\.py)`:\s+`(?:\w+\.)?(\w+)`", text_of("CONTRIBUTING.md"))

    assert len(named) > 10
    sources = {file: (ROOT / file).read_text(encoding="utf-8") for file, _ in named}
    assert [f"{file}: {name}" for file, name in named if not re.search(rf"(def|class) {name}\b", sources[file])] == []


def test_a_dead_link_is_found() -> None:
    assert is_there("docs/decisions.md#what-is-promised", page="README.md")
    assert is_there("../SECURITY.md", page="docs/operations.md")
    assert is_there("#words", page="README.md")
    assert not is_there("decisions.md", page="README.md")
    assert not is_there("docs/decisions.md#what-was-promised", page="README.md")
    assert not is_there("../../main/README.md", page="README.md")


def test_readme_can_be_read_in_one_go() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MAX_README_LINES


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
