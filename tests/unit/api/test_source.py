"""What can be given as source, and what is told of anything else."""

from collections import UserDict
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from batcher.api.source import inputs_of
from batcher.errors import InputError
from batcher.submission.readers.bounds import NO_BOUNDS
from batcher.submission.readers.files import ReadOptions
from batcher.submission.readers.memory import ArrowRows, DictRows


class OldFrame:
    """As frames of pandas are before 2.2."""

    def __dataframe__(self) -> None: ...
    def __iter__(self) -> Any:
        return iter(["prompt"])


@pytest.mark.parametrize("source", ["data/*.jsonl", Path("data/a.jsonl"), ["a.jsonl", Path("b.parquet")], ("a.jsonl",)])
def test_paths_are_files(source: Any) -> None:
    assert all(isinstance(each, str) for each in inputs_of(source))


def test_home_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")

    assert inputs_of("~/a.jsonl") == ["/home/somebody/a.jsonl"]


@pytest.mark.parametrize(
    "source", [[{"prompt": "a"}], ({"prompt": "a"} for _ in range(3)), [UserDict(prompt="a")]], ids=type
)
def test_dicts_are_rows(source: Any) -> None:
    (found,) = inputs_of(source)

    assert isinstance(found, DictRows)


@pytest.mark.parametrize(
    "source", [each({"prompt": ["a"]}) for each in (pa.table, pd.DataFrame, pl.DataFrame)], ids=type
)
def test_tables_are_tables(source: Any) -> None:
    (found,) = inputs_of(source)

    assert isinstance(found, ArrowRows)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (7, "source is of type int, which cannot be read here; give a path"),
        ({"prompt": "a"}, "source is one dict; a row is a dict, so put it into a list"),
        ([], "source is empty; give a path"),
        (pl.LazyFrame(), r"source is a LazyFrame, which holds no rows yet; give source.collect\(\)"),
        (OldFrame(), "source is of type OldFrame, which cannot be read here"),
        (["Say hello"], r"source: item 0 is a text and no file; prompts go in as dicts: \[\{'prompt': text\}"),
        (["a.jsonl", {"prompt": "a"}], "source: item 1 is of type dict, those before are paths"),
        (b"a.jsonl", "source: row 0: is of type int; give dicts"),
    ],
    ids=["number", "one-dict", "empty", "lazy", "old-frame", "prompts", "mixed", "bytes"],
)
def test_anything_else_is_told_with_the_remedy(source: Any, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read(source)


def read(source: Any) -> None:
    for each in inputs_of(source):
        assert isinstance(each, DictRows)
        each.digest()


def test_row_that_is_none_is_no_end_of_the_rows() -> None:
    source: list[Any] = [None, {"prompt": "a"}]
    (rows,) = inputs_of(source)

    assert isinstance(rows, DictRows)
    with pytest.raises(InputError, match="row 0: is of type NoneType"):
        list(rows.batches(ReadOptions(), NO_BOUNDS))
