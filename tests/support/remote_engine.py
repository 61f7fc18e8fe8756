"""An engine behind the URL of a server of the tests, and what it answers."""

import contextlib
import queue
from collections.abc import Iterator, Sequence
from typing import Any

from batcher.errors import EngineError
from batcher.types import Choice, RemoteServers, RowError, SamplingParams
from tests.support.openai_server import OpenAIServer
from tests.support.waiting import PATIENCE_S
from workers.engines.base import OnDelta, SequenceRequest, SequenceResult
from workers.engines.remote.engine import RemoteEngine

GREEDY = SamplingParams(max_tokens=5, temperature=0)


@contextlib.contextmanager
def engine_at(*servers: OpenAIServer, model: str = "tiny", key: str = "", **options: Any) -> Iterator[RemoteEngine]:
    """A started engine, closed in the end."""
    engine = RemoteEngine("mine", model, RemoteServers(tuple(server.url for server in servers), key), **options)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def ask(engine: RemoteEngine, *requests: SequenceRequest, on_delta: OnDelta | None = None) -> list[SequenceResult]:
    """Their results, by their keys."""
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    engine.submit(requests, inbox.put, on_delta=on_delta)
    found = [inbox.get(timeout=PATIENCE_S) for _ in requests]
    assert all(isinstance(each, SequenceResult) for each in found), found
    results = [each for each in found if isinstance(each, SequenceResult)]
    assert len({result.key for result in results}) == len(requests)
    return sorted(results, key=lambda result: result.key)


def prompts(texts: Sequence[str], params: SamplingParams = GREEDY, **more: Any) -> list[SequenceRequest]:
    return [SequenceRequest((number, 0), text, params, seed=number, **more) for number, text in enumerate(texts)]


def choice_of(result: SequenceResult) -> Choice:
    assert result.choice is not None, result.error
    return result.choice


def error_of(result: SequenceResult) -> RowError:
    assert result.error is not None, result.choice
    return result.error
