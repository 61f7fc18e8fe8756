"""Shard files: the validated requests of a shard as submit writes them and a worker reads them.

A shard file is Parquet with two struct columns: `request`, whose fields are fixed here, and `carried`, the input
columns that go along to the results (absent where there are none). Two structs rather than flat columns, because an
input column may have any name. The types of `carried` are those known when the shard was written; a JSONL column can
turn out wider later in the file, so readers conform it to the schema of the manifest, which is written last.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import repeat
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.cells import typed
from batcher.arrow.tables import table_of
from batcher.arrow.values import text_column
from batcher.errors import CorruptFileError
from batcher.jobdir import sealed
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.sealed import MissingFileError
from batcher.jobdir.store import Store
from batcher.types import Constraint, ErrorCode, Request, RequestFacts, RowError, SamplingParams, Tools
from batcher.words import counted

#: The column of a parameter by its type; that of a tuple is a list. Of a constraint and of tools the text is kept once,
#: however many rows have it.
_COLUMN_TYPES = {
    int: pa.int32(),
    float: pa.float64(),
    bool: pa.bool_(),
    str: pa.string(),
    Constraint: pa.dictionary(pa.int32(), pa.string()),
    Tools: pa.dictionary(pa.int32(), pa.string()),
}


def _parameter_fields() -> Iterator[pa.Field]:
    """A column for each parameter, by its name and type; but two for `logit_bias`, and 64 bits for seeds."""
    for name, hint in get_type_hints(SamplingParams).items():
        if name == "logit_bias":
            yield pa.field("biased_tokens", pa.list_(pa.int32()), nullable=False)
            yield pa.field("biases", pa.list_(pa.float64()), nullable=False)
            continue
        kinds = [kind for kind in get_args(hint) if kind not in (NoneType, Ellipsis)] or [hint]
        kind = pa.int64() if name == "seed" else _COLUMN_TYPES[kinds[0]]
        yield pa.field(name, pa.list_(kind) if get_origin(hint) is tuple else kind, nullable=NoneType in get_args(hint))


_PARAMETERS = tuple(_parameter_fields())

REQUEST_FIELDS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("custom_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("prompts", pa.list_(pa.string()), nullable=False),
        pa.field("is_array", pa.bool_(), nullable=False),
        *_PARAMETERS[:5],
        pa.field("is_chat", pa.bool_(), nullable=False),
        *_PARAMETERS[5:],
        pa.field("is_token_ids", pa.bool_(), nullable=False),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("error_param", pa.string()),
    ]
)

#: Parameters that have a column of their own name. `logit_bias` is two columns: `biased_tokens` and `biases`.
_PARAM_NAMES = [param.name for param in fields(SamplingParams) if param.name in REQUEST_FIELDS.names]
#: Of parameters whose column has them as texts.
_PARSERS: Mapping[str, Callable[[str], Any]] = {"constraint": Constraint.parse, "tools": Tools.parse}
_DEFAULTS = {param.name: getattr(SamplingParams(), param.name) for param in fields(SamplingParams)}
#: Parameters that hardly any job has, from this one on. They have columns only in shards where a row sets them.
_RARE_NAMES = frozenset(_PARAM_NAMES[_PARAM_NAMES.index("top_k") :])


@dataclass(frozen=True, slots=True)
class ShardRow:
    """One row of a shard: a request, or what is known of a refused one together with its error."""

    request: Request
    error: RowError | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard in memory. `carried` has one row for each of `rows`, in the same order."""

    rows: tuple[ShardRow, ...]
    carried: pa.Table


def write_shard(path: Path, shard: Shard, *, store: Store = LOCAL) -> bool:
    """Create the shard file. Returns False where it exists. Raises StorageError."""
    columns = {"request": _request_array(shard.rows)}
    if shard.carried.num_columns:
        carried = shard.carried.combine_chunks()
        fields = [carried.schema.field(i) for i in range(carried.num_columns)]
        arrays = [_one_array(column) for column in carried.columns]
        columns["carried"] = pa.StructArray.from_arrays(arrays, fields=fields)
    return store.create(path, sealed.seal(pa.table(columns)))


