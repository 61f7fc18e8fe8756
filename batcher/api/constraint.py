"""The options that say what every text of a job must be: read, and compiled where llguidance is installed."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from batcher import constraints
from batcher.errors import InputError
from batcher.paths import expand_home
from batcher.types import Constraint, ConstraintKind

#: Bytes of a file, none of whose characters takes more than four.
_MAX_BYTES = 4 * constraints.MAX_CHARS


def read_constraint(options: Mapping[str, Any]) -> Constraint | None:
    """The constraint of a job by its checked options; None where there is none. Reads the files that are named.

    Raises InputError for one that is none, can't be compiled, or for two.
    """
    given = {name: options[name] for name in _READERS if options.get(name) not in (None, (), [])}
    if len(given) > 1:
        raise InputError(
            f"{' and '.join(given)} are both given; every text can be held to one of them: leave out others"
        )
    for name, value in given.items():
        try:
            constraint = _READERS[name](value)
        except ValueError as exc:
            raise InputError(f"{name} {exc}") from exc
        if options.get("scores"):
            if constraint.kind is not ConstraintKind.CHOICE:
                raise InputError(f"scores has no effect with {name}; give choice, the labels that are to be scored")
            constraint = _scored(constraint)
        if problem := _find_problem(constraint):
            raise InputError(f"{name} can't be compiled: {problem}")
        return constraint
    if options.get("scores"):
        raise InputError("scores is given without choice, the labels that are to be scored; give them, too")
    return None


def _scored(choice: Constraint) -> Constraint:
    try:
        return constraints.scored_choice(choice.labels)
    except ValueError as exc:
        raise InputError(f"choice {exc}") from exc


def _json_schema(value: Any) -> Constraint:
    if isinstance(value, type):
        if not hasattr(value, "model_json_schema"):
            raise ValueError(f"is the class {value.__name__}; of classes only models of pydantic have a schema")
        return constraints.json_schema(value.model_json_schema())
    if isinstance(value, dict):
        return constraints.json_schema(value)
    if isinstance(value, str) and (value.lstrip()[:1] in ("{", "[", '"') or value.strip() in ("true", "false")):
        return constraints.json_schema(value)
    return constraints.json_schema(_read(value, remedy="or the schema itself, as JSON text that begins with {"))


def _grammar(value: Any) -> Constraint:
    if isinstance(value, str) and ("\n" in value or constraints.is_grammar(value)):
        return constraints.grammar(value)
    return constraints.grammar(_read(value, remedy="or the grammar itself"))


_READERS: Mapping[str, Callable[[Any], Constraint]] = {
    "json_schema": _json_schema,
    "choice": constraints.choice,
    "regex": constraints.regex,
    "grammar": _grammar,
}


def _read(name: str | os.PathLike[str], *, remedy: str) -> str:
    """The text of a file. Raises InputError."""
    path = Path(expand_home(name))
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"{path}: is longer than {constraints.MAX_CHARS:,} characters; shorten it")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ValueError(f"{path}: is not UTF-8 at byte {exc.start}; save the file as UTF-8") from exc
    except OSError as exc:
        raise ValueError(f"{path}: cannot read the file: {exc.strerror or exc}; give its path, {remedy}") from exc


def _find_problem(constraint: Constraint) -> str:
    """Why no model can keep to it; "" where one can, or where nothing here can tell: then rows say it."""
    try:
        from workers.engines.llama.grammars import find_problem

        return find_problem(constraint)
    except ImportError:
        return ""
