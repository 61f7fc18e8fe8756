"""Kills or holds a process at a chosen function of ours, so that a test can do something at that very moment.

This folder goes on PYTHONPATH, so that Python imports `sitecustomize` from it at its start, before any of our code.
The product has no hook for tests.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tests.support.waiting import wait_for

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Interruption:
    """Where processes started with `env` stop: at a call of `at` ("module:function") with `match` in its arguments.

    `within` is part of the command line of the processes that do. `file` is a name that nobody else uses. A killed
    process is killed once: its successors go on.
    """

    file: Path
    at: str
    match: str = ""
    within: str = ""
    is_deadly: bool = False

    @property
    def env(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, [str(_FOLDER), os.environ.get("PYTHONPATH")]))
        return {
            "PYTHONPATH": path,
            "INTERRUPT_AT": self.at,
            "INTERRUPT_MATCH": self.match,
            "INTERRUPT_WITHIN": self.within,
            "INTERRUPT_HOW": "kill" if self.is_deadly else "hold",
            "INTERRUPT_FILE": str(self.file),
        }

    @property
    def is_reached(self) -> bool:
        return self.file.with_suffix(".reached").exists()

    def wait(self) -> None:
        """Wait until a process has come there."""
        wait_for(lambda: self.is_reached, what=f"{self.at} is called with {self.match or 'anything'}")

    def release(self) -> None:
        """Let all go on that are held, and those that come later."""
        self.file.touch()
