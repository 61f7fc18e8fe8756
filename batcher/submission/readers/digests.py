"""Rows -> what tells them from others, whatever files and batches they came in."""

import hashlib

import pyarrow as pa
from pydantic_core import to_json

from batcher.arrow.plain import plain_table
from batcher.arrow.values import json_values
from batcher.submission.readers.raw_rows import LineBatch, TableBatch


class RowsDigest:
    """Of what rows hold, and of the columns that their files give them. Mutable."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._kind: object = None

    def add(self, batch: LineBatch | TableBatch) -> None:
        """See the next rows. Raises InputError for a column that has no plain type."""
        if isinstance(batch, LineBatch):
            self._begin(dict(batch.columns))
            # Lines that are too long are all alike.
            self._hash.update(b"".join((line or b"") + b"\n" for line in batch.lines))
        else:
            schema = batch.table.schema
            self._begin([schema.names, [str(type_) for type_ in schema.types]])
            self._hash.update(_rows_json(plain_table(batch.table)))

    def hexdigest(self) -> str:
        """Of all that were seen."""
        return self._hash.hexdigest()

    def _begin(self, kind: object) -> None:
        if kind != self._kind:
            self._kind = kind
            self._hash.update(to_json(kind) + b"\n")


def _rows_json(table: pa.Table) -> bytes:
    """The rows as JSON, each with a comma behind; with text that is no UTF-8 among them, as Arrow writes them."""
    try:
        return to_json([*zip(*map(json_values, table.columns), strict=True)])[1:-1] + b","
    except ValueError:
        return b"".join(batch.serialize().to_pybytes() for batch in table.to_batches())
