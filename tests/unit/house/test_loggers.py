"""Whoever sets the level of the logger `batcher` sets that of all our loggers, those of the package workers too."""

import re

from tests.unit.house.test_imports import ROOT, source_files

#: Of libraries, which are silenced by name.
_FOREIGN = ("celery", "uvicorn", "asyncio", "kombu")


def test_each_logger_of_ours_is_below_batcher() -> None:
    strays = []
    for path in source_files("batcher", "workers"):
        for name in re.findall(r"^\w+ = logging\.getLogger\((.*)\)$", path.read_text("utf-8"), flags=re.MULTILINE):
            is_ours = name.strip('f"').startswith(("batcher", *_FOREIGN))
            # In `batcher/` a module's own name is below it.
            if not (is_ours or (name == "__name__" and path.is_relative_to(ROOT / "batcher"))):
                strays.append(f"{path.relative_to(ROOT)}: {name}")

    assert strays == [], "name it below 'batcher'"
