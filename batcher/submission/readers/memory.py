"""Rows that are in memory -> batches: dicts as lines of JSON, anything that speaks Arrow's C stream as tables.

Each is an `InputStream`: read once, front to back, in bounded memory, and digested by what it holds as it goes by. How
a stream is cut into batches counts for nothing there, so the same rows are the same input however they were made.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
from pydantic_core import to_json

from batcher.arrow.plain import plain_table
from batcher.arrow.values import json_values, unique_names
from batcher.errors import InputError, first_line
from batcher.submission.readers.files import ReadOptions
from batcher.submission.readers.json_lines import MAX_LINE_BYTES
from batcher.submission.readers.raw_rows import LineBatch, Origin, TableBatch

#: What messages call the input: the parameter that it comes by.
NAME = "source"
#: Rows of a batch at most, and bytes of the rows of a table about.
_BATCH_ROWS = 4096
_BATCH_BYTES = 8 << 20


@runtime_checkable
class ArrowStream(Protocol):
    """A table of any library that has Arrow's PyCapsule interface: pyarrow, pandas, Polars, DuckDB, ..."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


class DictRows:
    """Dicts as the lines of a JSONL file would be. Mutable; an `InputStream`.

    A value that JSON lacks (a date, a decimal, numpy's numbers and arrays) is what docs/values.md says. Rows are
    counted from 0, as in the results.
    """

    name = NAME

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows = iter(rows)
        self._num_read = 0
        self._hash = hashlib.sha256(b"lines\n")

    def batches(self, options: ReadOptions) -> Iterator[LineBatch]:
        """See `InputStream`. Raises InputError for what is no dict, and for a value that has no form in JSON."""
        _refuse_reading(options)
        while lines := list(islice(self._lines(), _BATCH_ROWS)):
            numbers = range(self._num_read - len(lines), self._num_read)
            kept = [line if len(line) <= MAX_LINE_BYTES else None for line in lines]
            yield LineBatch(Origin(NAME, ": row ", numbers), kept)

    def digest(self) -> str:
        """See `InputStream`."""
        for _ in self._lines():
            pass
        return self._hash.hexdigest()

    def _lines(self) -> Iterator[bytes]:
        for row in self._rows:
            line = self._line(row)
            self._hash.update(line)
            self._hash.update(b"\n")
            self._num_read += 1
            yield line

    def _line(self, row: object) -> bytes:
        where = f"{NAME}: row {self._num_read}"
        if not isinstance(row, Mapping):
            raise InputError(f'{where}: is of type {type(row).__name__}; give dicts, such as {{"prompt": "..."}}')
        try:
            text = json.dumps(dict(row), ensure_ascii=False, default=_plain_value)
        except (TypeError, ValueError, RecursionError, pa.ArrowException) as exc:
            raise InputError(
                f"{where}: has a value that JSON and Arrow do not know ({first_line(exc)}); make it text or a number"
            ) from exc
        # Half of an emoji is refused where the line is read, as it is in a file.
        return text.encode(errors="surrogatepass")


class ArrowRows:
    """A table, or a stream of its pieces. Columns keep their types. Mutable; an `InputStream`.

    Of columns that are called `x`, the second is `x_2`. Rows are counted from 0, as in the results. Raises InputError
    for what is no table.
    """

    name = NAME

    def __init__(self, table: ArrowStream) -> None:
        try:
            self._reader = pa.RecordBatchReader.from_stream(table)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as exc:
            # What pyarrow says of a column of objects has its name, and what it stumbled over.
            reason = " ".join(str(part) for part in exc.args) or type(exc).__name__
            raise InputError(
                f"{NAME}: {type(table).__name__} cannot be read as an Arrow table: {reason}; give a table whose "
                "columns each have a name of their own and one type"
            ) from exc
        self._names = unique_names(self._reader.schema.names)
        self._num_read = 0
        self._columns = [hashlib.sha256() for _ in self._names]

    def batches(self, options: ReadOptions) -> Iterator[TableBatch]:
        """See `InputStream`."""
        _refuse_reading(options)
        for table in self._tables():
            numbers = range(self._num_read, self._num_read + table.num_rows)
            self._num_read += table.num_rows
            yield TableBatch(Origin(NAME, ": row ", numbers), table)

    def digest(self) -> str:
        """See `InputStream`. Of names, types and values; not of how the values are stored."""
        for _ in self._tables():
            pass
        said = [
            (name, str(field.type), column.hexdigest())
            for name, field, column in zip(self._names, self._reader.schema, self._columns, strict=True)
        ]
        return hashlib.sha256(to_json(said)).hexdigest()

    def _tables(self) -> Iterator[pa.Table]:
        for batch in self._pieces():
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * batch.num_rows // max(1, batch.nbytes)))
            for start in range(0, batch.num_rows, size):
                piece = batch.slice(start, size)
                table = pa.Table.from_batches([piece]).rename_columns(self._names)
                self._see(table)
                yield table

    def _pieces(self) -> Iterator[pa.RecordBatch]:
        """The batches of the stream. Raises InputError where whoever makes them fails."""
        try:
            yield from self._reader
        except (pa.ArrowException, OSError) as exc:
            raise InputError(f"{NAME}: cannot be read beyond row {self._num_read}: {first_line(exc)}") from exc

    def _see(self, table: pa.Table) -> None:
        try:
            plain = plain_table(table)
        except InputError as exc:
            raise InputError(f"{NAME}: {exc}; cast it, or leave it out") from exc
        for seen, column in zip(self._columns, plain.columns, strict=True):
            # Value by value, each with a comma behind: where one batch ends and the next begins leaves no trace.
            seen.update(_values_json(column)[1:-1] + b",")


def _values_json(column: pa.ChunkedArray) -> bytes:
    """The values of a column as a JSON array; where they hold text that is no UTF-8, the column as Arrow writes it."""
    try:
        return to_json(json_values(column))
    except ValueError:
        batches = pa.table([column], names=[""]).to_batches()
        return b"".join(batch.serialize().to_pybytes() for batch in batches)


def _plain_value(value: object) -> Any:
    """A value that JSON lacks as the one that docs/values.md gives it. Raises TypeError, ValueError, ArrowException."""
    if isinstance(value, set | frozenset):
        raise TypeError("a set has no order; give a list")
    # As pandas has them: NaT and NA are null.
    return json_values(pa.array([value], from_pandas=True))[0]


def _refuse_reading(options: ReadOptions) -> None:
    if options != ReadOptions():
        raise InputError("file_column, csv_delimiter and input_format are for files; leave them out for rows in memory")
