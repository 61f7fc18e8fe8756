"""The routes of files and batches behind a real server, without engines."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from batcher.server.app import Api, make_api
from batcher.server.guard.limits import Limits
from batcher.server.routes.batches import batches_router
from batcher.server.routes.files import files_router
from tests.support.batch_bench import BatchBench
from tests.support.live_server import running

MAX_BYTES = 1 << 20
LIMITS = Limits(max_file_bytes=MAX_BYTES)


def make_files_and_batches(bench: BatchBench) -> Api:
    routers = (files_router(bench.files, bench.batches, max_bytes=MAX_BYTES), batches_router(bench.batches))
    return make_api(None, keys=None, limits=LIMITS, routers=routers)


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The documented error object of an answer."""
    body: dict[str, Any] = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


@contextmanager
def served(api: Api) -> Iterator[str]:
    """The app on a free port; gives its base URL."""
    with running(api, limits=LIMITS) as (port, *_):
        yield f"http://127.0.0.1:{port}"
