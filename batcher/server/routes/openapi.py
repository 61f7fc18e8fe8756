"""The OpenAPI document, completed by what holds for every route: the key it needs, and the errors it can give.

FastAPI puts 422 into it for every route that has parameters; what is invalid here is answered with 400.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from batcher.server.guard.auth import KEY_HEADERS, PUBLIC_PATHS
from batcher.server.guard.errors import MEANINGS, ErrorBody

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
    error = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= {**error.pop("$defs"), "ErrorBody": error}
    if needs_key:
        in_headers = {name: {"type": "apiKey", "in": "header", "name": name} for name in KEY_HEADERS}
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}, **in_headers}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]
            answers.pop("422", None)
            for status in _PUBLIC_ERRORS if path in PUBLIC_PATHS else MEANINGS:
                answer = answers.setdefault(str(status), {"description": MEANINGS[status]})
                # Health has a body of its own where it is not well.
                if path not in PUBLIC_PATHS:
                    answer.setdefault(
                        "content", {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
                    )
            if needs_key and path not in PUBLIC_PATHS:
                operation["security"] = [{name: []} for name in ("key", *KEY_HEADERS)]
