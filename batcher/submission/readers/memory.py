"""Rows that are in memory -> batches: dicts as lines of JSON, anything that speaks Arrow's C stream as tables.

Each is an `InputStream`: read once, front to back, in bounded memory, and digested by what it holds as it goes by. How
a stream is cut into batches counts for nothing there, so the same rows are the same input however they were made.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
from pydantic_core import to_json

from batcher.arrow.plain import plain_table
from batcher.arrow.values import json_values, unique_names
from batcher.errors import InputError, first_line
from batcher.submission.readers.bounds import NO_BOUNDS, Bounds
from batcher.submission.readers.files import ReadOptions
from batcher.submission.readers.raw_rows import LineBatch, Origin, TableBatch, too_long
from batcher.submission.readers.wide_rows import PIECE_BYTES, Piece, cut

#: What messages call the input: the parameter that it comes by.
NAME = "source"
#: Rows of a batch at most, and bytes of lines about.
_BATCH_ROWS = 4096
_BATCH_BYTES = PIECE_BYTES


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

    def batches(self, options: ReadOptions, bounds: Bounds) -> Iterator[LineBatch]:
        """See `InputStream`. Raises InputError for what is no dict, and for a value that has no form in JSON."""
        _refuse_reading(options)
        lines: list[bytes | None] = []
        num_bytes = 0
        for line in self._lines():
            lines.append(line if len(line) <= bounds.max_line_bytes else None)
            num_bytes += len(line)
            if len(lines) == _BATCH_ROWS or num_bytes >= _BATCH_BYTES:
                yield self._batch(lines, bounds)
                bounds.checkpoint()
                lines, num_bytes = [], 0
        if lines:
            yield self._batch(lines, bounds)

    def _batch(self, lines: list[bytes | None], bounds: Bounds) -> LineBatch:
        numbers = range(self._num_read - len(lines), self._num_read)
        return LineBatch(Origin(NAME, ": row ", numbers), lines, max_bytes=bounds.max_line_bytes)

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
        #: What is left, also after somebody had enough of it.
        self._pieces = self._rows(NO_BOUNDS)

    def batches(self, options: ReadOptions, bounds: Bounds) -> Iterator[TableBatch]:
        """See `InputStream`."""
        _refuse_reading(options)
        self._pieces = self._rows(bounds)
        for piece in self._pieces:
            bounds.checkpoint()
            numbers = range(self._num_read, self._num_read + piece.rows.num_rows)
            self._num_read += piece.rows.num_rows
            table = self._table((piece.emptied() if piece.is_long else piece).rows)
            broken = {0: too_long(bounds.max_line_bytes)} if piece.is_long else {}
            yield TableBatch(Origin(NAME, ": row ", numbers), table, broken=broken)

    def digest(self) -> str:
        """See `InputStream`. Of names, types and values; not of how the values are stored."""
        for _ in self._pieces:
            pass
        said = [
            (name, str(field.type), column.hexdigest())
            for name, field, column in zip(self._names, self._reader.schema, self._columns, strict=True)
        ]
        return hashlib.sha256(to_json(said)).hexdigest()

    def _rows(self, bounds: Bounds) -> Iterator[Piece]:
        """The rows in pieces, which are digested."""
        for batch in self._batches():
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                for piece in cut(batch.slice(start, _BATCH_ROWS), max_row_bytes=bounds.max_line_bytes):
                    self._see(self._table(piece.rows))
                    yield piece

    def _table(self, rows: pa.RecordBatch) -> pa.Table:
        return pa.Table.from_batches([rows]).rename_columns(self._names)

    def _batches(self) -> Iterator[pa.RecordBatch]:
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
