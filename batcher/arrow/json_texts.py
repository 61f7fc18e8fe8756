"""JSON texts as a column of the type that their schema has, see `json_schema`.

Parsing and checking are one pass of pydantic's core over each text, in which no value takes Python code of ours but
what stays JSON text.
"""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
from pydantic_core import CoreSchema, SchemaValidator, ValidationError, core_schema

from batcher.arrow.json_schema import IS_JSON_TEXT, PROPERTY


class JsonColumn:
    """Reads texts as values of one field of `json_schema.typed_column`."""

    def __init__(self, field: pa.Field) -> None:
        self._type = field.type
        self._validate = SchemaValidator(_core_schema(field)).validate_json

    def read(self, texts: Iterable[str | None]) -> pa.Array:
        """A value of each text; null for one that is no JSON, or does not fit.

        So are integers beyond 64 bits, doubles beyond their range, and days that no month has.
        """
        return pa.array(map(self._value, texts), self._type)

    def _value(self, text: str | None) -> Any:
        if text is None:
            return None
        try:
            return self._validate(text)
        except ValidationError:
            return None


def _core_schema(field: pa.Field) -> CoreSchema:
    schema = _not_null(field)
    return core_schema.nullable_schema(schema) if field.nullable else schema


def _not_null(field: pa.Field) -> CoreSchema:
    found = field.type
    if IS_JSON_TEXT in (field.metadata or {}):
        return core_schema.no_info_after_validator_function(_json_text, core_schema.any_schema())
    if pa.types.is_struct(found):
        fields = {each.name: _property(each) for each in found}
        return core_schema.typed_dict_schema(fields, extra_behavior="ignore", strict=True)
    if pa.types.is_list(found):
        return core_schema.list_schema(_core_schema(found.value_field), strict=True)
    return _SCALARS[found]


def _property(field: pa.Field) -> core_schema.TypedDictField:
    renamed = (field.metadata or {}).get(PROPERTY)
    return core_schema.typed_dict_field(
        _core_schema(field),
        required=not field.nullable,
        validation_alias=[[field.name if renamed is None else renamed.decode()]],
    )


def _json_text(value: Any) -> str | None:
    # Raises ValueError for infinities, as which the parser reads 1e999.
    return None if value is None else json.dumps(value, ensure_ascii=False, allow_nan=False)


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError("no integer")
    return int(value)


def _leap_second(text: str) -> datetime:
    """A time with the second 60, which RFC 3339 has and clocks of computers have not, as the beginning of the next."""
    earlier, number = _SECOND_60.subn(r"\1:59", text)
    if not number:
        raise ValueError("no leap second")
    try:
        return _TIMES.validate_json(json.dumps(earlier)) + timedelta(seconds=1)  # type: ignore[no-any-return]
    except OverflowError as exc:
        raise ValueError("beyond the year 9999") from exc


_INTEGER = core_schema.int_schema(strict=True)
#: 1.0 and 1e3 are integers to JSON schema.
_ROUND = core_schema.no_info_after_validator_function(
    _whole, core_schema.float_schema(strict=True, allow_inf_nan=False)
)
#: Within the years that Python's own can have also in UTC.
_TIME = core_schema.datetime_schema(
    strict=True,
    tz_constraint="aware",
    ge=datetime.min.replace(tzinfo=UTC),
    le=datetime.max.replace(tzinfo=UTC),
)
_TIMES = SchemaValidator(_TIME)
_SECOND_60 = re.compile(r"^(\d{4}-\d\d-\d\d[Tt]\d\d:\d\d):60")
_SCALARS: dict[pa.DataType, CoreSchema] = {
    pa.string(): core_schema.str_schema(strict=True),
    pa.bool_(): core_schema.bool_schema(strict=True),
    pa.float64(): core_schema.float_schema(strict=True, allow_inf_nan=False),
    pa.int64(): core_schema.chain_schema(
        [
            core_schema.union_schema([_INTEGER, _ROUND], mode="left_to_right"),
            core_schema.int_schema(ge=-(2**63), le=2**63 - 1),
        ]
    ),
    pa.date32(): core_schema.date_schema(strict=True),
    pa.timestamp("us", tz="UTC"): core_schema.union_schema(
        [
            _TIME,
            core_schema.no_info_after_validator_function(_leap_second, core_schema.str_schema(strict=True)),
        ],
        mode="left_to_right",
    ),
}
