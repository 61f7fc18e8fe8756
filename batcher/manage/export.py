"""Results in other forms: one Parquet or CSV file of flat rows, JSONL of response objects, OpenAI batch output lines.

Works shard by shard, so memory is bounded by one shard. The file is written under a temporary name and then renamed:
whoever sees it sees it whole.
"""

import contextlib
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import chain, groupby
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from batcher.arrow.conditions import Column
from batcher.arrow.values import json_line, text_column
from batcher.errors import InputError, JobError, StorageError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.local_store import replacing
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.optional_columns import TOOL_CALLS
from batcher.jobdir.results import RESULT_FIELDS, job_schema
from batcher.jobdir.shards import read_custom_ids, read_request_facts
from batcher.jobdir.store import reason
from batcher.manage.delete import own_names
from batcher.manage.finish import finalize
from batcher.manage.finished import (
    finished_shards,
    finished_table,
    finished_tables,
    json_rows,
    selected,
    tables_in_order,
)
from batcher.manage.joined import joined_columns
from batcher.openai.answers import Unrun, batch_output_line, completion_body, unrun_line
from batcher.types import RequestFacts, RowStatus
from batcher.words import counted

#: Bytes of rows gathered before a row group is written: parts of few rows would make many small groups.
ROW_GROUP_BYTES = 32 << 20

#: Keys of an exported response object; a carried column of such a name gets the prefix `input_`, as at submit.
_BODY_KEYS = frozenset({*RESULT_FIELDS.names, "system_fingerprint", "choices", "usage", "error"})


_NO_FACTS = RequestFacts()


class FileKind(StrEnum):
    """What an exported file is; its suffix says so."""

    PARQUET = "parquet"
    JSONL = "jsonl"
    CSV = "csv"


#: What a target's name may end in.
SUFFIXES = tuple(f".{kind}" for kind in FileKind)


class ExportFormat(StrEnum):
    """What a JSONL line holds: a response object with the row's own columns, or an OpenAI batch output line."""

    ROWS = "rows"
    OPENAI = "openai"


def export(
    job: JobDir,
    target: Path | BinaryIO,
    *,
    kind: FileKind | None = None,
    layout: ExportFormat = ExportFormat.ROWS,
    columns: str | None = None,
    output_column: str | None = None,
    force: bool = False,
    partial: bool = False,
) -> int:
    """Write the results of `job` to `target`, a file or a stream.

    `kind` is by default what the file's suffix says (.parquet, .csv, .jsonl), of a stream JSONL. With `columns` or
    `output_column` the rows are those of the input, in its order, with its own columns first (see `joined`), and a
    JSONL line is such a row. Returns the number of rows (a row a choice) or lines (JSONL without these: a line a
    request) written. Refuses an existing file without `force`, and a job that is not complete without `partial` (then
    what is finished now is written). Raises InputError, JobError, StorageError.
    """
    kind = kind or (file_kind(target) if isinstance(target, Path) else FileKind.JSONL)
    is_joined = columns is not None or output_column is not None
    if layout is ExportFormat.OPENAI and kind is not FileKind.JSONL:
        raise InputError("OpenAI batch output is JSONL; name the file .jsonl, or use the format 'rows'")
    if layout is ExportFormat.OPENAI and is_joined:
        raise InputError("lines of OpenAI batch output have no columns; leave out the columns, or the format 'openai'")
    chosen = joined_columns(job.manifest, columns=columns, output_column=output_column) if is_joined else None
    if isinstance(target, Path):
        _check_target(job, target, force=force)
    # Whoever committed the last part may have died before the proof.
    if not partial and (not job.is_complete or job.pending_shards()) and finalize(job) is None:
        raise JobError(
            f"{job.path}: the job is not complete ({len(job.pending_shards())} of "
            f"{counted(len(job.manifest.shards), 'shard')} open); `batcher resume` finishes it, --partial exports what "
            "is there"
        )
    if not isinstance(target, Path):
        return _write(target, job, kind, layout, chosen)
    with _opened(target) as file:
        return _write(file, job, kind, layout, chosen)


def file_kind(target: Path) -> FileKind:
    """What a file is by its suffix. Raises InputError for one that is none of ours, with what makes such a file."""
    suffix = target.suffix.lower()
    if suffix not in SUFFIXES:
        problem = f"{target}: cannot export to {target.suffix or 'no suffix'}; name it .parquet, .jsonl or .csv"
        raise InputError(problem + (_spreadsheet_remedy(target) if suffix == ".xlsx" else ""))
    return FileKind(suffix.removeprefix("."))


def _spreadsheet_remedy(target: Path) -> str:
    csv, spreadsheet = str(target.with_suffix(".csv")), json.dumps(str(target))
    script = f"import pandas; pandas.read_csv({json.dumps(csv)}).to_excel({spreadsheet}, index=False)"
    return (
        f". Spreadsheets open .csv; or export to {csv}, then: python -c {shlex.quote(script)} (needs pandas, openpyxl)"
    )


