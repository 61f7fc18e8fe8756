"""Live requests to engines in a real process of their own, over the channel that the server uses."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from batcher.errors import BatcherError
from batcher.live import EngineAwayError, LiveRequestError
from batcher.openai.fields import MAX_CHOICES
from batcher.types import Choice, Delta, EngineConfig, EngineStats, ErrorCode, Request, SamplingParams
from tests.support.family import children_of
from workers.live.server_end import ProcessEngines, open_engines
from workers.process.events import WorkerConfig

WAIT_S = 60


def run(model: Path, home: Path, test: Callable[[ProcessEngines], Awaitable[None]], *, slots: int = 4) -> None:
    """Run a coroutine beside engines that are ready."""

    async def main() -> None:
        async with ready_engines(model, home, slots=slots) as engines:
            await asyncio.wait_for(test(engines), WAIT_S)

    asyncio.run(main())


@contextlib.asynccontextmanager
async def ready_engines(model: Path, home: Path, *, slots: int) -> AsyncIterator[ProcessEngines]:
    config = WorkerConfig(
        name="live",
        models=(("tiny", str(model)),),
        broker_url="",
        jobs_root=str(home),
        home=str(home),
        grace_s=5.0,
        engine=EngineConfig(num_slots=slots, num_threads=1, context_length=512),
    )
    failures: list[BatcherError] = []
    loaded: list[str] = []
    async with open_engines(config, is_working=False, on_loaded=loaded.append, on_failure=failures.append) as engines:
        await until(lambda: engines.is_ready or bool(failures))
        assert not failures
        assert loaded[0].startswith("tiny: ")
        yield engines
    assert not failures


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def ask(*prompts: str, is_chat: bool = False, **params: object) -> Request:
    values = {"max_tokens": 20, "temperature": 0.0, **params}
    return Request(0, "", "tiny", prompts, len(prompts) > 1, SamplingParams(**values), is_chat)  # type: ignore[arg-type]


async def gather(engines: ProcessEngines, request: Request, *, is_streaming: bool) -> tuple[list[Delta], list[Choice]]:
    events = [event async for event in engines.complete(request, is_streaming=is_streaming)]
    return [e for e in events if isinstance(e, Delta)], [e for e in events if isinstance(e, Choice)]


def test_stream_adds_up_to_what_is_given_whole(model: Path, tmp_path: Path) -> None:
    async def test(engines: ProcessEngines) -> None:
        request = ask("hello", "€ and 日本", stop=("zz",))
        _, whole = await gather(engines, request, is_streaming=False)
        deltas, ended = await gather(engines, request, is_streaming=True)

        for choices in (whole, ended):
            choices.sort(key=lambda choice: choice.index)
        assert [choice.text for choice in whole] == [choice.text for choice in ended]
        for choice in ended:
            assert "".join(d.text for d in deltas if d.index == choice.index) == choice.text
        assert len(deltas) > 10

    run(model, tmp_path, test, slots=1)


def test_bad_request_fails_alone(model: Path, tmp_path: Path) -> None:
    async def test(engines: ProcessEngines) -> None:
        good = asyncio.create_task(gather(engines, ask("hello"), is_streaming=True))
        with pytest.raises(LiveRequestError) as caught:
            await gather(engines, ask("fits", "x" * 5000), is_streaming=False)
        assert caught.value.error.code is ErrorCode.CONTEXT_LENGTH_EXCEEDED
        assert len((await good)[1]) == 1

    run(model, tmp_path, test)


def test_caller_who_leaves_frees_the_slots(model: Path, tmp_path: Path) -> None:
    async def test(engines: ProcessEngines) -> None:
        running, waiting = (engines.complete(work_of_seconds(prompt), is_streaming=True) for prompt in ("p0", "p1"))
        await anext(running)
        await until_stats(engines, lambda stats: stats.num_live_running == 4)

        # The choices of the second wait behind those of the first.
        task = asyncio.ensure_future(anext(waiting))
        await until_stats(engines, lambda stats: stats.num_live_waiting >= MAX_CHOICES)
        task.cancel()
        await running.aclose()  # type: ignore[attr-defined]

        await until_stats(engines, lambda stats: stats.num_live_waiting == stats.num_live_running == 0)

    run(model, tmp_path, test)


def work_of_seconds(prompt: str) -> Request:
    """What takes far longer than a test needs to step in. Drawn texts, so that no early end is common to all."""
    return ask(prompt, max_tokens=400, n=MAX_CHOICES, temperature=1.0)


async def until_stats(engines: ProcessEngines, condition: Callable[[EngineStats], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition((await engines.stats())["tiny"]):
            await asyncio.sleep(0.01)


def test_killed_process_fails_its_requests_and_is_replaced(model: Path, tmp_path: Path) -> None:
    async def test(engines: ProcessEngines) -> None:
        (child,) = children_of(os.getpid(), "workers.child")
        stream = engines.complete(work_of_seconds("hello"), is_streaming=True)
        await anext(stream)

        os.kill(child, signal.SIGKILL)

        with pytest.raises(EngineAwayError):
            async for _ in stream:
                pass
        await until(lambda: not engines.is_ready)
        with pytest.raises(EngineAwayError):
            await anext(engines.complete(ask("hello"), is_streaming=False))
        await until(lambda: engines.is_ready)
        assert len((await gather(engines, ask("hello"), is_streaming=False))[1]) == 1

    run(model, tmp_path, test)


def test_model_that_cannot_be_loaded_is_a_failure_and_not_a_hang(tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\0" * 100)
    failures: list[BatcherError] = []

    async def main() -> None:
        config = WorkerConfig("live", (("bad", str(bad)),), "", str(tmp_path), str(tmp_path), 5.0)
        async with open_engines(
            config, is_working=False, on_loaded=lambda text: None, on_failure=failures.append
        ) as engines:
            await until(lambda: bool(failures))
            assert not engines.is_ready

    asyncio.run(main())
    assert "bad.gguf" in str(failures[0])
    assert children_of(os.getpid(), "workers.child") == []


def test_chat_and_its_choices_come_back(model: Path, tmp_path: Path) -> None:
    async def test(engines: ProcessEngines) -> None:
        messages = '[{"role": "user", "content": "hi"}]'
        request = ask(messages, is_chat=True, n=2, best_of=3, logprobs=1, temperature=1.0)
        _, choices = await gather(engines, request, is_streaming=False)

        assert [choice.index for choice in choices] == [0, 1]
        assert all(choice.logprobs and len(choice.logprobs[0].top) == 1 for choice in choices)

    run(model, tmp_path, test)
