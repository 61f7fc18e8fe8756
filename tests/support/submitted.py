"""Input files for submit, and what it made of them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from batcher.jobdir.folder import JobDir
from batcher.jobdir.shards import Shard, ShardRow, read_shard
from batcher.submission.source import SubmitOptions
from batcher.types import SamplingParams


def make_options(**changes: Any) -> SubmitOptions:
    usual: dict[str, Any] = {
        "default_model": "tiny",
        "params": SamplingParams(),
        "known_models": frozenset({"tiny"}),
    }
    return SubmitOptions(**(usual | changes))


def write_lines(path: Path, *lines: dict[str, Any] | bytes) -> str:
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    return str(path)


def shards_of(job: JobDir) -> list[Shard]:
    manifest = JobDir.open(job.path).manifest
    return [read_shard(job.shard_path(info.shard), carried=manifest.carried) for info in manifest.shards]


def rows_of(job: JobDir) -> list[ShardRow]:
    """All rows of a job in input order."""
    return sorted((row for shard in shards_of(job) for row in shard.rows), key=lambda row: row.request.row)


def carried_rows(job: JobDir) -> pa.Table:
    """What is carried, in input order. Needs a column: a table without any does not know its rows."""
    shards = shards_of(job)
    order = pa.array([row.request.row for shard in shards for row in shard.rows])
    table = pa.concat_tables([shard.carried for shard in shards])
    return table.append_column("__row", order).sort_by("__row").drop_columns("__row")


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