def _check_target(job: JobDir, target: Path, *, force: bool) -> None:
    for own in sorted(job.path / name for name in own_names(job)):
        if target.resolve().is_relative_to(own.resolve()):
            raise InputError(f"{target}: is in the job's own folder {own}; name a file elsewhere")
    if target.is_dir():
        raise InputError(f"{target}: is a folder; name a file in it")
    if target.is_file() and not force:
        raise InputError(f"{target}: exists; --force replaces it")


@contextlib.contextmanager
def _opened(target: Path) -> Iterator[BinaryIO]:
    """A file to be written that takes the place of `target`, or of what that links to, if the block ends well.

    A pipe or a device stays, and gets what is written at once. Raises StorageError.
    """
    if not target.exists() or target.is_file():
        with replacing(target.resolve()) as temp, temp.open("wb") as file:
            yield file
        return
    try:
        with target.open("wb") as file:
            yield file
    except OSError as exc:
        raise StorageError(f"{target}: cannot write: {reason(exc)}") from exc


def _write(file: BinaryIO, job: JobDir, kind: FileKind, layout: ExportFormat, chosen: Sequence[Column] | None) -> int:
    schema = job_schema(job.manifest)
    tables = finished_tables(job)
    if chosen is not None:
        schema = selected(schema.empty_table(), chosen).schema
        tables = tables_in_order(job, columns=chosen)
    match kind:
        case FileKind.PARQUET:
            return _write_parquet(file, tables, schema=schema)
        case FileKind.CSV:
            return _write_csv(file, tables, schema=schema)
        case FileKind.JSONL:
            lines = (
                _request_lines(job, layout=layout) if chosen is None else chain.from_iterable(map(json_rows, tables))
            )
            return _write_jsonl(file, lines)


def write_tables(
    target: Path,
    kind: FileKind,
    tables: Iterable[pa.Table],
    *,
    schema: pa.Schema,
    jobs: Sequence[JobDir],
    force: bool = False,
) -> int:
    """Write tables of any columns to a file, outside these jobs. Returns the number of rows. Raises as `export`."""
    for job in jobs:
        _check_target(job, target, force=force)
    with _opened(target) as file:
        match kind:
            case FileKind.PARQUET:
                return _write_parquet(file, tables, schema=schema)
            case FileKind.CSV:
                return _write_csv(file, tables, schema=schema)
            case FileKind.JSONL:
                return _write_jsonl(file, chain.from_iterable(map(json_rows, tables)))


def _write_parquet(file: BinaryIO, tables: Iterable[pa.Table], *, schema: pa.Schema) -> int:
    num_rows = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        waiting: list[pa.Table] = []
        for table in tables:
            waiting.append(table)
            num_rows += table.num_rows
            if sum(one.nbytes for one in waiting) >= ROW_GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    return num_rows


def _write_csv(file: BinaryIO, tables: Iterable[pa.Table], *, schema: pa.Schema) -> int:
    num_rows = 0
    flat = pa.schema([pa.field(f.name, f.type if _is_csv_type(f.type) else pa.string()) for f in schema])
    with pacsv.CSVWriter(file, flat) as writer:
        for table in tables:
            columns = [_csv_column(column) for column in table.columns]
            writer.write_table(pa.Table.from_arrays(columns, schema=flat))
            num_rows += table.num_rows
    return num_rows


def _is_csv_type(type_: pa.DataType) -> bool:
    """Whether the CSV writer prints the type as one would expect it; others go as text."""
    t = pa.types
    return any(test(type_) for test in (t.is_boolean, t.is_integer, t.is_float32, t.is_float64, t.is_string))


def _csv_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column if _is_csv_type(column.type) else text_column(column)


def _write_jsonl(file: BinaryIO, lines: Iterable[dict[str, Any]]) -> int:
    num_lines = 0
    for line in lines:
        file.write(f"{json_line(line)}\n".encode())
        num_lines += 1
    return num_lines


def _request_lines(job: JobDir, *, layout: ExportFormat) -> Iterator[dict[str, Any]]:
    optional = job.manifest.optional.names
    for rows, facts in _finished_requests(job, with_carried=layout is ExportFormat.ROWS):
        if layout is ExportFormat.OPENAI:
            yield _batch_line(job, rows, facts=facts)
        else:
            yield _response_object(rows, facts=facts, optional=optional)


