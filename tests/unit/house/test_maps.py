"""Each package's docstring is its map: a line for each of its modules, and none for what is not there."""

import ast
import re
from pathlib import Path

import pytest

from tests.unit.house.test_imports import FLOORS, ROOT

PACKAGES = [ROOT / "tests" / "support", ROOT / "tests" / "containers"]
PACKAGES += sorted(path.parent for top in ("batcher", "workers") for path in (ROOT / top).rglob("__init__.py"))


def entries(docstring: str) -> list[str]:
    """The names of a map: what begins a line and has words after it, as `name.py  words` and `name/  words`."""
    return re.findall(r"^(\w+(?:\.py|/)) +\S", docstring, flags=re.MULTILINE)


def things_in(package: Path) -> set[str]:
    modules = {path.name for path in package.glob("*.py") if path.name != "__init__.py"}
    return modules | {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_map_of_a_package_names_each_module_and_nothing_else(package: Path) -> None:
    file = package / "__init__.py"
    named = entries(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "")

    assert len(named) == len(set(named)), "a module stands twice in the map"
    where = f"the docstring of {file.relative_to(ROOT)}"
    missing = [f"{name}  what it is for" for name in sorted(things_in(package) - set(named))]
    assert missing == [], f"add a line of your own words to {where}"
    assert sorted(set(named) - things_in(package)) == [], f"gone: take the line out of {where}"


def test_unit_tests_lie_in_folders_of_the_rooms() -> None:
    """Those of the ground, of the tree itself, and of the workers around the engines in one folder each."""
    rooms = {path.parent.name for path in (ROOT / "batcher").glob("*/__init__.py")}
    folders = {path.parent.name for path in (ROOT / "tests" / "unit").glob("*/__init__.py")}

    assert folders == rooms | {"ground", "house", "engines", "workers"}


def test_map_of_contributing_names_each_room() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = [room.split("/")[-1] for rooms in FLOORS for room in rooms if room != "the ground"]

    named = "".join(re.findall(r"^    .+\n", page.split("## The map")[1].split("## ")[0], flags=re.MULTILINE))
    assert [room for room in rooms if not re.search(rf"^ +(.*\.py )?{room}\b", named, flags=re.MULTILINE)] == []


def test_a_map_is_read_line_by_line() -> None:
    docstring = "What it is.\n\nfolder.py  paths, see `store.py`\nguard/     keys\n\nlock.py\nand store.py too\n"

    assert entries(docstring) == ["folder.py", "guard/"]
