"""The result rows that exist now, of a running job, too, each input row once.

Works shard by shard, so memory is bounded by one shard, and of a part only the columns are unpacked that somebody asks
for. A shard without a part is read from its chunks.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from batcher.arrow.conditions import Column, Condition
from batcher.arrow.values import json_values
from batcher.errors import CorruptFileError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.results import Counts, job_schema, join_tables, read_chunks, read_counts
from batcher.manage.repair import read_part, with_remedy


def finished_tables(
    job: JobDir, *, columns: Sequence[Column] | None = None, where: Condition | None = None
) -> Iterator[pa.Table]:
    """The result rows that exist now, a table a shard, in order: of its part, else the union of its chunks.

    Every input row appears at most once. With `columns` only these, in their order; with `where` only the rows for
    which it holds. Raises CorruptFileError for a part that can't be read; chunks that can't be are left out, as workers
    do.
    """
    needed = None
    if columns is not None:
        sources = (column.source for column in columns)
        needed = list(dict.fromkeys((*sources, *(where.columns if where else ()))))
    for _, table in finished_shards(job, columns=needed):
        found = table if where is None else where.filter(table)
        if found.num_rows:
            yield found if columns is None else selected(found, columns)


def selected(table: pa.Table, columns: Sequence[Column]) -> pa.Table:
    """These columns of a table, at least one."""
    return pa.table([column.values(table) for column in columns], names=[column.name for column in columns])


def finished_counts(job: JobDir) -> Counts:
    """What the result rows that exist now add up to, of parts by their footers alone. Raises as `finished_tables`."""
    total = Counts()
    for info in job.manifest.shards:
        part = job.part_path(info.shard)
        if not job.has(part):
            total += Counts.of(finished_table(job, info))
            continue
        try:
            total += read_counts(part, store=job.store)
        except CorruptFileError as exc:
            raise with_remedy(exc, job) from exc
    return total


def finished_shards(job: JobDir, *, columns: Sequence[str] | None = None) -> Iterator[tuple[ShardInfo, pa.Table]]:
    """The shards that have finished rows, each with these, as `finished_table`."""
    for info in job.manifest.shards:
        table = finished_table(job, info, columns=columns)
        if table.num_rows:
            yield info, table


def finished_table(job: JobDir, info: ShardInfo, *, columns: Sequence[str] | None = None) -> pa.Table:
    """The finished rows of a shard, or these columns of them, of which there must be one."""
    part = job.part_path(info.shard)
    if not job.has(part):
        schema = job_schema(job.manifest)
        tables = read_chunks([chunk.path for chunk in job.chunks(info.shard)], schema, store=job.store)
        # Chunks vanish only after the part exists: then the part is what counts.
        if not job.has(part):
            joined = join_tables(tables, schema)
            return joined if columns is None else joined.select(list(columns))
    return read_part(job, info.shard, columns=columns)


def json_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a result table as JSON can hold them."""
    columns = [json_values(column) for column in table.columns]
    return (dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True))
