"""A small server of the OpenAI API over real sockets that answers what a test says: well, badly, or not at all."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: The list of models of a server that nothing is known of.
MODELS: Mapping[str, Any] = {"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": "somebody"}]}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it came. `number` counts those of its route from 0."""

    route: str
    headers: Mapping[str, str]
    body: Any
    number: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: `body` as JSON unless it is bytes. Of one that is `cut` half comes, and then the end."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    is_cut: bool = False


class Cut:
    """The connection ends without an answer."""


class Hold:
    """No answer comes, until the server is closed."""


Answer = Callable[[Asked], "Reply | Cut | Hold"]


def completion(asked: Asked, *, text: str | None = None, **more: Any) -> Reply:
    """As OpenAI answers; each prompt comes back in brackets, unless `text` says what."""
    prompts = asked.body["prompt"] if "prompt" in asked.body else asked.body["messages"][-1]["content"]
    prompts = [prompts] if isinstance(prompts, str) else prompts
    texts = [f"<{prompt}>" if text is None else text for prompt in prompts]
    is_chat = "messages" in asked.body
    choices = [
        {
            "index": index,
            "finish_reason": "stop",
            **({"message": {"role": "assistant", "content": each}} if is_chat else {"text": each, "logprobs": None}),
        }
        for index, each in enumerate(texts)
    ]
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    kind = "chat.completion" if is_chat else "text_completion"
    if asked.body.get("stream"):
        return events(*_pieces(choices, is_chat=is_chat), {"choices": [], "usage": usage, **more}, b"[DONE]")
    return Reply({"id": "x", "object": kind, "created": 1, "choices": choices, "usage": usage, **more})


def _pieces(choices: Sequence[Mapping[str, Any]], *, is_chat: bool) -> Iterator[dict[str, Any]]:
    """Each choice letter by letter, and its end."""
    for choice in choices:
        for letter in [*(choice["message"]["content"] if is_chat else choice["text"]), ""]:
            gained: dict[str, Any] = {"delta": {"content": letter}} if is_chat else {"text": letter}
            reason = None if letter else choice["finish_reason"]
            yield {"choices": [{"index": choice["index"], "finish_reason": reason, **gained}]}


def refusal(message: str, *, status: int = 400, param: str | None = None, **more: Any) -> Reply:
    """An error as OpenAI words it."""
    return Reply({"error": {"message": message, "type": "invalid_request_error", "param": param, **more}}, status)


class OpenAIServer:
    """`answer` says what becomes of a completion; `seen` has those that came, by route and order.

    `listed` is the answer to GET /v1/models, None for none at all (404); `version` that to GET /api/version.
    """

    def __init__(
        self, answer: Answer = completion, *, listed: Any = MODELS, version: Any = None, port: int = 0
    ) -> None:
        self.answer = answer
        self.listed = listed
        self.version = version
        self.seen: list[Asked] = []
        self.num_in_flight = self.most_in_flight = 0
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @contextlib.contextmanager
    def running(self) -> Iterator["OpenAIServer"]:
        """Listen, in a thread; afterwards all connections are gone."""
        loop, is_ready = asyncio.new_event_loop(), threading.Event()
        ending: list[asyncio.Event] = []

        async def serve() -> None:
            end = asyncio.Event()
            ending.append(end)
            server = await asyncio.start_server(self._talk, "127.0.0.1", self._port)
            self._port = server.sockets[0].getsockname()[1]
            is_ready.set()
            await end.wait()
            server.close()
            for writer in list(self._writers):
                writer.transport.abort()

        def run() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(serve())

        thread = threading.Thread(target=run, name="openai-server")
        thread.start()
        is_ready.wait()
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(ending[0].set)
            thread.join()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            async for request in read_requests(reader):
                reply = await self._reply(request)
                if isinstance(reply, Hold):
                    await asyncio.Event().wait()
                if not isinstance(reply, Reply) or not await _write(writer, reply):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _reply(self, request: "RawRequest") -> Reply | Cut | Hold:
        path = request.path
        if request.method == "GET":
            found = {"/v1/models": self.listed, "/api/version": self.version}.get(path)
            if isinstance(found, Reply | Cut | Hold):
                return found
            return Reply({"error": "no such route"}, 404) if found is None else Reply(found)
        route = path.removeprefix("/v1")
        asked = Asked(route, request.headers, json.loads(request.body), sum(each.route == route for each in self.seen))
        self.seen.append(asked)
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        try:
            # So that others that have come are in flight, too.
            await asyncio.sleep(0)
            return self.answer(asked)
        finally:
            self.num_in_flight -= 1


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A request as it came over the wire, and what it says."""

    raw: bytes
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


async def read_requests(reader: asyncio.StreamReader) -> AsyncIterator[RawRequest]:
    """Those of a connection, until it ends. Raises IncompleteReadError at its end."""
    while head := await reader.readuntil(b"\r\n\r\n"):
        first, *lines = head.decode().splitlines()
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        yield RawRequest(head + body, method, path, headers, body)


async def _write(writer: asyncio.StreamWriter, reply: Reply) -> bool:
    """Returns whether the connection goes on."""
    body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **reply.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    data = f"HTTP/1.1 {reply.status} X\r\n{lines}\r\n".encode() + body
    writer.write(data[: len(data) - len(body) // 2] if reply.is_cut else data)
    await writer.drain()
    return not reply.is_cut


def events(*pieces: Any) -> Reply:
    """An answer as server-sent events, the end among them."""
    data = b"".join(
        b"data: " + (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n\n" for each in pieces
    )
    return Reply(data, headers={"content-type": "text/event-stream"})


def in_turn(*answers: "Reply | Cut | Hold | Answer") -> Answer:
    """Gives these answers, and from then on the last."""

    def answer(asked: Asked) -> "Reply | Cut | Hold":
        found = answers[min(asked.number, len(answers) - 1)]
        return found if isinstance(found, Reply | Cut | Hold) else found(asked)

    return answer


def prompts_of(seen: Sequence[Asked]) -> list[Any]:
    return [asked.body.get("prompt", asked.body.get("messages")) for asked in seen]
