"""Dataclasses as lines of JSON, by which processes of one installation tell each other things on pipes."""

import json
from collections.abc import Hashable
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import TypeAdapter

_T = TypeVar("_T")


def encode(value: "DataclassInstance") -> bytes:
    """One line. Written by `json`, as paths may hold what is no UTF-8, which pydantic refuses."""
    return json.dumps(asdict(value)).encode() + b"\n"


def decode(kind: type[_T], line: bytes) -> _T:
    """What `encode` wrote of a value of this type. Raises ValueError."""
    return from_plain(kind, json.loads(line))


def from_plain(kind: type[_T], value: object) -> _T:
    """The dataclass of this type that `asdict` made `value` of. Raises ValueError."""
    found: _T = _adapter(cast("Hashable", kind)).validate_python(value)
    return found


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    # Imported where the first line comes: an entry point has set up its imports by then.
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
