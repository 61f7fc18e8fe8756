"""Requests to the app without sockets: one call, one answer."""

import asyncio
from typing import Any

import httpx

from batcher.server.app import Api

#: With a name of this machine: that is all that a server without keys answers.
BASE_URL = "http://127.0.0.1:8000"


def ask(api: Api, method: str, path: str, **kwargs: Any) -> httpx.Response:
    """One request, in an event loop of its own."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=api.app)
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as client:
            response = await client.request(method, path, **kwargs)
            # What runs beside the answer, the clean-up of an upload, is part of it here.
            await asyncio.get_running_loop().shutdown_default_executor()
            return response

    return asyncio.run(send())


def complete(api: Api, **body: Any) -> httpx.Response:
    """`POST /v1/completions` of the model `tiny`."""
    return ask(api, "POST", "/v1/completions", json={"model": "tiny", "prompt": "a b"} | body)


def events(response: httpx.Response) -> list[str]:
    """The data of a stream's events."""
    return [part.removeprefix("data: ") for part in response.text.split("\n\n") if part]
