"""The routes of files and batches behind a real server, without the rest of `batcher serve`."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from batcher.server.guard.errors import ApiError
from batcher.server.routes.batches import batches_router
from batcher.server.routes.files import files_router
from tests.support.batch_bench import BatchBench

MAX_BYTES = 1 << 20


def make_app(bench: BatchBench, *, max_bytes: int = MAX_BYTES) -> FastAPI:
    app = FastAPI()
    app.include_router(files_router(bench.files, bench.batches, max_bytes=max_bytes))
    app.include_router(batches_router(bench.batches))

    @app.exception_handler(ApiError)
    async def answer(request: Request, exc: ApiError) -> Response:
        return JSONResponse(exc.body(), status_code=exc.status, headers=dict(exc.headers))

    return app


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    """One request, without a network."""

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            response = await client.request(method, path, **options)
            # What runs beside the answer, the clean-up of an upload, is part of it here.
            await asyncio.get_running_loop().shutdown_default_executor()
            return response

    return asyncio.run(send())


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The documented error object of an answer."""
    body: dict[str, Any] = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The app on a free port; gives its base URL."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off"))
    ready = threading.Event()
    real = server.startup

    async def startup(sockets: Any = None) -> None:
        await real(sockets)
        ready.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(30)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)
