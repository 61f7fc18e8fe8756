"""A `batcher.live.LiveEngine` without a model: what it answers, and when, is written in a script."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from batcher.live import EngineAwayError
from batcher.types import Choice, Delta, EngineStats, FinishReason, Request, Usage


class Latch:
    """Closed until a thread opens it; then open for good. Coroutines of any loop can wait for it."""

    def __init__(self) -> None:
        self._is_open = False
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def open(self) -> None:
        self._is_open = True
        for loop, event in self._waiting:
            loop.call_soon_threadsafe(event.set)

    async def wait(self) -> None:
        event = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), event))
        if not self._is_open:
            await event.wait()


#: What comes next: a piece, the end of a choice, a failure, or a wait.
Step = Delta | Choice | Exception | Latch
Script = Callable[[Request], Iterable[Step]]


def choice(index: int, text: str, *, num_tokens: int = 1) -> Choice:
    return Choice(index, text, FinishReason.STOP, Usage(prompt_tokens=3, completion_tokens=num_tokens), 1.0)


def echo(request: Request) -> Iterable[Step]:
    """Each prompt comes back in brackets, word by word."""
    for index in range(request.num_choices):
        words = f"<{request.prompts[index // request.params.n]}>".split(" ")
        pieces = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
        yield from (Delta(index, piece) for piece in pieces)
        yield choice(index, "".join(pieces), num_tokens=len(pieces))


class ScriptedEngine:
    """Plays `script` for each request. `seen` are the requests so far, `num_open` those that it still works on."""

    def __init__(self, *models: str, script: Script = echo) -> None:
        self.models = models or ("tiny",)
        self.is_ready = True
        self.script = script
        self.seen: list[Request] = []
        self.timeouts: list[float | None] = []
        self.clients: list[str] = []
        self.num_open = 0
        self.num_pieces = 0

    async def complete(
        self, request: Request, *, is_streaming: bool, timeout_s: float | None = None, client: str = ""
    ) -> AsyncIterator[Delta | Choice]:
        if not self.is_ready:
            raise EngineAwayError("the model is being loaded; send the request again in a while")
        self.seen.append(request)
        self.timeouts.append(timeout_s)
        self.clients.append(client)
        self.num_open += 1
        try:
            for step in self.script(request):
                if isinstance(step, Latch):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                elif is_streaming or isinstance(step, Choice):
                    self.num_pieces += 1
                    yield step
                    # As an engine in a process: each piece is a turn of the loop.
                    await asyncio.sleep(0)
        finally:
            self.num_open -= 1

    def system_fingerprint(self, model: str) -> str | None:
        return f"fp_{model}"

    async def stats(self) -> Mapping[str, EngineStats]:
        stats = EngineStats(
            num_slots=4,
            num_running=self.num_open,
            num_waiting=0,
            num_live_running=self.num_open,
            num_live_waiting=0,
            num_cells=1024,
            num_cells_used=17,
            num_steps=5,
            num_prompt_tokens=30,
            num_cached_tokens=7,
            num_completion_tokens=11,
            num_preempted=2,
            longest_step_s=0.25,
        )
        return dict.fromkeys(self.models, stats)