def write_batch_output(
    job: JobDir, output: Callable[[bytes], object], errors: Callable[[bytes], object], *, unrun: Unrun | None = None
) -> tuple[int, int]:
    """Write the batch output lines of what is finished now, those of rows that failed to `errors`, others to `output`.

    With `unrun`, the reason, rows that are not finished have lines among the failed, so that every custom_id is in one
    of the two. One pass, shard by shard. Returns the lines in each.
    """
    num_ok = num_failed = 0
    for info in job.manifest.shards:
        table = finished_table(job, info).select(_response_columns(job))
        for rows, facts in _shard_requests(job, info, table):
            is_ok = rows[0]["status"] == RowStatus.OK.value
            line = _batch_line(job, rows, facts=facts)
            (output if is_ok else errors)(f"{json_line(line)}\n".encode())
            num_ok, num_failed = num_ok + is_ok, num_failed + (not is_ok)
        if unrun is not None:
            for row, custom_id in _unfinished(job, info, table):
                line = unrun_line(custom_id, digits=job.manifest.response_digits(row), why=unrun)
                errors(f"{json_line(line)}\n".encode())
                num_failed += 1
    return num_ok, num_failed


def _unfinished(job: JobDir, info: ShardInfo, table: pa.Table) -> Iterator[tuple[int, str]]:
    """Number and custom_id of the rows of a shard that its result table lacks."""
    finished = set(table["row"].to_pylist())
    if len(finished) < info.num_rows:
        yield from (
            named for named in read_custom_ids(job.shard_path(info.shard), store=job.store) if named[0] not in finished
        )


def _batch_line(job: JobDir, rows: list[dict[str, Any]], *, facts: RequestFacts) -> dict[str, Any]:
    return batch_output_line(rows, digits=job.manifest.response_digits(rows[0]["row"]), facts=facts)


def _finished_requests(job: JobDir, *, with_carried: bool) -> Iterator[tuple[list[dict[str, Any]], RequestFacts]]:
    """The result rows of each request that is finished now, in order, and what they do not say of it."""
    for info, table in finished_shards(job):
        yield from _shard_requests(job, info, table if with_carried else table.select(_response_columns(job)))


def _response_columns(job: JobDir) -> list[str]:
    """What responses are made of."""
    return [*RESULT_FIELDS.names, *job.manifest.optional.names]


def _shard_requests(
    job: JobDir, info: ShardInfo, table: pa.Table
) -> Iterator[tuple[list[dict[str, Any]], RequestFacts]]:
    """The requests of a shard's result table, likewise."""
    # The shard's file is read only where it says more than the results.
    is_asked = table.num_rows and (info.model is None or _has_errors(table) or _may_have_n(table))
    facts = read_request_facts(job.shard_path(info.shard), store=job.store) if is_asked else {}
    # By attempt, as each had one engine.
    fingerprints = {
        attempt: job.system_fingerprint(info.shard, attempt)
        for attempt in pc.unique(table["attempts"]).to_pylist()
        if attempt is not None
    }
    usual = {attempt: RequestFacts(system_fingerprint=known) for attempt, known in fingerprints.items()}
    for rows in _requests(table):
        row, attempt = rows[0]["row"], rows[0]["attempts"]
        if row in facts:
            yield rows, replace(facts[row], system_fingerprint=fingerprints.get(attempt))
        else:
            yield rows, usual.get(attempt, _NO_FACTS)


def _has_errors(table: pa.Table) -> bool:
    return bool(pc.any(pc.equal(table["status"], RowStatus.ERROR.value)).as_py())


def _may_have_n(table: pa.Table) -> bool:
    """Whether choices of one request have the same prompt: by its `n`, or an array that repeats it."""
    if table.num_rows < 2 or not pc.max(table["index"]).as_py():
        return False
    requests = table.select(["row", "prompt"])
    these, others = requests.slice(1), requests.slice(0, table.num_rows - 1)
    pairs = [pc.equal(these[name], others[name]) for name in ("row", "prompt")]
    return bool(pc.any(pc.and_(*pairs)).as_py())


def _requests(table: pa.Table) -> Iterator[list[dict[str, Any]]]:
    """The rows of a table, those of one request together: a row a choice, in order of index."""
    position = table.column_names.index("created")
    # Responses give Unix seconds.
    unix = table.set_column(position, "created", pc.cast(table["created"], pa.int64()))
    for _, rows in groupby(json_rows(unix), key=lambda row: row["row"]):
        yield list(rows)


def _response_object(rows: list[dict[str, Any]], *, facts: RequestFacts, optional: Sequence[str]) -> dict[str, Any]:
    """One request's documented response or error object, with its row, custom_id, status and carried columns.

    Of the columns `optional` each choice has its own values.
    """
    first = rows[0]
    ours = (*RESULT_FIELDS.names, *optional)
    line: dict[str, Any] = {key: first[key] for key in ("row", "custom_id", "status")}
    # Without the carried columns, which can have the name of an optional one that this job has not.
    line |= completion_body([{name: row[name] for name in ours} for row in rows], facts=facts)
    for choice, row in zip(line.get("choices", ()), rows, strict=False):
        # The calls are in its message.
        choice.update({name: row[name] for name in optional if name not in (*choice, TOOL_CALLS.name)})
    for name in [*first][len(ours) :]:
        key = name
        while key in _BODY_KEYS or key in line:
            key = f"input_{key}"
        line[key] = first[name]
    return line
