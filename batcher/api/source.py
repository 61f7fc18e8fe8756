"""What a caller gives as `source`: paths, dicts or a table, as inputs of a job."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from batcher.errors import InputError
from batcher.paths import expand_home
from batcher.submission.readers.memory import ArrowRows, ArrowStream, DictRows
from batcher.submission.source import Input

#: A file, a folder or a glob; several of them; dicts, one a row; or a table of any library that speaks Arrow.
Source = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Iterable[Mapping[str, Any]] | ArrowStream

_KINDS = "give a path, a list of paths, dicts such as {'prompt': '...'}, or a table of pyarrow, pandas or Polars"


def inputs_of(source: Source) -> list[Input]:
    """The inputs that `source` stands for. Raises InputError for what it can't be, and for paths without a file."""
    if isinstance(source, str | os.PathLike):
        return [_path(source)]
    if isinstance(source, ArrowStream):
        return [ArrowRows(source)]
    if isinstance(source, Mapping):
        raise InputError("source is one dict; a row is a dict, so put it into a list")
    if hasattr(source, "collect") and hasattr(source, "lazy"):
        raise InputError(f"source is a {type(source).__name__}, which holds no rows yet; give source.collect()")
    if hasattr(source, "__dataframe__") or not isinstance(source, Iterable):
        raise InputError(f"source is of type {type(source).__name__}, which cannot be read here; {_KINDS}")
    items: Iterator[Any] = iter(source)
    try:
        first = next(items)
    except StopIteration:
        raise InputError(f"source is empty; {_KINDS}") from None
    if isinstance(first, str | os.PathLike):
        return _paths([first, *items])
    return [DictRows(chain([first], items))]


def _paths(items: Sequence[Any]) -> list[Input]:
    for position, item in enumerate(items):
        if not isinstance(item, str | os.PathLike):
            raise InputError(f"source: item {position} is of type {type(item).__name__}, those before are paths")
        # Nobody's path, but somebody's prompt.
        if isinstance(item, str) and ("\n" in item or " " in item) and not os.path.lexists(item):
            raise InputError(
                f"source: item {position} is a text and no file; prompts go in as dicts: "
                "[{'prompt': text} for text in texts]"
            )
    return [_path(item) for item in items]


def _path(path: str | os.PathLike[str]) -> str:
    return expand_home(path)
