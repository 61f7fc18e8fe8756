"""What the routes of files and batches share: reading parameters and bodies, work on the disk, and what /docs says.

Parameters are read by hand, as FastAPI would answer a bad one, and document it, with an error object of its own.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from batcher.errors import BatcherError, InputError
from batcher.server.batches.requests import BatchEndedError, BatchRequestError, NoSuchThingError
from batcher.server.guard.errors import MEANINGS, ApiError, ErrorBody

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Model = TypeVar("_Model", bound=BaseModel)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documentation of these statuses and of those that every route can answer with."""
    every = sorted({400, 401, 403, 413, 429, 500, 503, *statuses})
    return {status: {"model": ErrorBody, "description": MEANINGS[status]} for status in every}


def path_parameter(name: str) -> dict[str, Any]:
    """The documentation of a part of the path."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def query_parameter(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """The documentation of a parameter of the query."""
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def text_parameter(request: Request, name: str, *, choices: Sequence[str] | None = None) -> str | None:
    """A parameter of the query; None where it is not given or empty. Raises ApiError if it is not among `choices`."""
    value = request.query_params.get(name)
    if not value:
        return None
    if choices is not None and value not in choices:
        raise ApiError(400, f"{name} is {value[:60]!r}; use one of: {', '.join(choices)}", param=name)
    return value


def limit_parameter(request: Request, *, default: int, most: int) -> int:
    """How many things a page may have. Raises ApiError outside 1 to `most`."""
    value = request.query_params.get("limit")
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 9 and 1 <= int(value) <= most):
        raise ApiError(400, f"limit is {value[:60]!r}; use 1 to {most}", param="limit")
    return int(value)


def parse_json(model: type[_Model], body: bytes) -> _Model:
    """A JSON body as `model`. Raises ApiError that names the first field that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False, include_context=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        where = f"{param[:80]}: " if param else "the body: "
        raise ApiError(400, f"{where}{first['msg']}", param=param[:80] if param else None) from exc


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call what touches the disk, off the event loop. What it raises becomes an ApiError and tells nothing internal."""
    try:
        return await run_in_threadpool(partial(function, *args, **kwargs))
    except BatchRequestError as exc:
        status = 404 if isinstance(exc, NoSuchThingError) else 400
        raise ApiError(status, str(exc), param=exc.param) from exc
    except (InputError, BatchEndedError) as exc:
        raise ApiError(400, str(exc)) from exc
    except BatcherError as exc:
        logger.error("%s", exc)
        raise ApiError(500, "the server could not read or write its files; its log says why") from exc
