"""The carried columns: input columns that go along to the results, under which name and with which type.

Parquet columns keep their Arrow types. JSONL has none, so the type of a column is inferred shard by shard and
unified over the whole input as it goes by: integers widen to doubles where that loses nothing, and where rows
disagree in any other way the column becomes a string column, strings as they are and other values as JSON text.
Arrays of one scalar type become lists; objects and mixed arrays become JSON text. A column that never has a value
becomes a string column. CSV has text only; its columns are integers or doubles by a stricter rule (see `arrow.cells`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.cells import are_cells, cell_type, typed
from batcher.arrow.tables import concat_rows, table_of, take_rows
from batcher.arrow.values import json_text
from batcher.errors import InputError
from batcher.jobdir.results import RESULT_FIELDS
from batcher.jobdir.shards import conform

#: Each is a column of every result file, so more than this is a mistake in the input.
MAX_COLUMNS = 1000

_PREFIXES = re.compile("^(input_)+")

#: Integers up to here are exact as doubles.
_EXACT_IN_DOUBLE = 2**53


@dataclass(frozen=True, slots=True)
class TableRow:
    """The carried values of a Parquet row: a row of a table that `CarriedColumns.rename` gave."""

    table: pa.Table
    position: int


#: The carried values of one input row: keys of a JSON object under their own names, or a row of a table.
CarriedRow = dict[str, Any] | TableRow


@dataclass(frozen=True, slots=True)
class _Kind:
    """What is known of a column. `is_big`: it has integers that a double can't hold exactly. `extension` is metadata of
    its field that names an extension type."""

    type: pa.DataType
    is_big: bool = False
    extension: Mapping[bytes, bytes] | None = None

    def unify(self, other: "_Kind") -> "_Kind":
        """The narrowest kind that holds the values of both."""
        is_big = self.is_big or other.is_big
        extension = self.extension if self.extension == other.extension else None
        return _Kind(_unify(self.type, other.type, is_big=is_big), is_big, extension)


class CarriedColumns:
    """Learns names and types of the carried columns as the rows go by. Mutable; one for each input.

    A column whose name is that of a result column gets the prefix `input_`, again and again while that is taken; one
    whose name another column has gets `_2`, `_3` and so on. Upper and lower case count as the same, as they do for
    DuckDB and Spark. Names are given in order of appearance and then stay, because shard files are written before the
    whole input is known. `optional` are the result columns that this job has and not all do.
    """

    def __init__(self, *, optional: Sequence[str] = ()) -> None:
        self._names: dict[str, str] = {}
        self._ours = frozenset((*RESULT_FIELDS.names, *optional))
        #: In lower case.
        self._taken = set(self._ours)
        self._kinds: dict[str, _Kind] = {}

    def reserve(self, name: str) -> None:
        """Keep a name for a result column from now on. Raises InputError where a column has it already."""
        if name in self._ours:
            return
        if name in self._taken:
            raise InputError(
                f"rows have a column {name}, which is where a part of the answers to later rows belongs; give that "
                "column another name"
            )
        self._ours |= {name}
        self._taken.add(name)

    @property
    def schema(self) -> pa.Schema:
        """The columns seen so far, with the types that hold all their values."""
        return pa.schema([self._settled(name) for name in self._names.values()])

    @property
    def names(self) -> Mapping[str, str]:
        """Name in the input -> name in the results, of the columns seen so far."""
        return self._names

    def rename(self, table: pa.Table) -> pa.Table:
        """`table` (of `plain_table`) with its columns under their result names."""
        self._name_all(table.column_names)
        fields = [field.with_name(self._names[field.name]).with_nullable(True) for field in table.schema]
        return table_of(table.columns, pa.schema(fields), num_rows=table.num_rows)

    def join(self, rows: Sequence[CarriedRow]) -> pa.Table:
        """One table of the carried values of a shard's rows; columns without any value in them are left out."""
        pieces: list[tuple[pa.Table, int]] = []
        for table_id, group in groupby(rows, key=lambda row: id(row.table) if isinstance(row, TableRow) else None):
            if table_id is None:
                objects = [row for row in group if isinstance(row, dict)]
                pieces.append((self._infer(objects), len(objects)))
            else:
                table_rows = [row for row in group if isinstance(row, TableRow)]
                pieces.append((_take(table_rows), len(table_rows)))
        kinds: dict[str, _Kind] = {}
        types: dict[str, pa.Field] = {}
        texts: set[str] = set()
        for piece, _ in pieces:
            for field in piece.schema:
                if are_cells(field):
                    kind = _kind_of_cells(piece[field.name])
                else:
                    kind = _kind_of(piece[field.name], field.metadata)
                if kind is not None:
                    _learn(kinds, field.name, kind)
                # Cells stay text until the type of the column is known.
                if are_cells(field) or field.name in texts:
                    texts.add(field.name)
                    types[field.name] = pa.field(field.name, pa.string())
                else:
                    types[field.name] = pa.field(
                        field.name, kinds[field.name].type, metadata=kinds[field.name].extension
                    )
        for name, kind in kinds.items():
            _learn(self._kinds, name, kind)
        schema = pa.schema(list(types.values()))
        return concat_rows([conform(piece, schema, num_rows=num_rows) for piece, num_rows in pieces])

    def _infer(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        keys = list(dict.fromkeys(chain.from_iterable(rows)))
        self._name_all(keys)
        columns = {}
        for key in keys:
            array = infer_array([row.get(key) for row in rows])
            if array is not None:
                columns[self._names[key]] = array
        return pa.table(columns)

    def _name_all(self, names: Iterable[str]) -> None:
        new = [name for name in names if name not in self._names]
        # Names that collide come last, so that their prefix does not take the name of a column beside them.
        for name in sorted(new, key=lambda name: name.lower() in self._taken):
            chosen = self._names[name] = self._free_name(name)
            self._taken.add(chosen.lower())
        if len(self._names) > MAX_COLUMNS:
            raise InputError(
                f"the input has more than {MAX_COLUMNS} columns beside those of the request "
                f"(one is {new[-1][:60]!r}); leave some out, or put what is open-ended into one column that holds an "
                "object"
            )

    def _free_name(self, name: str) -> str:
        chosen, number = name, 1
        is_ours = _PREFIXES.sub("", name.lower()) in self._ours
        while chosen.lower() in self._taken:
            number += 1
            chosen = f"input_{chosen}" if is_ours else f"{name}_{number}"
        return chosen

    def _settled(self, name: str) -> pa.Field:
        kind = self._kinds.get(name) or _Kind(pa.string())
        type_ = pa.list_(pa.string()) if kind.type == pa.list_(pa.null()) else kind.type
        return pa.field(name, type_, metadata=kind.extension)


def infer_array(values: Sequence[Any]) -> pa.Array | None:
    """JSON values as an array of the narrowest type that holds them all, else as text; None where all are null."""
    type_ = _infer_type(values)
    if type_ is None:
        return None
    if type_ == pa.string():
        values = [value if type(value) is str else json_text(value) for value in values]
    return pa.array(values, type_)


def _infer_type(values: Iterable[Any]) -> pa.DataType | None:
    kinds = set(map(type, values)) - {type(None)}
    if not kinds:
        return None
    if kinds == {str}:
        return pa.string()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {list}:
        elements = _infer_type([item for value in values if value is not None for item in value])
        if elements is None:
            return pa.list_(pa.null())
        holds_text = elements == pa.string() and any(
            type(i) is not str for v in values for i in v or () if i is not None
        )
        return pa.string() if holds_text or pa.types.is_nested(elements) else pa.list_(elements)
    if kinds <= {int, float}:
        integers = [value for value in values if type(value) is int]
        largest = max(max(integers, default=0), -min(integers, default=0) - 1)
        if kinds == {int} and largest < 2**63:
            return pa.int64()
        if kinds != {int} and largest < _EXACT_IN_DOUBLE:
            return pa.float64()
    return pa.string()


def _unify(a: pa.DataType, b: pa.DataType, *, is_big: bool) -> pa.DataType:
    if a == b:
        return a
    if _is_list(a) and _is_list(b):
        if pa.types.is_null(a.value_type) or pa.types.is_null(b.value_type):
            return b if pa.types.is_null(a.value_type) else a
        elements = _unify(a.value_type, b.value_type, is_big=is_big)
        return pa.string() if pa.types.is_string(elements) else pa.list_(elements)
    if pa.types.is_integer(a) and pa.types.is_integer(b):
        return _unify_integers(a, b)
    if pa.types.is_floating(a) and pa.types.is_floating(b):
        return a if a.bit_width > b.bit_width else b
    is_number = all(pa.types.is_integer(t) or pa.types.is_floating(t) for t in (a, b))
    return pa.float64() if is_number and not is_big else pa.string()


def _unify_integers(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    if pa.types.is_signed_integer(a) == pa.types.is_signed_integer(b):
        return a if a.bit_width > b.bit_width else b
    unsigned = b if pa.types.is_signed_integer(a) else a
    return pa.string() if unsigned.bit_width == 64 else pa.int64()


def _is_list(found: pa.DataType) -> bool:
    return bool(pa.types.is_list(found) or pa.types.is_large_list(found))


def _kind_of(column: pa.ChunkedArray, extension: Mapping[bytes, bytes] | None) -> _Kind:
    values = column
    if _is_list(column.type):
        values = pc.list_flatten(column)
    is_big = False
    if pa.types.is_integer(values.type) and values.type.bit_width == 64:
        ends = pc.min_max(values).as_py()
        is_big = any(end is not None and abs(end) > _EXACT_IN_DOUBLE for end in ends.values())
    return _Kind(column.type, is_big, extension)


def _kind_of_cells(column: pa.ChunkedArray) -> _Kind | None:
    """None: all of the cells are empty."""
    found = cell_type(column)
    if pa.types.is_null(found):
        return None
    return _kind_of(typed(column, found), None) if pa.types.is_integer(found) else _Kind(found)


def _take(rows: Sequence[TableRow]) -> pa.Table:
    taken = take_rows(rows[0].table, [row.position for row in rows])
    return taken.select([name for name in taken.column_names if not pa.types.is_null(taken[name].type)])


def _learn(kinds: dict[str, _Kind], name: str, kind: _Kind) -> None:
    known = kinds.get(name)
    kinds[name] = kind if known is None else known.unify(kind)
