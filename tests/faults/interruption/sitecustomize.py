"""Stops the process at a function, as its environment says; harmless in every other process.

INTERRUPT_AT=MODULE:FUNCTION    at a call of this function
INTERRUPT_MATCH=TEXT            that has TEXT in one of its arguments
INTERRUPT_WITHIN=TEXT           in a process that has TEXT in its command line
INTERRUPT_HOW=hold | kill       holds the thread until the file PATH is there; or SIGKILL, unless it was done before
INTERRUPT_FILE=PATH             PATH.reached is made when the process comes there
"""

import importlib.abc
import importlib.machinery
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULE, _, _FUNCTION = os.environ.get("INTERRUPT_AT", "").partition(":")


def _stop() -> None:
    file = Path(os.environ["INTERRUPT_FILE"])
    reached = file.with_suffix(".reached")
    was_reached = reached.exists()
    reached.touch()
    if os.environ["INTERRUPT_HOW"] == "kill":
        if not was_reached:
            os.kill(os.getpid(), signal.SIGKILL)
        return
    while not file.exists():
        time.sleep(0.01)


def _stopping(function: Callable[..., Any]) -> Callable[..., Any]:
    match = os.environ["INTERRUPT_MATCH"]

    def stop_and_call(*args: Any, **kwargs: Any) -> Any:
        if not match or any(match in str(value) for value in (*args, *kwargs.values()) if not isinstance(value, bytes)):
            _stop()
        return function(*args, **kwargs)

    return stop_and_call


class _Loader(importlib.abc.Loader):
    """Loads the module as another would, then puts the stop into it, before anybody imports the function from it."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        setattr(module, _FUNCTION, _stopping(getattr(module, _FUNCTION)))


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


if _MODULE and os.environ["INTERRUPT_WITHIN"] in " ".join(sys.orig_argv):
    sys.meta_path.insert(0, _Finder())
