"""Functions of the user's own that are asked of each answer, found by name: "module:function".

They run in the workers, so a worker calls only those that whoever started it has named: a job directory can come from
anywhere, and its manifest could name any function that is installed.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batcher.errors import InputError, JobError
from batcher.startup import import_all

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True, slots=True)
class ValidatorRef:
    """A validator by its name, and the folder in which its module is found, beside those where Python looks."""

    name: str
    folder: str


def check_name(name: str) -> str:
    """`name`, if it can be that of a function. Raises InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(f"validate is {name!r}; name a function as module:function")
    return name


def find_validator(name: str) -> ValidatorRef:
    """The validator of this name, looked for in the working directory, too; imports its module. Raises InputError."""
    check_name(name)
    ref = ValidatorRef(name, str(Path.cwd()))
    try:
        function = load_validator(ref)
    except JobError as exc:
        raise InputError(str(exc)) from exc
    top = sys.modules[name.partition(":")[0].partition(".")[0]]
    source = inspect.getsourcefile(function) if top.__file__ is None else top.__file__
    if source is None:
        return ref
    # Where a child, which begins with other folders, finds it.
    path = Path(source).resolve()
    return ValidatorRef(name, str(path.parent.parent if path.name == "__init__.py" else path.parent))


def name_validator(function: object) -> str:
    """The name of a function that a Python caller gives. Raises InputError for one that no other process finds."""
    module, qualified = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not qualified or module == "__main__" or "<" in qualified:
        raise InputError(
            f"validate is {getattr(function, '__name__', function)!r}, which workers cannot import, as they are "
            "processes of their own; put the function into a module, at its top level, and import it from there"
        )
    return f"{module}:{qualified}"


def load_validator(ref: ValidatorRef) -> Callable[[Any], object]:
    """The function itself. Raises JobError that says what is wrong with its name or its module."""
    module, _, path = ref.name.partition(":")
    if ref.folder not in sys.path:
        # Last, so that no file of the user's is taken for a module of others.
        sys.path.append(ref.folder)
    import_all()
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except Exception as exc:
        raise JobError(f"the validator {ref.name} cannot be imported: {exc}; correct its name or its module") from exc
    if not callable(found):
        raise JobError(f"the validator {ref.name} is no function; name a function as module:function")
    function: Callable[[Any], object] = found
    return function


def load_allowed(name: str, allowed: Iterable[ValidatorRef]) -> Callable[[Any], object] | None:
    """The validator of a job, "" for none. Raises JobError where it is none of those `allowed`, or can't be loaded."""
    if not name:
        return None
    for ref in allowed:
        if ref.name == name:
            return load_validator(ref)
    raise JobError(
        f"its answers are to be checked by {name}, which this worker may not call; start it with --allow-validator "
        f"{name}"
    )
