"""`POST /v1/completions` and `POST /v1/chat/completions`, streamed or not."""

import secrets
import time
from collections.abc import Collection, Mapping
from functools import partial
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from batcher.ids import completion_id
from batcher.openai.answers import ChunkStream, completion_object
from batcher.openai.bodies import ParsedBody, parse_body
from batcher.openai.parameters import CHAT_URL, COMPLETIONS_URL
from batcher.openai.schema import body_schema
from batcher.server.guard.answers import JSONAnswer
from batcher.server.guard.clients import client_of
from batcher.server.guard.limits import Limits
from batcher.server.guard.parsing import parse_apart
from batcher.server.live.exchange import Exchanges
from batcher.server.live.streaming import EventStream
from batcher.server.metrics import Metrics
from batcher.types import Choice, Completion

#: Names the fields of a body that were ignored.
IGNORED_HEADER = "x-batcher-ignored"

_ANSWERS: dict[int | str, dict[str, object]] = {
    200: {
        "description": "The completion; with `stream` true as server-sent events that end in `data: [DONE]`",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {},
        },
    }
}


class Completions:
    """Answers requests for completions."""

    def __init__(self, exchanges: Exchanges, *, limits: Limits, metrics: Metrics, ignores_unknown: bool) -> None:
        self._exchanges = exchanges
        self._limits = limits
        self._metrics = metrics
        self._ignores_unknown = ignores_unknown

    async def answer(self, request: Request, *, is_chat: bool) -> Response:
        """The completion of a request, or the beginning of its stream. Raises ApiError and ClientGoneError."""
        body = await request.body()
        parse = partial(
            parse_body,
            is_chat=is_chat,
            ignores_unknown=self._ignores_unknown,
            models=self._exchanges.models,
            # A request without a seed of its own derives it from its row: each draws anew.
            row=secrets.randbits(63),
            max_prompts=self._limits.max_sequences,
        )
        client = client_of(request.scope)
        parsed = await parse_apart(parse, body, client=client)
        headers = _ignored(parsed)
        response_id = completion_id(secrets.token_hex(12), is_chat=is_chat)
        created = int(time.time())
        fingerprint = self._exchanges.system_fingerprint(parsed.request.model)
        if parsed.is_streaming:
            chunks = ChunkStream(
                parsed.request,
                completion_id=response_id,
                created=created,
                includes_usage=parsed.includes_usage,
                system_fingerprint=fingerprint,
            )
            return EventStream(
                self._exchanges,
                parsed.request,
                chunks,
                includes_usage=parsed.includes_usage,
                metrics=self._metrics,
                headers=headers,
            )
        choices = await self._collect(parsed, request)
        # Of a model that was loaded for this very request, known only now.
        fingerprint = fingerprint or self._exchanges.system_fingerprint(parsed.request.model)
        completion = Completion(parsed.request, response_id, created, choices, system_fingerprint=fingerprint)
        return JSONAnswer(completion_object(completion), headers=headers)

    async def _collect(self, parsed: ParsedBody, request: Request) -> tuple[Choice, ...]:
        choices: list[Choice] = []
        client = client_of(request.scope)
        async with self._exchanges.begin(
            parsed.request, request.receive, client=client, is_streaming=False
        ) as exchange:
            while not exchange.is_done:
                choices += [item for item in await exchange.take() if isinstance(item, Choice)]
        return tuple(sorted(choices, key=lambda choice: choice.index))


def _ignored(parsed: ParsedBody) -> Mapping[str, str]:
    # Names are whatever the client wrote: a header must not be made of them as they are.
    return {IGNORED_HEADER: ", ".join(quote(name, safe=".[]$ ") for name in parsed.ignored)} if parsed.ignored else {}


def completions_router(completions: Completions, *, ignores_unknown: bool, models: Collection[str]) -> APIRouter:
    """The routes. `models` are those that the document names."""
    router = APIRouter(tags=["completions"])

    def body(*, is_chat: bool) -> dict[str, object]:
        schema = body_schema(is_chat, ignores_unknown=ignores_unknown, models=models)
        return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}

    @router.post(COMPLETIONS_URL, responses=_ANSWERS, openapi_extra=body(is_chat=False), response_class=Response)
    async def create_completion(request: Request) -> Response:
        """Complete a prompt, or each of an array of prompts."""
        return await completions.answer(request, is_chat=False)

    @router.post(CHAT_URL, responses=_ANSWERS, openapi_extra=body(is_chat=True), response_class=Response)
    async def create_chat_completion(request: Request) -> Response:
        """Complete a conversation, by the model's own chat template."""
        return await completions.answer(request, is_chat=True)

    return router
