"""Many streaming clients on the real model."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx

from tests.support.family import Family
from tests.support.serving import Server, serve

NUM_CLIENTS = 64
WAIT_S = 300


def body_of(number: int) -> dict[str, Any]:
    prompt = f"{number} is a number that"
    return {"model": "smollm2-135m", "prompt": prompt, "max_tokens": 4 + number % 9, "temperature": 0}


async def complete(client: httpx.AsyncClient, number: int) -> str:
    answer = await client.post("/completions", json=body_of(number))
    assert answer.status_code == 200, answer.text
    text = answer.json()["choices"][0]["text"]
    assert isinstance(text, str)
    return text


async def stream(client: httpx.AsyncClient, number: int) -> str:
    texts: list[str] = []
    last = ""
    async with client.stream("POST", "/completions", json=body_of(number) | {"stream": True}) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line:
                last = line.removeprefix("data: ")
                if last != "[DONE]":
                    texts.append(json.loads(last)["choices"][0]["text"])
    assert last == "[DONE]"
    return "".join(texts)


async def ask_all(server: Server) -> tuple[list[str], list[str]]:
    """The texts of all clients at once: whole, and streamed."""
    limits = httpx.Limits(max_connections=NUM_CLIENTS)
    async with httpx.AsyncClient(base_url=server.base_url, timeout=WAIT_S, limits=limits) as client:
        whole = await asyncio.gather(*(complete(client, number) for number in range(NUM_CLIENTS)))
        streamed = await asyncio.gather(*(stream(client, number) for number in range(NUM_CLIENTS)))
    return whole, streamed


def test_sixty_four_clients_stream_what_they_are_given_whole(tmp_path: Path) -> None:
    """With one slot each text is computed by itself, so that not a single one may differ."""
    with serve(Family(tmp_path), "--model", "smollm2-135m", "--no-auth", "--slots", 1, "--ctx", 256) as server:
        whole, streamed = asyncio.run(ask_all(server))
        assert server.stop() == 0

    assert streamed == whole
    assert all(whole)
    assert len(set(whole)) > NUM_CLIENTS // 2
