"""What a step costs beside llama_decode: the whole engine on a model that computes nothing and answers at once.

    .venv/bin/python -m bench.overhead [--steps 300] [--threads N] [--shape N ...]

Everything else is real: scheduling, laying out the batch, sampling from logits like a model's, log-probabilities, stop
strings, finishing sequences and taking in others. Two kinds of shapes: those of CPUs, beside the decode that
SmolLM2-135M (49k words) and Gemma 3 270M (262k) take on two cores, and 256 slots, beside the 10 ms that a GPU may take.
Sequences are of 64 tokens, so that in each step some end and others begin.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batcher.types import SamplingParams
from tests.support.fake_model import FakeVocabulary
from workers.engines.base import SequenceRequest
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.kv_cache import KvCache, Placement
from workers.engines.llama.model import BatchArrays
from workers.engines.llama.step import StepBatch

MAX_BATCH_TOKENS = 2048
MAX_TOKENS = 64
PROMPT_TOKENS = 40


@dataclass(frozen=True, slots=True)
class Shape:
    """An engine's size, and the milliseconds of a decode that its own time is set beside."""

    num_slots: int
    vocab_size: int
    decode_ms: float


SHAPES = (
    Shape(32, 49_152, 55.0),
    Shape(32, 262_144, 120.0),
    Shape(256, 262_144, 840.0),
    Shape(256, 49_152, 10.0),
    Shape(256, 151_936, 10.0),
    Shape(256, 262_144, 10.0),
)

PARAMS = {
    "greedy": SamplingParams(max_tokens=MAX_TOKENS, temperature=0),
    "temperature 1": SamplingParams(max_tokens=MAX_TOKENS),
    "top_p 0.95": SamplingParams(max_tokens=MAX_TOKENS, top_p=0.95),
    "top_k 50": SamplingParams(max_tokens=MAX_TOKENS, top_k=50),
    "greedy, 5 logprobs": SamplingParams(max_tokens=MAX_TOKENS, temperature=0, logprobs=5),
    "greedy, stop strings": SamplingParams(max_tokens=MAX_TOKENS, temperature=0, stop=("never", "nor")),
}


class InstantModel:
    """Gives the same logits at once. Lays out the batch as the real one does."""

    path = Path("instant.gguf")
    chat_template: str | None = None
    max_scored_tokens = 0

    def __init__(self, shape: Shape) -> None:
        self.vocabulary = FakeVocabulary(shape.vocab_size)
        self._batch = BatchArrays(MAX_BATCH_TOKENS, shape.num_slots)
        rng = np.random.default_rng(0)
        self._logits = rng.normal(0, 3, (shape.num_slots, shape.vocab_size)).astype(np.float32)
        # A few likely tokens, none of them the end of the text, which is token 0.
        self._logits[:, 1:8] += 12
        self._logits[:, 0] = -50

    def place(self, placement: Placement) -> bool:
        return True

    def close(self) -> None:
        """Nothing to free."""

    def decode(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        self._batch.fill(batch)
        return self._logits[: len(batch.ready)]


class Stopwatch:
    """Adds up the seconds spent in some calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, owner: Any, name: str) -> None:
        """Have the method `name` of `owner` timed from now on."""
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begin

        setattr(owner, name, timed)


@dataclass(frozen=True, slots=True)
class Measured:
    """Milliseconds a step: in all, those of them in sampling, and of all processors."""

    own: float
    sampling: float
    processors: float


def measure(shape: Shape, params: SamplingParams, *, num_threads: int, num_steps: int) -> Measured:
    """Runs `num_steps` after some to begin with."""
    cache = KvCache(num_slots=shape.num_slots, cells_per_sequence=512)
    model: Any = InstantModel(shape)
    engine = LlamaEngine(
        "instant", model, cache=cache, max_batch_tokens=MAX_BATCH_TOKENS, num_sampling_threads=num_threads
    )
    num_requests = shape.num_slots * (2 + num_steps // MAX_TOKENS)
    requests = [SequenceRequest((n, 0), f"{n:<{PROMPT_TOKENS}}", params) for n in range(num_requests)]
    engine.submit(requests, lambda result: None)
    engine._wait_for_work()
    for _ in range(5):
        engine.step()
    sampling = Stopwatch()
    sampling.watch(engine._sampler, "sample")
    begin, begin_processors = time.perf_counter(), time.process_time()
    for _ in range(num_steps):
        engine.step()
    seconds, processors = time.perf_counter() - begin, time.process_time() - begin_processors
    assert engine.is_busy, "there were too few requests for so many steps"
    engine.close()
    return Measured(*(each / num_steps * 1000 for each in (seconds, sampling.seconds, processors)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--shape", type=int, nargs="+", default=range(len(SHAPES)), metavar="N", help="numbers from 0")
    args = parser.parse_args()
    print(
        f"{args.steps} steps each, {args.threads} threads for sampling; Python {platform.python_version()}, "
        f"numpy {np.__version__}\n"
    )
    print(
        "| slots | vocabulary | sampling | own ms a step | sampling | the rest | of all cores | decode ms "
        "| own share of a step |"
    )
    print("|---:|---:|---|---:|---:|---:|---:|---:|---:|")
    for shape in (SHAPES[number] for number in args.shape):
        for name, params in PARAMS.items():
            found = measure(shape, params, num_threads=args.threads, num_steps=args.steps)
            print(
                f"| {shape.num_slots} | {shape.vocab_size:,} | {name} | {found.own:.2f} | {found.sampling:.2f} "
                f"| {found.own - found.sampling:.2f} | {found.processors:.2f} | {shape.decode_ms:.0f} "
                f"| {found.own / (found.own + shape.decode_ms):.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
