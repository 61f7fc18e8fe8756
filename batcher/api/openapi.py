"""The OpenAPI document, completed by what holds for every route: the key it needs, and the errors it can give.

FastAPI puts 422 into it for every route that has parameters; what is invalid here is answered with 400.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from batcher.api.auth import PUBLIC_PATHS

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_ERRORS = {
    400: "The request can't be used as it is; the message says what to change",
    401: "No key, or one that is not known",
    403: "Without keys, only this machine may ask",
    404: "No such thing",
    405: "The path has other methods",
    408: "The rest of the body did not come",
    413: "The body is larger than the limit",
    429: "Too many requests at a time; `retry-after` says when to come again",
    500: "The server or an engine failed",
    503: "The engine is away or the server is stopping; `retry-after` says when to come again",
    504: "The completion took longer than allowed",
}
#: What the layers around every route can answer, whether it needs a key or not.
_PUBLIC_ERRORS = (400, 403, 405, 500, 503)


def describe(app: FastAPI, *, needs_key: bool) -> Callable[[], dict[str, Any]]:
    """What to put in the place of `app.openapi`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes, tags=None
            )
            _complete(document, needs_key=needs_key)
            app.openapi_schema = document
        return app.openapi_schema

    return openapi


def _complete(document: dict[str, Any], *, needs_key: bool) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Error"] = ERROR_SCHEMA
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]
            answers.pop("422", None)
            for status in _PUBLIC_ERRORS if path in PUBLIC_PATHS else _ERRORS:
                answer = answers.setdefault(str(status), {"description": _ERRORS[status]})
                # Health has a body of its own where it is not well.
                if path not in PUBLIC_PATHS:
                    answer.setdefault(
                        "content", {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
                    )
            if needs_key and path not in PUBLIC_PATHS:
                operation["security"] = [{"key": []}]
