"""`batcher serve` with a scripted engine in the place of a real one; run as a program, with the command's arguments.

Prompts say what is to happen: `hold` begins and never ends, `slow` ends once the file that SCRIPTED_GATE names exists,
others come back at once. With SCRIPTED_FAILURE set, the engine fails for good at the first prompt `fail`.
"""

import asyncio
import contextlib
import os
import sys
import types
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from batcher.errors import BatcherError, ModelError
from batcher.types import Choice, Delta, EngineStats, Request
from tests.support.scripted_engine import ScriptedEngine, choice, echo


class PromptedEngine(ScriptedEngine):
    """A `LiveEngine` that does what the prompt says."""

    def __init__(self, models: tuple[str, ...], on_failure: Callable[[BatcherError], None]) -> None:
        super().__init__(*models, script=echo)
        self._on_failure = on_failure

    async def complete(
        self, request: Request, *, is_streaming: bool, timeout_s: float | None = None, client: str = ""
    ) -> AsyncIterator[Delta | Choice]:
        prompt = request.prompts[0]
        if prompt == "fail":
            self._on_failure(ModelError("the model is broken"))
        if prompt in ("hold", "slow", "fail"):
            yield Delta(0, "begun")
            while prompt != "slow" or not Path(os.environ["SCRIPTED_GATE"]).exists():
                await asyncio.sleep(0.02)
            yield choice(0, "begun")
            return
        async for item in super().complete(request, is_streaming=is_streaming):
            yield item

    async def stats(self) -> Mapping[str, EngineStats]:
        return {}


@contextlib.asynccontextmanager
async def open_engines(
    config: "types.SimpleNamespace",
    *,
    is_working: bool,
    on_loaded: Callable[[str], None],
    on_failure: Callable[[BatcherError], None],
    on_drained: Callable[[], None],
    is_urgent: Callable[[], bool],
) -> AsyncIterator[PromptedEngine]:
    """As `workers.live.server_end.open_engines`."""
    yield PromptedEngine(tuple(name for name, _ in config.models), on_failure)
    print("engines closed", "urgently" if is_urgent() else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    double = types.ModuleType("workers.live.server_end")
    double.open_engines = open_engines  # type: ignore[attr-defined]
    sys.modules["workers.live.server_end"] = double
    from batcher.cli import main

    main()
