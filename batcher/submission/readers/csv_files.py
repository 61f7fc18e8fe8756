"""CSV and TSV -> batches of rows whose cells are text.

The first row names the columns. pyarrow reads the rest block by block, so memory is bounded; cells may hold quoted
newlines. A row with too few or too many cells, or with bytes that are no UTF-8, becomes an error row in its place.
Nothing here guesses a type: what a guess by the first block would be is wrong further down (see `arrow.cells`).
"""

import csv
import io
import re
import secrets
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pv

from batcher.arrow.cells import cells_table
from batcher.errors import InputError, InvalidRowError
from batcher.submission.readers.raw_rows import Origin, TableBatch, check_num_columns
from batcher.submission.readers.streams import BOM, Readable

#: pyarrow reads up to 32 blocks ahead, and no row can be longer than one.
_BLOCK_BYTES = 2 << 20
_MAX_HEADER_BYTES = 1 << 20
#: As many rows are handed on at a time.
_MAX_TABLE_ROWS = 4096
#: pyarrow says nothing before it finds a row that is right, so as many odd ones are held at most, and looked at.
_MAX_ODD_ROWS = 100_000
_MAX_ODD_CHARS = 256 << 20
#: Blank lines one after another, in bytes: pyarrow takes a minute for as many.
_MAX_BLANK_BYTES = 8 << 20
_SHOWN_CHARS = 60
#: What else people put between cells.
_OTHER_DELIMITERS = (";", "\t", "|", ",")
QUOTE_CELLS = "put quotes around a cell that holds a delimiter, and leave out none"
_CLOSE_IT = 'close it, and write each " in a cell as "" in a cell that has quotes around it'


def read_cells(stream: Readable, name: str, *, delimiter: str, is_guess: bool) -> Iterator[TableBatch]:
    """The rows of a stream, without compression. Messages call it `name`; `is_guess`: nobody gave the delimiter.

    Raises InputError for a header that can't be used, and for a quote that is never closed.
    """
    source = _Source(stream, name)
    header = _read_header(source.head, name, delimiter=delimiter, is_guess=is_guess)
    if not header:
        return
    odd = _OddRows(source.put_end(len(header), delimiter), source.mark)
    rows = _Rows(name, header, odd, source)
    try:
        for batch in _open(source, header, odd, delimiter=delimiter):
            table = cells_table(pa.Table.from_batches([batch]))
            for start in range(0, table.num_rows, _MAX_TABLE_ROWS):
                yield rows.number(table.slice(start, _MAX_TABLE_ROWS))
    except pa.ArrowInvalid as exc:
        if odd.is_full:
            raise InputError(
                f"{name}: from row {odd.found[0][0]} on, {len(odd.found):,} rows and more have another number of cells "
                "than the header; correct the header, or give --csv-delimiter"
            ) from exc
        if "Empty CSV" in str(exc):
            raise InputError(f"{name}: a quote in the header is not closed; {_CLOSE_IT}") from exc
        if "straddl" not in str(exc):
            raise
        raise InputError(
            f"{name}: row {rows.next} or one after it is longer than {_BLOCK_BYTES >> 20} MB; "
            f"if it is not meant to be, a quote is not closed: {_CLOSE_IT}"
        ) from exc
    if not odd.has_ended:
        last = odd.found[-1][0] if odd.found else max(1, rows.next - 1)
        raise InputError(f"{name}: row {last}: a quote in it is not closed before the end of the file; {_CLOSE_IT}")
    while odd.found:
        yield rows.number(None)


