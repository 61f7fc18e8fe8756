"""Reads what an engine answers."""

import queue
from collections.abc import Sequence

from batcher.errors import EngineError
from workers.engines.base import Engine, SequenceRequest, SequenceResult

WAIT_S = 60


def complete(engine: Engine, requests: Sequence[SequenceRequest]) -> list[SequenceResult]:
    """The results of `requests`, by their keys."""
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    engine.submit(requests, inbox.put)
    results = []
    for _ in requests:
        result = inbox.get(timeout=WAIT_S)
        assert isinstance(result, SequenceResult)
        results.append(result)
    return sorted(results, key=lambda result: result.key)
