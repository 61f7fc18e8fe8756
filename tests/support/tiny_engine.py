"""An engine on a real llama.cpp context of a tiny model, and what it answers."""

import contextlib
import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from batcher.errors import EngineError
from batcher.types import Choice, EngineConfig, SamplingParams
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.loader import load_engine

WAIT_S = 60


@contextlib.contextmanager
def running(
    path: Path, *, num_slots: int | None = 8, context_length: int = 512, **options: Any
) -> Iterator[LlamaEngine]:
    """An engine of one thread that works, closed in the end."""
    config = EngineConfig(num_slots=num_slots, num_threads=1, context_length=context_length, **options)
    engine = load_engine("tiny", path, config)
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


def complete(
    engine: LlamaEngine, requests: Sequence[SequenceRequest], *, patience_s: float = WAIT_S
) -> list[SequenceResult]:
    """The results of `requests`, by their keys."""
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    engine.submit(requests, inbox.put)
    results = []
    for _ in requests:
        result = inbox.get(timeout=patience_s)
        assert isinstance(result, SequenceResult)
        results.append(result)
    return sorted(results, key=lambda result: result.key)


def results_of(engine: LlamaEngine, prompts: Sequence[tuple[str, SamplingParams]]) -> list[SequenceResult]:
    """The results of prompts, each with its parameters and their seed, in their order."""
    requests = [SequenceRequest((i, 0), p, params, seed=params.seed or 0) for i, (p, params) in enumerate(prompts)]
    return complete(engine, requests)


def choices_of(engine: LlamaEngine, prompts: Sequence[tuple[str, SamplingParams]]) -> list[Choice]:
    """The choices of those prompts that have one."""
    return [result.choice for result in results_of(engine, prompts) if result.choice is not None]
