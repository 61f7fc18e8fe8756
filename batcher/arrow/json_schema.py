"""JSON schemas as Arrow types: what the answers of a job with a schema are as a column.

Objects are structs, arrays lists, and enums what their values are. Integers have 64 bits, numbers are doubles, and of
the formats of strings `date` and `date-time` have types of their own. What can be null or missing is nullable. Where a
schema has no Arrow type (values of several types, objects whose properties it does not name, what refers to itself)
that part is JSON text, which its field's metadata says; `json_texts` reads answers by the type and its metadata alone.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa

#: Metadata of a field whose strings are JSON text, and of one that could not have the name of its property.
IS_JSON_TEXT = b"batcher.is_json_text"
PROPERTY = b"batcher.property"

#: More fields than this are a table that no reader handles well; a schema gets there by a few lines of `$defs`.
MAX_FIELDS = 1000
#: Structs and lists inside of each other.
MAX_LEVELS = 30
#: Schemas that are looked at, with what `$ref` and `anyOf` multiply.
_MAX_STEPS = 20_000

_TYPES = frozenset({"null", "boolean", "integer", "number", "string", "array", "object"})
_FORMATS = {"date": pa.date32(), "date-time": pa.timestamp("us", tz="UTC")}
_TEXTS = (pa.string(), *_FORMATS.values())
_INT64 = range(-(2**63), 2**63)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TypedColumn:
    """A column for the answers to a schema. `json_parts` are the parts of it that are JSON text, each with the reason:
    "output.meta: the schema names no properties"."""

    field: pa.Field
    json_parts: tuple[str, ...]


def typed_column(name: str, schema: Any) -> TypedColumn:
    """The column `name` that holds what conforms to `schema`, a JSON value. Never fails: at worst all is JSON text."""
    mapper = _Mapper(schema)
    try:
        found = mapper.column(name, [schema], path=name, refs=frozenset(), level=0)
    except _TooLargeError as exc:
        mapper.json_parts = [f"{name}: {exc}"]
        found = _JSON_TEXT
    return TypedColumn(found.field(name, is_nullable=True), tuple(mapper.json_parts))


class _NoTypeError(Exception):
    """A part of a schema has no Arrow type; says why."""


class _TooLargeError(Exception):
    """A schema has no bounded type; says why."""


@dataclass(frozen=True, slots=True)
class _Column:
    """An Arrow type before it has a name."""

    type: pa.DataType
    is_json: bool = False
    is_nullable: bool = False

    def field(self, name: str, *, is_nullable: bool, metadata: Mapping[bytes, bytes] | None = None) -> pa.Field:
        metadata = {**(metadata or {}), **({IS_JSON_TEXT: b"true"} if self.is_json else {})}
        return pa.field(name, self.type, nullable=is_nullable or self.is_nullable, metadata=metadata or None)


_JSON_TEXT = _Column(pa.string(), is_json=True, is_nullable=True)


@dataclass(frozen=True, slots=True)
class _Flat:
    """What schemas that hold together ask for, without references and alternatives.

    Of a property and of the elements of an array all of the schemas in a list hold. `values`: no others are allowed.
    """

    types: frozenset[str] = _TYPES
    values: tuple[Any, ...] | None = None
    format: str | None = None
    properties: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    is_open: bool = False
    elements: tuple[Any, ...] | None = None

    def merge(self, other: "_Flat") -> "_Flat":
        """What both ask for. Of two lists of elements the first counts: they seldom differ in type."""
        names = dict.fromkeys((*self.properties, *other.properties))
        return _Flat(
            types=_common_types(self.types, other.types),
            values=_common_values(self.values, other.values),
            format=self.format or other.format,
            properties={name: (*self.properties.get(name, ()), *other.properties.get(name, ())) for name in names},
            required=(*self.required, *other.required),
            is_open=self.is_open or other.is_open,
            elements=other.elements if self.elements is None else self.elements,
        )


class _Mapper:
    """Maps one schema; counts what it has looked at. Mutable."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._num_steps = 0
        self._num_fields = 0
        self.json_parts: list[str] = []

    def column(self, name: str, schemas: Sequence[Any], *, path: str, refs: frozenset[str], level: int) -> _Column:
        """What holds a value to which all of `schemas` apply; `refs` are those that led here."""
        self._num_fields += 1
        if self._num_fields > MAX_FIELDS:
            raise _TooLargeError(f"the schema has more than {MAX_FIELDS:,} fields")
        num_parts = len(self.json_parts)
        try:
            if level > MAX_LEVELS:
                raise _NoTypeError(f"it lies more than {MAX_LEVELS} levels deep")
            return self._column(self._alternatives(schemas, refs), path=path, level=level)
        except _NoTypeError as exc:
            # In place of what was said of parts of it.
            self.json_parts[num_parts:] = [f"{path}: {exc}"]
            return _JSON_TEXT

    def _column(self, found: list[tuple[_Flat, frozenset[str]]], *, path: str, level: int) -> _Column:
        columns = []
        is_nullable = False
        for flat, refs in found:
            types = flat.types
            if flat.values is not None:
                types = _common_types(types, frozenset(map(_type_of, flat.values)))
            is_nullable |= "null" in types
            types -= {"null"}
            if types:
                columns.append(self._typed(flat, types, path=path, refs=refs, level=level))
        if not columns:
            raise _NoTypeError("it can only be null" if is_nullable else "no value conforms to the schema")
        first, *others = columns
        for other in others:
            first = _unify(first, other)
        return replace(first, is_nullable=first.is_nullable or is_nullable)

    def _typed(self, flat: _Flat, types: frozenset[str], *, path: str, refs: frozenset[str], level: int) -> _Column:
        if types == _TYPES - {"null"}:
            raise _NoTypeError('the schema says no "type"')
        if types <= {"integer", "number"}:
            if types == {"integer"} and any(value not in _INT64 for value in flat.values or () if value is not None):
                raise _NoTypeError("its integers do not fit into 64 bits")
            return _Column(pa.int64() if types == {"integer"} else pa.float64())
        if len(types) > 1:
            raise _NoTypeError(f"it can be {' or '.join(sorted(types))}")
        if types == {"string"}:
            return _Column(pa.string() if flat.values is not None else _FORMATS.get(flat.format or "", pa.string()))
        if types == {"array"}:
            elements = [{"anyOf": list(flat.elements or (True,))}]
            inner = self.column("element", elements, path=f"{path}[]", refs=refs, level=level + 1)
            return _Column(pa.list_(inner.field("element", is_nullable=False)))
        return _Column(pa.bool_()) if types == {"boolean"} else self._struct(flat, path=path, refs=refs, level=level)

    def _struct(self, flat: _Flat, *, path: str, refs: frozenset[str], level: int) -> _Column:
        if flat.is_open:
            raise _NoTypeError("it can have properties that the schema does not name")
        properties = {**flat.properties, **{name: (True,) for name in flat.required if name not in flat.properties}}
        fields = []
        for (name, schemas), column_name in zip(properties.items(), _field_names(properties), strict=True):
            if False in schemas:
                continue
            inner = self.column(name, schemas, path=f"{path}.{name}", refs=refs, level=level + 1)
            renamed = {PROPERTY: name.encode()} if column_name != name else None
            fields.append(inner.field(column_name, is_nullable=name not in flat.required, metadata=renamed))
        if not fields:
            raise _NoTypeError("the schema names no properties of it")
        return _Column(pa.struct(fields))

    def _alternatives(self, schemas: Iterable[Any], refs: frozenset[str]) -> list[tuple[_Flat, frozenset[str]]]:
        """What there is to choose from where all of `schemas` apply, each with the references that led to it."""
        found = [(_Flat(), refs)]
        for schema in schemas:
            new = list(self._flatten(schema, refs))
            found = [(one.merge(other), ours | theirs) for one, ours in found for other, theirs in new]
            self._count(len(found))
        return found

    def _flatten(self, schema: Any, refs: frozenset[str]) -> Iterator[tuple[_Flat, frozenset[str]]]:
        """The alternatives of one schema."""
        self._count(1)
        if schema is False:
            return
        if not isinstance(schema, Mapping):
            yield _Flat(), refs
            return
        found = [(_flat(schema), refs)]
        groups = [self._alternatives(_said(schema, "allOf", list) or [], refs)]
        if target := _said(schema, "$ref", str):
            if target in refs:
                raise _NoTypeError(f"it refers to itself ({target[:60]})")
            groups.append(self._alternatives([self._resolve(target)], refs | {target}))
        for key in ("anyOf", "oneOf"):
            if options := _said(schema, key, list):
                groups.append([one for each in options for one in self._flatten(each, refs)])
        for group in groups:
            found = [(one.merge(other), ours | theirs) for one, ours in found for other, theirs in group]
            self._count(len(found))
        yield from found

    def _count(self, number: int) -> None:
        self._num_steps += number
        if self._num_steps > _MAX_STEPS:
            raise _TooLargeError("the schema has too many alternatives")

    def _resolve(self, target: str) -> Any:
        """What a JSON pointer into the schema points to."""
        found = self._root
        try:
            if target[:1] != "#" or target[1:2] not in ("", "/"):
                raise KeyError(target)
            for part in target[2:].split("/") if len(target) > 1 else ():
                key = unquote(part).replace("~1", "/").replace("~0", "~")
                found = found[int(key)] if isinstance(found, list) else found[key]
        except (KeyError, ValueError, IndexError, TypeError) as exc:
            raise _NoTypeError(f"its $ref {target[:60]} points to nothing in the schema") from exc
        return found


