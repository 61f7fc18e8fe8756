"""What it costs to classify: labels that are scored, beside the same labels written.

    .venv/bin/python -m bench.labels [--rows 96] [--slots 32] [--repeats 3]

The reviews of jobs/classification behind their template, which all have in common, each to be given one of five labels:
of one token each, and of several. And ragged prompts (10 to 300 tokens) that have nothing in common. Sides:
  scores  the probability of each label, and the likeliest
  choice  the text is one of the labels, drawn
  text    any text of as many tokens as the longest label, drawn: what is to be searched for a label
  16      any text of 16 tokens, the default of `max_tokens`

One engine, whose sides take turns, each row anew; the figures are medians. Each token of a label costs about what one
of a prompt costs, so what scoring saves depends on how long the prompts are.
"""

import argparse
import itertools
import os
import platform
import queue
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from batcher import constraints
from batcher.errors import EngineError
from batcher.types import EngineConfig, SamplingParams
from bench.models import requantize
from bench.peers import cpu_model, llama_version
from bench.workloads import read_rows, write_workload
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.loader import load_engine

WORDS = (" positive", " negative", " neutral", " mixed", " unknown")
PHRASES = (" positive", " very negative", " neutral", " mixed feelings", " not applicable")
REVIEWS = Path(__file__).parent.parent / "jobs" / "classification"


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory(prefix="batcher-bench-") as folder:
        model = args.model or requantize(Path(folder) / "smollm2-135m-q4_0.gguf")
        workloads = [
            ("reviews", WORDS, reviews(args.rows)),
            ("reviews", PHRASES, reviews(args.rows)),
            ("ragged", PHRASES, ragged(Path(folder) / "rows.jsonl", model, num_rows=args.rows)),
        ]
        config = EngineConfig(
            num_slots=args.slots, num_threads=args.threads, context_length=640, is_deduplicating=False
        )
        engine = load_engine("bench", model, config)
        engine.start()
        print(f"llama-cpp-python {llama_version()}, Python {platform.python_version()}; {cpu_model()}")
        print(f"{model.name}, {args.threads} threads, {args.slots} slots, {args.rows} rows, median of {args.repeats}")
        passes = itertools.count()
        print("\n| prompts | labels | side | rows/s | scores is x of it |\n|---|---|---|---|---|")
        for name, labels, prompts in workloads:
            seconds = measure(engine, prompts, sides(labels), passes=passes, repeats=args.repeats)
            shown = ",".join(labels).strip()
            for side, found in seconds.items():
                ratio = found / seconds["scores"]
                print(f"| {name} | {shown} | {side} | {len(prompts) / found:.2f} | {ratio:.2f} |", flush=True)
        engine.close()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help="at most 128; default: 96")
    parser.add_argument("--slots", type=int, default=32, help="default: 32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="default: SmolLM2-135M as Q4_0")
    return parser.parse_args()


def reviews(number: int) -> list[str]:
    """Prompts of the example job of this name."""
    template = (REVIEWS / "template.txt").read_text(encoding="utf-8").rstrip()
    rows = pq.read_table(REVIEWS / "reviews.parquet").to_pylist()[:number]
    return [template.format(**row) for row in rows]


def ragged(file: Path, model: Path, *, num_rows: int) -> list[str]:
    """Prompts of 10 to 300 tokens."""
    write_workload("ragged", file, model=model, num_rows=num_rows)
    return [f"{row.prompt}\nSentiment:" for row in read_rows(file)]


def sides(labels: Sequence[str]) -> dict[str, SamplingParams]:
    """What is asked for on each side."""
    return {
        "scores": SamplingParams(constraint=constraints.scored_choice(labels)),
        "choice": SamplingParams(constraint=constraints.choice(labels)),
        "text": SamplingParams(max_tokens=1 if labels == WORDS else 2, ignore_eos=True),
        "16": SamplingParams(max_tokens=16, ignore_eos=True),
    }


def measure(
    engine: LlamaEngine,
    prompts: list[str],
    sides: dict[str, SamplingParams],
    *,
    passes: "itertools.count[int]",
    repeats: int,
) -> dict[str, float]:
    """The seconds that each side takes."""
    for params in sides.values():
        complete(engine, prompts[:4], params, number=next(passes))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, params in sides.items():
            seconds[side].append(complete(engine, prompts, params, number=next(passes)))
    return {side: statistics.median(found) for side, found in seconds.items()}


def complete(engine: LlamaEngine, prompts: list[str], params: SamplingParams, *, number: int) -> float:
    """The seconds that all prompts take, submitted at once. Each pass has a `number` of its own, so that none begins
    from what another has left in the slots."""
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    begin = time.perf_counter()
    texts = [f"Pass {number}. {prompt}" for prompt in prompts]
    engine.submit([SequenceRequest((n, 0), text, params, seed=n) for n, text in enumerate(texts)], inbox.put)
    results = [inbox.get() for _ in texts]
    seconds = time.perf_counter() - begin
    if not all(isinstance(result, SequenceResult) and result.choice for result in results):
        sys.exit(f"a row has no completion: {results[0]}")
    return seconds


if __name__ == "__main__":
    main()
