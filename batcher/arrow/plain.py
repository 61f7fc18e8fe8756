"""Columns of any Arrow type as ones that a result file can hold and every operation on tables supports.

Dictionaries, run-end encoding and views, which are only other ways to store the same values, become those values.
Lists of a fixed size become lists, as they are in Parquet: Arrow's readers before 26 refuse a file whose fixed-size
lists have nulls among them. What Parquet has no type for becomes text, by the rule of `values`: unions as JSON,
intervals of months as ISO 8601.
Extension types of Arrow stay. Those of others, pandas' periods for one, become their storage, with the field metadata
that makes them theirs again in a reader that knows them.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.values import expanded_positions, text_values
from batcher.errors import InputError

_NAME_KEY, _METADATA_KEY = b"ARROW:extension:name", b"ARROW:extension:metadata"


def plain_table(table: pa.Table) -> pa.Table:
    """`table` with each column of its `plain_type`, and of its fields' metadata only what names an extension type.

    Raises InputError for a column that can't be converted.
    """
    columns = []
    fields = []
    for field, column in zip(table.schema, table.columns, strict=True):
        plain = plain_type(field.type)
        fields.append(pa.field(field.name, plain, metadata=_extension_metadata(field)))
        if plain == field.type:
            columns.append(column)
            continue
        try:
            columns.append(pa.chunked_array([_plain(chunk) for chunk in column.chunks], plain))
        except (pa.ArrowException, TypeError, ValueError) as exc:
            raise InputError(f"column {field.name!r} is of type {field.type}, which is not supported") from exc
    return pa.Table.from_arrays(columns, schema=pa.schema(fields)) if columns else table


def plain_type(found: pa.DataType) -> pa.DataType:
    """The type that a column of type `found` has in a `plain_table`."""
    t = pa.types
    if isinstance(found, pa.BaseExtensionType):
        return found if _stays(found) else plain_type(found.storage_type)
    if t.is_dictionary(found) or t.is_run_end_encoded(found):
        return plain_type(found.value_type)
    if found == pa.string_view() or t.is_union(found) or t.is_interval(found):
        return pa.string()
    if found == pa.binary_view():
        return pa.binary()
    if t.is_struct(found):
        return pa.struct([_plain_field(found.field(i)) for i in range(found.num_fields)])
    if t.is_map(found):
        return pa.map_(_plain_field(found.key_field), _plain_field(found.item_field))
    if t.is_list(found) or t.is_list_view(found) or t.is_fixed_size_list(found):
        return pa.list_(_plain_field(found.value_field))
    if t.is_large_list(found) or t.is_large_list_view(found):
        return pa.large_list(_plain_field(found.value_field))
    return found


def storage_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of an extension type as its storage; any other as it is."""
    while isinstance(column.type, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column


def _stays(found: pa.BaseExtensionType) -> bool:
    """Whether the type is one of those that Arrow itself has, and so any reader may know."""
    return bool(found.extension_name.startswith("arrow.")) and plain_type(found.storage_type) == found.storage_type


def _plain_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, plain_type(field.type), field.nullable)


def _extension_metadata(field: pa.Field) -> dict[bytes, bytes] | None:
    """Of a type that is not registered here, the field's own; of another's that is, what the field would have."""
    if isinstance(field.type, pa.BaseExtensionType):
        if field.type.extension_name.startswith("arrow."):
            return None
        serialize = getattr(field.type, "__arrow_ext_serialize__", bytes)
        return {_NAME_KEY: field.type.extension_name.encode(), _METADATA_KEY: serialize()}
    kept = {key: value for key, value in (field.metadata or {}).items() if key in (_NAME_KEY, _METADATA_KEY)}
    return kept or None


def _plain(array: pa.Array) -> pa.Array:
    """Of one chunk. Not by casts: some types have no cast, and those of list views give invalid arrays."""
    t = pa.types
    found = array.type
    plain = plain_type(found)
    if plain == found:
        return array
    if isinstance(found, pa.BaseExtensionType):
        return _plain(array.storage)
    if t.is_dictionary(found):
        return _plain(array.dictionary).take(array.indices)
    if t.is_run_end_encoded(found):
        return _plain(array.values).take(pa.array(expanded_positions(array), pa.int64()))
    if t.is_union(found) or t.is_interval(found):
        return pa.array(text_values(array), plain)
    if t.is_struct(found):
        children = [_plain(child) for child in array.flatten()]
        return pa.StructArray.from_arrays(children, fields=list(plain), mask=array.is_null())
    if t.is_map(found):
        return pa.MapArray.from_arrays(
            pa.array(array.offsets.to_pylist(), pa.int32()),
            _plain(array.keys),
            _plain(array.items),
            type=plain,
            mask=array.is_null(),
        )
    if found in (pa.string_view(), pa.binary_view()):
        return pc.cast(array, plain)
    # Lists of any other kind.
    make = pa.LargeListArray if t.is_large_list(plain) else pa.ListArray
    lengths = pc.list_value_length(array).to_pylist()
    offsets = pa.array(_offsets(lengths), pa.int64() if make is pa.LargeListArray else pa.int32())
    return make.from_arrays(offsets, _plain(array.flatten()), type=plain, mask=array.is_null())


def _offsets(lengths: Sequence[int | None]) -> list[int]:
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + (length or 0))
    return offsets
