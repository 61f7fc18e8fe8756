"""What the readers of input files give: batches of raw rows, each row with its source."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa


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
    """Lines of a JSONL file, none of them blank. None stands for a line longer than `MAX_LINE_BYTES`."""

    origin: Origin
    lines: list[bytes | None]


@dataclass(frozen=True, slots=True)
class TableBatch:
    """Consecutive rows of a Parquet file."""

    origin: Origin
    table: pa.Table
