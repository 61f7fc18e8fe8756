"""The app: routes, and the layers around them.

CORSMiddleware  answers the browsers of pages that may ask, where any may (see `guard.origins`)
Boundary        makes answers of errors; counts and times every request
KeyCheck        refuses requests without a key (a server without keys: LoopbackCheck, those of other machines)
Admission       bounds the number of requests at a time, and their bodies
the routes      completions, chat, models, health, metrics; files and batches
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import APIRouter, FastAPI, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Match

import batcher
from batcher.live import LiveEngine
from batcher.server.census import CensusTaker
from batcher.server.guard.admission import Admission
from batcher.server.guard.answers import Boundary, JSONAnswer, error_answer
from batcher.server.guard.auth import ApiKeys, KeyCheck, LoopbackCheck
from batcher.server.guard.clients import Usage
from batcher.server.guard.errors import ApiError
from batcher.server.guard.limits import Limits
from batcher.server.guard.origins import allow_origins
from batcher.server.live.completions import Completions, completions_router
from batcher.server.live.exchange import Exchanges
from batcher.server.metrics import Metrics
from batcher.server.routes.models import health_router, models_router
from batcher.server.routes.openapi import describe

_DESCRIPTION = "The OpenAI-compatible API of Batcher: live completions and chats, files and batches."


@dataclass(frozen=True, slots=True)
class Api:
    """The app, and the live requests in it, which its owner ends when the server stops."""

    app: FastAPI
    exchanges: Exchanges


def make_api(
    engine: LiveEngine | None,
    *,
    keys: ApiKeys | None,
    limits: Limits | None = None,
    ignores_unknown: bool = False,
    census: CensusTaker | None = None,
    routers: Iterable[APIRouter] = (),
    cors_origins: tuple[str, ...] = (),
) -> Api:
    """The app over `engine` (None: it serves no model itself) and `routers`, those of files and batches.

    `keys` None: no key is asked for, and only this machine is answered. Pages of `cors_origins` may ask from a browser.
    `ignores_unknown`: unknown fields of a request are left out and named in a header, rather than refused.
    """
    limits = limits or Limits()
    usage = Usage(limits, num_keys=len(keys or ()))
    metrics = Metrics(usage)
    exchanges = Exchanges(engine, limits=limits, usage=usage)
    access = Middleware(LoopbackCheck, origins=cors_origins) if keys is None else Middleware(KeyCheck, keys=keys)
    layers = [Middleware(Boundary, metrics=metrics), access, Middleware(Admission, limits=limits, usage=usage)]
    app = FastAPI(
        title="Batcher",
        version=batcher.__version__,
        description=_DESCRIPTION,
        redoc_url=None,
        # A path with a slash too many is another path: a redirect would lose the body of a POST in many clients.
        redirect_slashes=False,
        middleware=[*([allow_origins(cors_origins)] if cors_origins else []), *layers],
        exception_handlers={HTTPException: _http_error, RequestValidationError: _invalid_request},
    )
    completions = Completions(exchanges, limits=limits, metrics=metrics, ignores_unknown=ignores_unknown)
    app.include_router(completions_router(completions, ignores_unknown=ignores_unknown, models=exchanges.models))
    app.include_router(models_router(engine))
    app.include_router(health_router(engine))
    app.include_router(_metrics_router(engine, metrics, census))
    for router in routers:
        app.include_router(router)
    app.openapi = describe(app, needs_key=keys is not None)  # type: ignore[method-assign]
    return Api(app, exchanges)


def _metrics_router(engine: LiveEngine | None, metrics: Metrics, census: CensusTaker | None) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/metrics", responses={200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def read_metrics() -> Response:
        """What the server, its engines, jobs and workers are doing, in the text format of Prometheus."""
        stats = await engine.stats() if engine is not None else {}
        counted = await asyncio.to_thread(census.take) if census is not None else None
        return Response(metrics.render(stats, counted), media_type=CONTENT_TYPE_LATEST)

    return router


async def _http_error(request: Request, exc: Exception) -> JSONAnswer:
    """An error that the framework found: no such route, no such method, a body that it could not read."""
    assert isinstance(exc, HTTPException)
    # What the layers raise while a form is read comes wrapped.
    if isinstance(exc.__cause__, ApiError):
        return error_answer(exc.__cause__)
    # Not of `request.url`, which a bad Host would break.
    method, path = request.method[:16], request.scope["path"][:256]
    message = {
        404: f"there is no {path}; GET /docs lists what there is",
        405: f"{path} can't be asked with {method}; GET /docs lists what there is",
    }.get(exc.status_code, str(exc.detail))
    # In small letters, so that none is there twice.
    headers = {name.lower(): value for name, value in (exc.headers or {}).items()}
    if exc.status_code == 405:
        headers["allow"] = ", ".join(sorted(_methods_of(request)))
    return error_answer(ApiError(exc.status_code, message, headers=headers))


def _methods_of(request: Request) -> set[str]:
    """How a path can be asked. The framework names only the methods of the first route with this path."""
    return {
        method
        for method in ("GET", "POST", "DELETE")
        for route in request.app.router.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    }


async def _invalid_request(request: Request, exc: Exception) -> JSONAnswer:
    """A parameter of the path or the query that is not valid."""
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    place = [str(part) for part in first["loc"][1:]] or [str(part) for part in first["loc"]]
    name = ".".join(place)
    return error_answer(ApiError(400, f"{name}: {first['msg']}", param=name, code="invalid_request"))
