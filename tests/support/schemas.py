"""A hundred JSON schemas over all keywords: those that texts are held to, and those that are refused.

A test holds the engine and the table of docs/structured.md to it.
"""

from typing import Any

Schema = dict[str, Any] | bool

_POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}
_TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"enum": ["a", "b"]},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["name", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def closed(required: list[str] | None = None, **properties: Schema) -> dict[str, Any]:
    """An object of these properties and no others; all are required unless it says which."""
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def of_strings(**more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": 12, **more}


_NULL = {"type": "null"}
_A = {"properties": {"a": _NULL}, "required": ["a"]}
_B = {"properties": {"b": _NULL}, "required": ["b"]}
_OBJECT = {"type": "object", **_A}
_X = "#/$defs/x"
#: Schemas that allow properties which they do not name by saying nothing about them, and a text that keeps to each.
NAMING: list[tuple[dict[str, Any], str]] = [
    (_OBJECT, '{"a": null}'),
    ({**_A, "type": ["object", "null"]}, '{"a": null}'),
    ({"type": "object", "properties": {}}, "{}"),
    ({"type": "object", "properties": {"default": _OBJECT, "enum": _NULL}}, '{"default": {"a": null}}'),
    ({"type": "array", "items": _OBJECT, "minItems": 1, "maxItems": 2}, '[{"a": null}]'),
    ({"type": "array", "prefixItems": [_OBJECT], "items": False, "minItems": 1}, '[{"a": null}]'),
    ({"type": "object", "additionalProperties": _OBJECT, "maxProperties": 1}, '{"k": {"a": null}}'),
    ({"$defs": {"x": _OBJECT}, "anyOf": [{"$ref": _X}, _NULL]}, '{"a": null}'),
    ({"$defs": {"x": _OBJECT}, "allOf": [{"$ref": _X}], "description": "D"}, '{"a": null}'),
    ({"$defs": {"x": {"$anchor": "x", **_OBJECT}}, "$ref": "#x"}, '{"a": null}'),
    ({"anyOf": [_OBJECT, {"type": "object", **_B}]}, '{"b": null}'),
]
#: Those that allow others by saying so, or as what they are made of would allow nothing else, and a text with another.
OPEN: list[tuple[dict[str, Any], str]] = [
    ({**_OBJECT, "additionalProperties": True}, '{"a": null, "z": null}'),
    ({**_OBJECT, "patternProperties": {"^x": _NULL}}, '{"a": null, "x1": null, "z": 1}'),
    ({"type": "object"}, '{"z": null}'),
    ({"type": "object", "properties": {"a": _NULL}, "required": ["a", "b"]}, '{"a": null, "b": 1}'),
    ({"type": "object", "properties": {"a": _NULL}, "required": ["a"], "minProperties": 2}, '{"a": null, "z": 1}'),
    ({"type": "object", "allOf": [_A, _B]}, '{"a": null, "b": null}'),
    ({"$defs": {"x": _OBJECT}, "$ref": _X, **_B}, '{"a": null, "b": null}'),
    ({"$defs": {"x~/y": _OBJECT}, "allOf": [{"$ref": "#/$defs/x~0~1y"}, _B]}, '{"a": null, "b": null}'),
    ({"$defs": {"x": {"$anchor": "x", **_OBJECT}}, "allOf": [{"$ref": "#x"}, _B]}, '{"a": null, "b": null}'),
    ({**_OBJECT, "anyOf": [_B, {"properties": {"c": _NULL}, "required": ["c"]}]}, '{"a": null, "b": null}'),
]

#: Schemas that texts are held to, by the keyword that they are about.
SCHEMAS: dict[str, list[Schema]] = {
    "type": [
        {"type": "string", "maxLength": 8},
        {"type": "number"},
        {"type": "integer"},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        {"type": ["integer", "null"]},
        {"type": ["boolean", "null", "integer"]},
    ],
    "enum": [{"enum": ["red", "green"]}, {"enum": [1, 2.5, None, True, "x"]}, {"enum": [{"a": 1}, [1, 2]]}],
    "const": [{"const": "fixed"}, {"const": 42}, {"const": None}, {"const": {"a": [1, 2]}}],
    "properties": [
        closed(a={"type": "integer"}),
        *(schema for schema, _ in NAMING),
        closed(b={"type": "boolean"}, a={"type": "null"}),
        {"type": "object", "properties": {}, "additionalProperties": False},
        closed([], a={"type": "integer"}, b={"type": "boolean"}),
    ],
    "required": [
        closed(["b"], a={"type": "integer"}, b={"type": "boolean"}),
        {"type": "object", "required": ["z"], "additionalProperties": {"type": "boolean"}},
    ],
    "additionalProperties": [
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
    ],
    "patternProperties": [
        {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}}, "additionalProperties": False},
        {
            "type": "object",
            "properties": {"a": {"type": "null"}},
            "patternProperties": {"^x": {"type": "integer"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    ],
    "minProperties": [{"type": "object", "minProperties": 2, "additionalProperties": {"type": "null"}}],
    "maxProperties": [{"type": "object", "maxProperties": 2, "additionalProperties": {"type": "null"}}],
    "items": [
        {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
        {"type": "array", "items": _POINT, "minItems": 1, "maxItems": 2},
        {"type": "array", "items": {"type": "array", "items": {"type": "null"}, "maxItems": 2}, "maxItems": 2},
        {"type": "array", "items": False},
    ],
    "prefixItems": [
        {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": False, "minItems": 2},
        {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}, "maxItems": 3},
    ],
    "minItems": [{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}],
    "maxItems": [{"type": "array", "items": {"enum": ["a"]}, "maxItems": 0}],
    "minLength": [{"type": "string", "minLength": 5, "maxLength": 9}],
    "maxLength": [{"type": "string", "maxLength": 3}, {"type": "string", "maxLength": 0}],
    "pattern": [
        {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        {"type": "string", "pattern": "^(a|bc)+$", "maxLength": 10},
        {"type": "string", "pattern": "x", "maxLength": 5},
        {"type": "string", "pattern": "^\\d{2}\\s\\w$"},
    ],
    "format": [
        {"type": "string", "format": name}
        for name in (*("date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"),)
    ],
    "minimum": [{"type": "integer", "minimum": 5, "maximum": 17}, {"type": "number", "minimum": -1.5, "maximum": 2}],
    "maximum": [{"type": "integer", "maximum": -3}, {"type": "number", "maximum": 0}],
    "exclusiveMinimum": [{"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}],
    "exclusiveMaximum": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}],
    "multipleOf": [
        {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 100},
        {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 1},
    ],
    "anyOf": [
        {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
        {"anyOf": [closed(a={"type": "null"}), closed(b={"type": "null"})]},
        {"type": "integer", "anyOf": [{"maximum": 3}, {"minimum": 7}]},
    ],
    "oneOf": [
        {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
        {"oneOf": [closed(kind={"const": "a"}), closed(kind={"const": "b"})]},
    ],
    "allOf": [
        {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 5}]},
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]},
                {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
            ],
            "additionalProperties": {"type": ["null", "boolean"]},
        },
    ],
    "$ref": [
        {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n"},
        {"definitions": {"n": {"enum": ["a"]}}, "type": "array", "items": {"$ref": "#/definitions/n"}, "maxItems": 2},
        _TREE,
    ],
    "$anchor": [{"$defs": {"n": {"$anchor": "n", "type": "null"}}, "$ref": "#n"}],
    "title": [
        {"title": "T", "description": "D", "type": "boolean", "default": True, "examples": [True]},
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://e.org/s", "type": "null"},
        {"$comment": "c", "deprecated": True, "readOnly": True, "writeOnly": False, "type": "boolean"},
    ],
    "contentEncoding": [{"type": "string", "contentEncoding": "base64", "maxLength": 8}],
    "true": [True, {}],
}
#: Schemas that are refused, as texts can't be held to them, and the word of the message that says why.
REFUSED: dict[str, list[tuple[Schema, str]]] = {
    "enum": [({"enum": [1, 2**53 + 1]}, "2**53")],
    "const": [({"const": {"id": [2**60 + 1]}}, "2**53")],
    "propertyNames": [({"type": "object", "propertyNames": {"pattern": "^[a-z]{3}$"}}, "propertyNames")],
    "dependentRequired": [
        ({**closed([], a={"type": "null"}, b={"type": "null"}), "dependentRequired": {"a": ["b"]}}, "dependentRequired")
    ],
    "dependentSchemas": [
        (
            {**closed([], a={"type": "null"}, b={"type": "null"}), "dependentSchemas": {"a": {"required": ["b"]}}},
            "dependentSchemas",
        )
    ],
    "unevaluatedProperties": [({**_POINT, "unevaluatedProperties": False}, "unevaluatedProperties")],
    "uniqueItems": [
        ({"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True, "maxItems": 4}, "uniqueItems")
    ],
    "contains": [({"type": "array", "items": {"type": "integer"}, "contains": {"const": 5}}, "contains")],
    "minContains": [({"type": "array", "contains": {"const": 5}, "minContains": 2}, "minContains")],
    "maxContains": [({"type": "array", "contains": {"const": 5}, "maxContains": 2}, "maxContains")],
    "unevaluatedItems": [
        ({"type": "array", "prefixItems": [{"type": "null"}], "unevaluatedItems": False}, "unevaluatedItems")
    ],
    "format": [
        ({"type": "string", "format": name}, name)
        for name in (
            *("json-pointer", "relative-json-pointer", "regex", "iri", "idn-email", "idn-hostname", "uri-reference"),
            "whatever",
        )
    ],
    "oneOf": [({"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 5}]}, "oneOf")],
    "not": [({"not": {"type": "string"}}, "not"), ({"type": "string", "not": {"const": "x"}}, "not")],
    "if": [
        (
            {
                **closed(a={"type": "boolean"}, b={"type": ["integer", "null"]}),
                "if": {"properties": {"a": {"const": True}}},
                "then": {"properties": {"b": {"type": "integer"}}},
            },
            "if",
        )
    ],
    "$ref": [({"$ref": "https://example.org/o.json"}, "example.org"), ({"$ref": "#/$defs/missing"}, "missing")],
    "$dynamicRef": [({"$defs": {"n": {"$dynamicAnchor": "n", "type": "null"}}, "$dynamicRef": "#n"}, "$dynamicRef")],
    "type": [({"type": "objekt"}, "objekt"), ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum")],
    "required": [(closed(["b"], a={"type": "null"}), "b")],
}
NUM_SCHEMAS = sum(map(len, SCHEMAS.values())) + sum(map(len, REFUSED.values()))