def read_shard(path: Path, *, carried: pa.Schema, num_rows: int | None = None, store: Store = LOCAL) -> Shard:
    """Read a shard file, its carried columns conformed to the schema `carried`.

    `num_rows` is what the manifest says. Raises CorruptFileError where the file is damaged or gone, or is not what
    the manifest says, and another StorageError where it can't be read.
    """
    table = _read(path, store)
    if num_rows is not None and table.num_rows != num_rows:
        raise CorruptFileError(
            f"{path}: holds {counted(table.num_rows, 'row')}, the manifest says {num_rows}; restore the one that was "
            "changed, or submit the input again"
        )
    rows = _shard_rows(_one_array(table["request"]))
    if "carried" in table.column_names:
        found = pa.Table.from_struct_array(_one_array(table["carried"]))
    else:
        found = table.select([])
    return Shard(rows, conform(found, carried, num_rows=len(rows)))


def read_row_numbers(path: Path, *, store: Store = LOCAL) -> list[int]:
    """The numbers that the rows of a shard have in the input. Raises like `read_shard`."""
    request = _read(path, store, columns=["request.row"])["request"]
    return [int(value["row"]) for value in request.to_pylist()]


def read_custom_ids(path: Path, *, store: Store = LOCAL) -> Iterator[tuple[int, str]]:
    """The number of each row of a shard in the input, and its custom_id. Raises like `read_shard`."""
    request = _read(path, store, columns=["request.row", "request.custom_id"])["request"]
    return ((value["row"], value["custom_id"]) for value in request.to_pylist())


def read_request_facts(path: Path, *, store: Store = LOCAL) -> dict[int, RequestFacts]:
    """What is known of the requests of a shard beyond their results, by row number. Raises like `read_shard`."""
    names = ("row", "n", "is_chat", "error_code", "error_param")
    request = _read(path, store, columns=[f"request.{name}" for name in names])["request"]
    return {
        value["row"]: RequestFacts(
            num_choices_each=value["n"],
            is_chat=value["is_chat"],
            is_refused=value["error_code"] is not None,
            # Shards of before have no such column.
            error_param=value.get("error_param"),
        )
        for value in request.to_pylist()
    }


def _read(path: Path, store: Store, columns: Sequence[str] | None = None) -> pa.Table:
    try:
        return sealed.read_table(path, columns, store=store)
    except MissingFileError as exc:
        raise CorruptFileError(f"{path}: the shard file is gone; submit the input again") from exc
    except CorruptFileError as exc:
        raise CorruptFileError(f"{exc}; submit the input again") from exc


def conform(table: pa.Table, schema: pa.Schema, *, num_rows: int) -> pa.Table:
    """`table` with exactly the columns of `schema`: missing ones null, narrower types widened, others as text."""
    columns = []
    for target in schema:
        if target.name not in table.column_names:
            columns.append(pa.nulls(num_rows, target.type))
            continue
        column = table[target.name]
        columns.append(column if column.type == target.type else _widen(column, target.type))
    return table_of(columns, schema, num_rows=num_rows)