def _flat(schema: Mapping[str, Any]) -> _Flat:
    """What a schema asks for in its own words; `$ref`, `allOf`, `anyOf` and `oneOf` are left to the caller."""
    types = [schema["type"]] if _said(schema, "type", str) else _said(schema, "type", list)
    values = [schema["const"]] if "const" in schema else _said(schema, "enum", list)
    properties = _said(schema, "properties", dict) or {}
    additional = (schema.get(key, False) for key in ("additionalProperties", "unevaluatedProperties"))
    return _Flat(
        types=_TYPES if types is None else _TYPES & {each for each in types if isinstance(each, str)},
        values=None if values is None else tuple(values),
        format=_said(schema, "format", str),
        properties={name: (each,) for name, each in properties.items()},
        required=tuple(each for each in _said(schema, "required", list) or () if isinstance(each, str)),
        is_open=any(each is not False for each in additional) or bool(schema.get("patternProperties")),
        elements=_elements(schema),
    )


def _elements(schema: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Schemas of which each element of an array has one; None where nothing is said."""
    first, rest = _said(schema, "prefixItems", list), schema.get("items")
    if isinstance(rest, list):  # As drafts before 2020 say it.
        first, rest = rest, schema.get("additionalItems")
    if first is None and rest is None:
        return None
    found = first or []
    is_full = rest is False or (_said(schema, "maxItems", int) or len(found) + 1) <= len(found)
    return tuple(found) if is_full and found else (*found, True if rest is None else rest)


def _said(schema: Mapping[str, Any], key: str, kind: type[T]) -> T | None:
    """The value of a keyword; None for one of another type: whether a schema is well-formed, its compiler says."""
    value = schema.get(key)
    return value if isinstance(value, kind) else None


def _common_types(these: frozenset[str], those: frozenset[str]) -> frozenset[str]:
    found = these & those
    # Integers are numbers.
    if "integer" in these ^ those and "number" in (these if "integer" in those else those):
        found |= {"integer"}
    return found


def _common_values(these: tuple[Any, ...] | None, those: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
    if these is None or those is None:
        return those if these is None else these
    known = {json.dumps(value, sort_keys=True) for value in those}
    return tuple(value for value in these if json.dumps(value, sort_keys=True) in known)


def _type_of(value: Any) -> str:
    names = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "string", list: "array"}
    return names.get(type(value), "object")


def _unify(one: _Column, other: _Column) -> _Column:
    """The type that holds what either does, as the schema has it."""
    is_nullable = one.is_nullable or other.is_nullable
    if one.is_json or other.is_json:
        return replace(_JSON_TEXT, is_nullable=True)
    if one.type.equals(other.type, check_metadata=True):
        return _Column(one.type, is_nullable=is_nullable)
    kinds = {one.type, other.type}
    if kinds == {pa.int64(), pa.float64()}:
        return _Column(pa.float64(), is_nullable=is_nullable)
    if kinds <= {*_TEXTS}:
        return _Column(pa.string(), is_nullable=is_nullable)
    if pa.types.is_list(one.type) and pa.types.is_list(other.type):
        element = _unify_fields(one.type.value_field, other.type.value_field)
        return _Column(pa.list_(element), is_nullable=is_nullable)
    if pa.types.is_struct(one.type) and pa.types.is_struct(other.type) and one.type.names == other.type.names:
        return _Column(pa.struct(list(map(_unify_fields, one.type, other.type))), is_nullable=is_nullable)
    raise _NoTypeError("it can be of several types")


def _unify_fields(one: pa.Field, other: pa.Field) -> pa.Field:
    columns = [_Column(each.type, IS_JSON_TEXT in (each.metadata or {}), each.nullable) for each in (one, other)]
    renamed = {key: value for key, value in (one.metadata or {}).items() if key == PROPERTY}
    return _unify(*columns).field(one.name, is_nullable=False, metadata=renamed)


def _field_names(properties: Iterable[str]) -> list[str]:
    """The names of properties, each once whatever its case, as DuckDB and Spark ask for: a second one gets `_2`."""
    names: list[str] = []
    taken = {name.lower() for name in properties}
    seen: set[str] = set()
    for name in properties:
        chosen, number = name, 1
        while chosen.lower() in seen or (number > 1 and chosen.lower() in taken):
            number += 1
            chosen = f"{name}_{number}"
        try:
            chosen.encode()
        except UnicodeEncodeError as exc:
            raise _NoTypeError("the name of a property is no Unicode text") from exc
        seen.add(chosen.lower())
        names.append(chosen)
    return names
