"""The result rows that exist now, of a running job, too, each input row once.

Works shard by shard, so memory is bounded by one shard, and of a part only the columns are unpacked that somebody asks
for. A shard without a part is read from its chunks.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.conditions import Column, Condition
from batcher.arrow.values import json_values
from batcher.errors import CorruptFileError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.results import Counts, job_schema, join_tables, read_chunks, read_counts
from batcher.manage.repair import read_part, with_remedy

if TYPE_CHECKING:
    import pyarrow.dataset as ds

#: Columns by which rows are in the order of the input.
_ORDER = ("row", "index")


def finished_tables(
    job: JobDir, *, columns: Sequence[Column] | None = None, where: Condition | None = None
) -> Iterator[pa.Table]:
    """The result rows that exist now, a table a shard, in order: of its part, else the union of its chunks.

    Every input row appears at most once. With `columns` only these, in their order; with `where` only the rows for
    which it holds. Raises CorruptFileError for a part that can't be read; chunks that can't be are left out, as workers
    do.
    """
    tables = (table for _, table in finished_shards(job, columns=_sources(columns, where)))
    return _narrowed(tables, columns, where)


def tables_in_order(
    job: JobDir, *, columns: Sequence[Column] | None = None, where: Condition | None = None
) -> Iterator[pa.Table]:
    """The same rows in the order of the input, in bounded memory; all at once where the job is not complete."""
    shards = finished_shards(job, columns=_sources(columns, where, *_ORDER))
    tables: Iterator[pa.Table] = (table for _, table in shards)
    if job.pending_shards():
        # Of a shard that is not finished the first row can be missing, by which the order would be known.
        whole = list(tables)
        tables = iter([_sorted(pa.concat_tables(whole))] if whole else [])
    # Narrowed last, for the same reason.
    return _narrowed(_in_order(tables), columns, where)


def _sources(columns: Sequence[Column] | None, where: Condition | None, *others: str) -> list[str] | None:
    """The columns of the results that are read for these; None: all."""
    if columns is None:
        return None
    return list(dict.fromkeys([*(column.source for column in columns), *(where.columns if where else ()), *others]))


def _narrowed(
    tables: Iterable[pa.Table], columns: Sequence[Column] | None, where: Condition | None
) -> Iterator[pa.Table]:
    for table in tables:
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


def finished_dataset(job: JobDir) -> "ds.Dataset":
    """The result rows that exist now, in no particular order, of a complete job read from its files when it is scanned.

    These are read without a check of their sums.
    """
    # Not on top: few commands need it, and it takes its time.
    import pyarrow.dataset as ds

    schema = job_schema(job.manifest)
    if job.pending_shards():
        return ds.dataset(list(finished_tables(job)) or [schema.empty_table()], schema=schema)
    paths = [str(job.part_path(info.shard)) for info in job.manifest.shards]
    return ds.dataset(paths, schema=schema, format="parquet")


def json_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a result table as JSON can hold them."""
    columns = [json_values(column) for column in table.columns]
    return (dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True))


def _in_order(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The rows of tables in order, of which each is, and none begins before the one in front of it.

    So it is with shards: they are numbered by their first row. Of several models, and of refused rows, they overlap.
    """
    waiting: pa.Table | None = None
    for table in tables:
        first = table["row"][0].as_py()
        if waiting is None:
            waiting = table
        elif waiting["row"][-1].as_py() < first:
            yield waiting
            waiting = table
        else:
            is_earlier = pc.less(waiting["row"], first)
            yield waiting.filter(is_earlier)
            waiting = _sorted(pa.concat_tables([waiting.filter(pc.invert(is_earlier)), table]))
    if waiting is not None:
        yield waiting


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by([(name, "ascending") for name in _ORDER])
