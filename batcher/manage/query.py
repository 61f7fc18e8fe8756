"""SQL over the results of jobs, by DuckDB: reads only, in bounded memory, and nothing but these jobs."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from batcher.arrow.values import unique_names
from batcher.errors import InputError, first_line
from batcher.installation import check_installed
from batcher.jobdir.folder import JobDir
from batcher.machine import read_memory
from batcher.manage.finished import finished_dataset
from batcher.manage.repair import read_part
from batcher.paths import temp_folder

#: How DuckDB begins what has nothing to do with files.
_OF_THE_QUERY = ("Conversion Error", "Out of Range Error", "Out of Memory Error")
#: Kinds of statements that change nothing.
_READING = ("SELECT", "EXPLAIN")


@contextmanager
def query(
    jobs: Mapping[str, JobDir], sql: str, *, memory: int | None = None
) -> Iterator[tuple[pa.Schema, Iterator[pa.Table]]]:
    """The answer to a query, of which each job is a table of this name; as tables that are made while they are read.

    Columns to which the query gives one name get names of their own, the second `name_2`. `memory` bounds it, in bytes;
    what does not fit goes to temporary files. Raises InputError for a query that is wrong or would do anything but
    read, MissingPackageError without the extra `query`, CorruptFileError, StorageError.
    """
    check_installed("batcher query", "query")
    # Its name here is that of this module.
    duckdb = importlib.import_module("duckdb")
    try:
        with duckdb.connect(":memory:") as connection:
            kinds = [statement.type.name for statement in connection.extract_statements(sql)]
            if len(kinds) != 1 or kinds[0] not in _READING:
                raise InputError(f"query {sql!r}: it must be one SELECT, and is {', '.join(kinds) or 'none'}")
            for name, job in jobs.items():
                # Of its parts DuckDB reads what it needs.
                connection.register(name, finished_dataset(job))
            _confine(connection, memory)
            answer = connection.sql(sql)
            with _computing(jobs, duckdb.Error):
                reader = pa.RecordBatchReader.from_stream(answer)
            names = unique_names(reader.schema.names)
            schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
            yield schema, _tables(reader, names, jobs, duckdb.Error)
    except duckdb.Error as exc:
        raise InputError(f"query: {_message(exc)}") from exc


@contextmanager
def _computing(jobs: Mapping[str, JobDir], error: type[Exception]) -> Iterator[None]:
    """What goes wrong while the answer is computed, be it for a value of a row or for a part that is damaged."""
    try:
        yield
    except (error, pa.ArrowException, OSError) as exc:
        # Of a part DuckDB has only a reader's words, without a name or a remedy. All are read to find it, so not where
        # it is known what was wrong.
        if not str(exc).startswith(_OF_THE_QUERY):
            for job in jobs.values():
                for shard in sorted(job.shards_with_part()):
                    read_part(job, shard, columns=["row"])
        raise InputError(f"query: {_message(exc)}") from exc


def _tables(
    reader: pa.RecordBatchReader, names: list[str], jobs: Mapping[str, JobDir], error: type[Exception]
) -> Iterator[pa.Table]:
    with _computing(jobs, error):
        for batch in reader:
            yield pa.Table.from_batches([batch]).rename_columns(names)


def _confine(connection: Any, memory: int | None) -> None:
    """Leave a connection no more than the tables that it has, and this much memory."""
    limit = memory or max(read_memory().available // 2, 256 << 20)
    for name, value in (
        ("memory_limit", f"'{limit}B'"),
        ("temp_directory", "'" + str(temp_folder()).replace("'", "''") + "'"),
        ("python_enable_replacements", "false"),
        ("enable_external_access", "false"),
        ("lock_configuration", "true"),
    ):
        connection.execute(f"SET {name} = {value}")


def _message(exc: Exception) -> str:
    """What DuckDB says, with the line of the query that it points into."""
    text = str(exc).strip()
    return text if len(text) < 600 else first_line(exc)
