"""JSON schemas as they are given to llguidance: dates are those of the calendar, times and durations come to an end,
and objects have what is named.

By llguidance's own `date` and `date-time` there is a year 0, and a 29th of February in each year, which validators
refuse. And an object may have any properties that its schema does not forbid, as the standard has it: small models make
some up until max_tokens. Here one whose schema names its `properties` has no others, unless the schema says so.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

#: Where schemas lie in a schema: as the value, in a list, by name. `items` is a list in older drafts.
_SINGLE = ("additionalProperties", "items", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties")
_LISTS = ("prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
#: Which of them hold for the same value as the schema itself.
_SAME_SINGLE = ("not", "if", "then", "else")
_SAME_LISTS = ("allOf", "anyOf", "oneOf")
_SAME_NAMED = ("dependentSchemas",)
#: What a schema itself says of an object.
_OF_OBJECTS = frozenset(
    (
        *("properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames"),
        *("required", "minProperties", "maxProperties", "dependentRequired"),
    )
)
#: What says, beside its `properties`, which an object may have.
_OPENING = frozenset(
    (
        *("patternProperties", "additionalProperties", "unevaluatedProperties", "$ref", "$dynamicRef"),
        *(*_SAME_SINGLE, *_SAME_LISTS, *_SAME_NAMED),
    )
)

#: Integers up to it are doubles.
_MOST_EXACT = 2**53

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
#: What a date begins with. The formats themselves say how many days the months have.
_REAL_DATE = f"(?:{_YEAR}-(?:0[13-9]|1[0-2]|02-(?:[01]|2[0-8]))|{_LEAP_YEAR}-02-29)"
#: Seconds of at most nine digits behind the point: by the formats they have any number, which models make use of.
_END_OF_TIME = r"[^.]*(?:\.[0-9]{1,9}(?:[^.0-9].*)?)?$"
#: Of the texts that formats allow, those that are taken.
_OF_FORMATS = {
    "date": f"^{_REAL_DATE}",
    "date-time": f"^{_REAL_DATE}{_END_OF_TIME}",
    "time": f"^{_END_OF_TIME}",
    "duration": "^(?:[^0-9]+[0-9]{1,9})*[^0-9]+$",
}


def as_written(text: str) -> str:
    """The JSON text of a schema that texts are held to. Raises ValueError."""
    schema = json.loads(text)
    narrow(schema)
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def narrow(schema: Any) -> None:
    """Have a schema, as a value, allow real dates alone, and no properties that it does not name. Mutates.

    Raises ValueError for numbers that would be written otherwise.
    """
    anchors = {value["$anchor"]: value for value in _values(schema) if isinstance(value.get("$anchor"), str)}
    #: By identity: each schema in it, and whether its values have to keep to another one as well.
    found: dict[int, tuple[dict[str, Any], bool]] = {}
    waiting: list[tuple[Any, bool]] = [(schema, False)]
    while waiting:
        value, is_joined = waiting.pop()
        if not isinstance(value, dict) or (id(value) in found and found[id(value)][1] >= is_joined):
            continue
        found[id(value)] = value, is_joined
        waiting += [(inner, is_joined) for inner in _parts(value)]
        same = [*_same_parts(value)]
        if isinstance(ref := value.get("$ref"), str):
            same.append(_target(schema, anchors, ref))
        # Two that hold for the same value, each without the properties of the other, would allow none of them.
        num_together = len(value.get("allOf") or ()) + sum(
            key in value for key in ("anyOf", "oneOf", "$ref", "not", "if")
        )
        is_joined = is_joined or num_together + bool(_OF_OBJECTS & value.keys()) > 1
        waiting += [(inner, is_joined) for inner in same]
    for value, is_joined in found.values():
        _check_numbers(value)
        if isinstance(kind := value.get("format"), str) and kind in _OF_FORMATS and "pattern" not in value:
            value["pattern"] = _OF_FORMATS[kind]
        if not is_joined and _names_all(value):
            value["additionalProperties"] = False


def _check_numbers(schema: dict[str, Any]) -> None:
    """llguidance reads the values of a schema as doubles."""
    waiting = [schema.get("const"), schema.get("enum")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int) and abs(value) > _MOST_EXACT:
            raise ValueError(f"{value} in an enum or const is beyond 2**53; use a string, or minimum and maximum")
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _names_all(schema: dict[str, Any]) -> bool:
    """Whether an object keeps to a schema with the properties that this names, and it does not say otherwise."""
    named, required, least = schema.get("properties"), schema.get("required", []), schema.get("minProperties", 0)
    if not isinstance(named, dict) or _OPENING & schema.keys():
        return False
    return isinstance(required, list) and {*map(str, required)} <= named.keys() and least in range(len(named) + 1)


def _parts(schema: dict[str, Any]) -> Iterator[Any]:
    """The schemas in one, of which each holds for some other value."""
    yield from (schema[key] for key in _SINGLE if key in schema)
    yield from (inner for key in _LISTS if isinstance(schema.get(key), list) for inner in schema[key])
    yield from (inner for key in _NAMED if isinstance(schema.get(key), dict) for inner in schema[key].values())


def _same_parts(schema: dict[str, Any]) -> Iterator[Any]:
    """The schemas in one, of which each holds for the same value."""
    yield from (schema[key] for key in _SAME_SINGLE if key in schema)
    yield from (inner for key in _SAME_LISTS if isinstance(schema.get(key), list) for inner in schema[key])
    yield from (inner for key in _SAME_NAMED if isinstance(schema.get(key), dict) for inner in schema[key].values())


def _target(schema: Any, anchors: dict[str, Any], ref: str) -> Any:
    """What a reference within a schema means; None where there is no such."""
    if not ref.startswith("#"):
        return None
    if ref[1:] and not ref.startswith("#/"):
        return anchors.get(ref[1:])
    value = schema
    for key in unquote(ref[1:]).split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict):
            value = value.get(key)
        else:
            return None
    return value


def _values(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a value of JSON."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