def _read_header(head: bytes, name: str, *, delimiter: str, is_guess: bool) -> list[str]:
    """The names of the columns; none if there is no header."""
    text = head.decode("utf-8", errors="surrogateescape")
    if excels := re.match(r'"?sep=(.)"?[\r\n]', text, re.IGNORECASE):
        raise InputError(
            f"{name}: its first line, sep={excels[1]}, speaks to Excel alone; delete that line"
            + ("" if excels[1] == delimiter else f", and give --csv-delimiter {_option(excels[1])}")
        )
    try:
        header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), [])
    except csv.Error as exc:
        raise InputError(f"{name}: the header cannot be read: {exc}; write the names of the columns in row 1") from exc
    check_num_columns(name, len(header))
    twice = next((column for column, count in Counter(header).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{name}: two columns are called {twice!r}; rename one")
    for column in header:
        if re.search("[\udc80-\udcff]", column):
            shown = column.encode(errors="surrogateescape").decode(errors="backslashreplace")
            raise InputError(f"{name}: the name of a column is not UTF-8: {shown}; save the file as UTF-8")
    if is_guess and len(header) == 1:
        other = next((mark for mark in _OTHER_DELIMITERS if mark != delimiter and mark in header[0]), None)
        if other is not None:
            raise InputError(
                f"{name}: its one column is called {header[0][:_SHOWN_CHARS]!r}; if the columns are separated by "
                f"{other!r}, give --csv-delimiter {_option(other)}; if it is one, --csv-delimiter {_option(delimiter)}"
            )
    return header


def _option(delimiter: str) -> str:
    """A delimiter as a shell takes it."""
    return "$'\\t'" if delimiter == "\t" else f"'{delimiter}'"


def _open(source: "_Source", header: Sequence[str], odd: "_OddRows", *, delimiter: str) -> Iterator[pa.RecordBatch]:
    reader = pv.open_csv(
        pa.PythonFile(source, mode="r"),
        # Without threads: only so does pyarrow know the numbers of odd rows.
        read_options=pv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        parse_options=pv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=odd),
        convert_options=pv.ConvertOptions(
            column_types={column: pa.string() for column in header},
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            check_utf8=False,
        ),
    )
    if reader.schema.names != header:
        raise InputError(f"{source.name}: the header is not clear; put each name in quotes, and each quote in it twice")
    yield from reader


class _Source(io.RawIOBase):
    """A stream for pyarrow, without byte order mark and blank lines in front, and with a row of our own behind.

    pyarrow takes a quote that is never closed for a cell that ends with the file. The row behind the last shows it:
    it comes out as a row only if no quote is open. Bytes that are no UTF-8 are replaced by `mark`, as pyarrow can't
    say which rows have them.
    """

    def __init__(self, stream: Readable, name: str) -> None:
        self.name = name
        self._stream = stream
        self.mark = f"\ufdd0{secrets.token_hex(4)}"
        self.has_marks = False
        self._end = b""
        self._num_blank = 0
        # Bytes of a character of which the others are still to come.
        self._cut = b""
        self.head = self._read_some().removeprefix(BOM).lstrip(b"\r\n")
        self._ready = self._mark(self.head)
        self.head = self.head[:_MAX_HEADER_BYTES]

    def put_end(self, num_columns: int, delimiter: str) -> str:
        """Choose the row that is put behind the last: one cell too many, so that it is never one like the others."""
        row = f"end-{secrets.token_hex(8)}{delimiter * num_columns}"
        self._end = f"\n{row}\n".encode()
        return row

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        # pyarrow takes what it gets for a block, and can't join rows over more than two: so as much as it asks for.
        assert size >= 0, "pyarrow asks for blocks"
        while len(self._ready) < size:
            data = self._read_some()
            if not data:
                self._ready += self._end
                self._end = b""
                break
            self._ready += self._mark(data)
        data, self._ready = self._ready[:size], self._ready[size:]
        return data

    def _read_some(self) -> bytes:
        """About a block, fewer only at the end; never a part of a character, unless it is the last."""
        pieces, missing = [self._cut], _BLOCK_BYTES
        while missing and (piece := self._stream.read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        data = b"".join(pieces)
        cut = _num_cut(data) if not missing else 0
        data, self._cut = (data[:-cut], data[-cut:]) if cut else (data, b"")
        self._num_blank = 0 if data.strip(b"\r\n") else self._num_blank + len(data)
        if self._num_blank > _MAX_BLANK_BYTES:
            raise InputError(
                f"{self.name}: more than {_MAX_BLANK_BYTES >> 20} MB of blank lines in a row; leave them out, as "
                "grep -v '^[[:space:]]*$' does"
            )
        return data

    def _mark(self, data: bytes) -> bytes:
        try:
            data.decode()
        except UnicodeDecodeError:
            self.has_marks = True
            return re.sub("[\udc80-\udcff]", self.mark, data.decode(errors="surrogateescape")).encode()
        return data


def _num_cut(data: bytes) -> int:
    """How many bytes at the end are a character that is not whole."""
    for length, byte in enumerate(reversed(data[-3:]), start=1):
        if byte & 0xC0 != 0x80:
            needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
            return length if needed > length else 0
    return 0


@dataclass(slots=True)
class _OddRows:
    """The rows with another number of cells than the header, as pyarrow comes across them: ahead of the others."""

    end: str
    mark: str
    found: deque[tuple[int, InvalidRowError]] = field(default_factory=deque)
    has_ended: bool = False
    is_full: bool = False
    num_chars: int = 0

    def __call__(self, row: Any) -> str:
        if row.text == self.end:
            self.has_ended = True
        elif len(self.found) == _MAX_ODD_ROWS or self.num_chars > _MAX_ODD_CHARS:
            self.is_full = True
            return "error"
        else:
            self.num_chars += len(row.text)
            # pyarrow counts the header.
            self.found.append(
                (
                    row.number - 1,
                    _describe(row.expected_columns, row.actual_columns, row.text.replace(self.mark, "\ufffd")),
                )
            )
        return "skip"


def _describe(expected: int, actual: int, text: str) -> InvalidRowError:
    shown = text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
    cells = "1 cell" if actual == 1 else f"{actual} cells"
    return InvalidRowError(f"the row has {cells}, the header {expected}: {shown!r}; {QUOTE_CELLS}", kind="cells")


@dataclass(slots=True)
class _Rows:
    """Gives rows their numbers, from 1 below the header, and puts the odd ones, as rows of nulls, where they belong."""

    name: str
    header: Sequence[str]
    odd: _OddRows
    source: _Source
    next: int = 1

    def number(self, table: pa.Table | None) -> TableBatch:
        """A batch of these rows and the odd ones before and among them; None: only of odd ones, behind the last."""
        num_rows = 0 if table is None else table.num_rows
        positions: list[int | None] = []
        broken: dict[int, InvalidRowError] = {}
        taken = 0
        while taken < num_rows or (table is None and self.odd.found and len(positions) < _MAX_TABLE_ROWS):
            if self.odd.found and self.odd.found[0][0] == self.next + len(positions):
                broken[len(positions)] = self.odd.found.popleft()[1]
                positions.append(None)
            else:
                positions.append(taken)
                taken += 1
        if table is None:
            table = pa.table({column: pa.nulls(0, pa.string()) for column in self.header})
        if broken:
            table = table.take(pa.array(positions, pa.int64()))
        if self.source.has_marks:
            table = self._without_marks(table, broken)
        origin = Origin(self.name, ": row ", range(self.next, self.next + len(positions)))
        self.next += len(positions)
        return TableBatch(origin, table, is_text=True, broken=broken)

    def _without_marks(self, table: pa.Table, broken: dict[int, InvalidRowError]) -> pa.Table:
        """`table` with nulls in place of cells that are no UTF-8, whose rows are added to `broken`."""
        for index, column in enumerate(table.columns):
            is_bad = pc.fill_null(pc.match_substring(column, self.source.mark), fill_value=False)
            if pc.any(is_bad).as_py():
                name = self.header[index]
                problem = f"{name} is not UTF-8 text; save the file as UTF-8"
                for position in pc.indices_nonzero(is_bad).to_pylist():
                    broken.setdefault(position, InvalidRowError(problem, param=name, kind="not_utf8"))
                clean = pc.if_else(is_bad, pa.scalar(None, column.type), column)
                table = table.set_column(index, table.schema.field(index), clean)
        return table
