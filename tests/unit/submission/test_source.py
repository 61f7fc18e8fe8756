"""The fingerprint: what tells one job from another."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batcher.errors import JobError
from batcher.jobdir.folder import JobDir
from batcher.selection import RowSelection
from batcher.submission.planner import submit
from batcher.submission.readers.files import NamedStream
from batcher.submission.readers.memory import ArrowRows
from batcher.submission.source import fingerprint
from tests.support.submitted import make_options, write_lines


def test_fields_tell_jobs_apart_in_whatever_order_they_are_named(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a", "top_k": 5})

    found = [
        fingerprint([path], make_options(fields=fields))
        for fields in ((), ("top_k",), ("top_k", "min_p"), ("min_p", "top_k", "top_k"))
    ]

    assert len(set(found)) == 3
    assert found[2] == found[3]


def test_fingerprint_covers_files_and_streams_whole(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})
    options = make_options()
    prints = {
        fingerprint([path], options),
        fingerprint([path, path], options),
        fingerprint([path, NamedStream(io.BytesIO(b"x"))], options),
        fingerprint([path, NamedStream(io.BytesIO(b"y"))], options),
    }
    assert len(prints) == 4


class EndlessLines:
    """These lines, and then blank ones for ever; `max_bytes` may be read."""

    def __init__(self, lines: bytes, max_bytes: int = 64 << 20) -> None:
        self._lines = lines
        self._left = max_bytes

    def read(self, size: int = -1, /) -> bytes:
        assert 0 <= size <= self._left, "it is read on although the rows are there"
        self._left -= size
        data, self._lines = self._lines[:size], self._lines[size:]
        return data + b"\n" * (size - len(data))


def endless(*prompts: str) -> NamedStream:
    return NamedStream(EndlessLines(b"".join(b'{"prompt": "%s"}\n' % prompt.encode() for prompt in prompts)))


def test_first_rows_are_told_by_what_they_hold_alone(tmp_path: Path) -> None:
    options = make_options(selection=RowSelection(limit=2))
    path, longer, other = (
        write_lines(tmp_path / f"{'-'.join(prompts)}.jsonl", *({"prompt": prompt} for prompt in prompts))
        for prompts in ("ab", "abc", "ac")
    )
    found = fingerprint([path], options)

    assert fingerprint([longer], options) == found
    assert fingerprint([endless("a", "b")], options) == found
    assert fingerprint([endless("a", "b", "d")], options) == found
    assert fingerprint([other], options) != found
    assert fingerprint([endless("a", "c")], options) == fingerprint([other], options)
    assert fingerprint([longer], make_options(selection=RowSelection(limit=3))) != found


def test_first_rows_of_tables_are_the_same_however_they_are_stored(tmp_path: Path) -> None:
    options = make_options(selection=RowSelection(limit=250))
    texts = [f"prompt {number}" for number in range(300)]

    def written(name: str, table: pa.Table, **how: Any) -> str:
        pq.write_table(table, tmp_path / name, **how)
        return fingerprint([str(tmp_path / name)], options)

    table = pa.table({"prompt": texts, "n": [*range(300)]})
    found = written("one.parquet", table)

    assert written("many.parquet", table, row_group_size=7, use_dictionary=False) == found
    assert written("first.parquet", table.slice(0, 250)) == found
    assert fingerprint([ArrowRows(table)], options) == found
    assert written("narrow.parquet", table.set_column(1, "n", table["n"].cast(pa.int32()))) != found
    assert written("named.parquet", table.rename_columns(["prompt", "m"])) != found
    assert written("turned.parquet", table.take([*range(1, 250), 0])) != found


def test_columns_that_files_give_to_first_rows_count(tmp_path: Path) -> None:
    def found(*languages: str, limit: int = 2) -> str:
        paths = []
        for language in languages:
            folder = tmp_path / str(len(languages)) / f"language={language}"
            folder.mkdir(parents=True, exist_ok=True)
            paths.append(write_lines(folder / "p.jsonl", {"prompt": "a"}))
        return fingerprint(paths, make_options(selection=RowSelection(limit=limit)))

    assert found("en", "de") != found("de", "en")
    assert found("en", "de", limit=1) == found("en", "fr", limit=1)


def test_first_rows_of_an_endless_stream_are_a_job_that_is_found_again(tmp_path: Path) -> None:
    job = JobDir(tmp_path / "job")
    options = make_options(selection=RowSelection(limit=2))

    assert submit(job, [endless("a", "b")], options).is_new
    assert not submit(job, [endless("a", "b", "c")], options).is_new
    with pytest.raises(JobError, match="holds a job with other input"):
        submit(job, [endless("a", "c")], options)