def _widen(column: pa.ChunkedArray, target: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_string(target):
        return text_column(column)
    return typed(column, target) if pa.types.is_string(column.type) else pc.cast(column, target)


def _request_array(rows: Sequence[ShardRow]) -> pa.StructArray:
    requests = [row.request for row in rows]
    values: dict[str, list[Any]] = {
        "row": [r.row for r in requests],
        "custom_id": [r.custom_id for r in requests],
        "model": [r.model for r in requests],
        "prompts": [r.prompts for r in requests],
        "is_array": [r.is_array for r in requests],
        "is_chat": [r.is_chat for r in requests],
        "is_token_ids": [r.is_token_ids for r in requests],
        "error_code": [row.error and row.error.code.value for row in rows],
        "error_message": [row.error and row.error.message for row in rows],
        "error_param": [row.error and row.error.param for row in rows],
    }
    columns = {name: _array(name, column) for name, column in values.items()}
    columns |= _parameter_columns([request.params for request in requests])
    present = [field for field in REQUEST_FIELDS if field.name in columns]
    return pa.StructArray.from_arrays([columns[field.name] for field in present], fields=present)


def _parameter_columns(params: Sequence[SamplingParams]) -> dict[str, pa.Array]:
    """Each column of the values of the objects that differ, spread over the rows: most rows share one object."""
    distinct = list({id(one): one for one in params}.values())
    values: dict[str, list[Any]] = {name: [getattr(one, name) for one in distinct] for name in _PARAM_NAMES}
    for name in _RARE_NAMES:
        if all(value == _DEFAULTS[name] for value in values[name]):
            del values[name]
    for name in _PARSERS.keys() & values.keys():
        values[name] = [None if one is None else str(one) for one in values[name]]
    values["biased_tokens"] = [[token for token, _ in one.logit_bias] for one in distinct]
    values["biases"] = [[bias for _, bias in one.logit_bias] for one in distinct]
    columns = {name: _array(name, column) for name, column in values.items()}
    if len(distinct) == len(params):
        return columns
    if len(distinct) == 1:
        return {name: pa.repeat(column[0], len(params)) for name, column in columns.items()}
    places = {id(one): place for place, one in enumerate(distinct)}
    where = pa.array([places[id(one)] for one in params], pa.int32())
    return {name: column.take(where) for name, column in columns.items()}


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    return pa.array(values, REQUEST_FIELDS.field(name).type)


def _shard_rows(requests: pa.StructArray) -> tuple[ShardRow, ...]:
    """By column, which takes a third of the time that it does by row; rows with equal parameters share the object.

    What the file has no column for is at its default in all rows.
    """
    num_rows = len(requests)
    if not num_rows:
        return ()
    found = {requests.type.field(i).name for i in range(requests.type.num_fields)}
    arrays = {name: requests.field(name) for name in REQUEST_FIELDS.names if name in found}
    same = {name: _absent(name) for name in REQUEST_FIELDS.names if name not in found}
    same |= {name: _values(name, array.slice(0, 1))[0] for name, array in arrays.items() if _is_same(array)}
    columns = {name: _values(name, array) for name, array in arrays.items() if name not in same}

    def column(name: str) -> Iterable[Any]:
        return columns[name] if name in columns else repeat(same[name], num_rows)

    biases = map(_pairs, column("biased_tokens"), column("biases"))
    if "biased_tokens" in columns or "biases" in columns:
        columns["logit_bias"] = list(biases)
    else:
        same["logit_bias"] = next(biases)
    params = _params(
        {name: same[name] for name in _DEFAULTS if name in same},
        {name: columns[name] for name in _DEFAULTS if name in columns},
        num_rows=num_rows,
    )
    names = ("row", "custom_id", "model", "prompts", "is_array")
    made = map(Request, *map(column, names), params, column("is_chat"), column("is_token_ids"))
    errors = zip(column("error_code"), column("error_message"), column("error_param"), strict=True)
    return tuple(
        ShardRow(request, RowError(ErrorCode(code), message, param) if code else None)
        for request, (code, message, param) in zip(made, errors, strict=True)
    )


def _params(
    same: Mapping[str, Any], columns: Mapping[str, Sequence[Any]], *, num_rows: int
) -> Iterator[SamplingParams]:
    """The parameters of each row, an object for each that differs. `same` are those that all rows have in common."""
    if not columns:
        return repeat(SamplingParams(**same), num_rows)
    known: dict[tuple[Any, ...], SamplingParams] = {}

    def params_of(*values: Any) -> SamplingParams:
        params = known.get(values)
        if params is None:
            params = known[values] = SamplingParams(**same, **dict(zip(columns, values, strict=True)))
        return params

    return map(params_of, *columns.values())


def _absent(name: str) -> Any:
    return _DEFAULTS.get(name, False if name == "is_token_ids" else None)


def _pairs(tokens: Sequence[int], biases: Sequence[float]) -> tuple[tuple[int, float], ...]:
    return tuple(zip(tokens, biases, strict=True))


def _is_same(array: pa.Array) -> bool:
    """Whether all values are equal, null or not. In Arrow, at a fraction of what it costs to make objects of them."""
    return len(array) == 1 or bool(array.slice(1).equals(array.slice(0, len(array) - 1)))


def _values(name: str, array: pa.Array) -> Sequence[Any]:
    """The values of a column, lists as tuples."""
    if pa.types.is_dictionary(array.type):
        parsed = [_PARSERS[name](text) for text in array.dictionary.to_pylist()]
        return [None if at is None else parsed[at] for at in array.indices.to_pylist()]
    values: list[Any] = array.to_pylist()
    return [tuple(value) for value in values] if pa.types.is_list(array.type) else values


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined if isinstance(combined, pa.Array) else pa.concat_arrays(combined.chunks)
