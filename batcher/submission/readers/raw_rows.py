"""What the readers of input files give: batches of raw rows, each row with its source."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from batcher.errors import InputError, InvalidRowError
from batcher.submission.readers.bounds import MAX_LINE_BYTES

#: A value that a file gives to all of its rows, from its path.
FileValue = str | int | None

#: Of a table. More is a mistake, or made to take long.
MAX_COLUMNS = 10_000


def too_long(max_bytes: int, *, what: str = "row") -> InvalidRowError:
    """What a row that is larger than that becomes."""
    return InvalidRowError(f"the {what} is longer than {max_bytes >> 20} MB; shorten the prompt", kind="too_long")


def check_num_columns(file: str, num_columns: int) -> None:
    """Raise InputError for a table of too many columns. Messages call it `file`."""
    if num_columns > MAX_COLUMNS:
        raise InputError(
            f"{file}: holds {num_columns:,} columns; {MAX_COLUMNS:,} are the most, so leave out what no row needs"
        )


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of a batch are from: `numbers` are their lines or row numbers in `file`, from 1."""

    file: str
    separator: str
    numbers: Sequence[int]

    def source(self, position: int) -> str:
        """How messages name the row at this position of the batch."""
        return f"{self.file}{self.separator}{self.numbers[position]}"


@dataclass(frozen=True, slots=True)
class LineBatch:
    """Lines of a JSONL file, none of them blank. None stands for a line longer than `max_bytes`.

    `columns` are those that the file gives to all of its rows. A key that a row has itself goes before them, but no
    row may have the one called `file_column`.
    """

    origin: Origin
    lines: list[bytes | None]
    columns: Mapping[str, FileValue] = field(default_factory=dict)
    file_column: str | None = None
    max_bytes: int = MAX_LINE_BYTES


@dataclass(frozen=True, slots=True)
class TableBatch:
    """Consecutive rows of a Parquet or CSV file.

    `is_text`: the columns are the cells of a CSV file, text without a type (see `arrow.cells`). `broken` says of rows,
    by their position, why they could not be read; in the table they are null.
    """

    origin: Origin
    table: pa.Table
    is_text: bool = False
    broken: Mapping[int, InvalidRowError] = field(default_factory=dict)
