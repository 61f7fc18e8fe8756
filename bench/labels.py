"""What it costs to classify: labels that are scored, beside the same labels written.

    .venv/bin/python -m bench.labels [--rows 96] [--slots 32] [--repeats 3]

Ragged prompts (10 to 300 tokens), each to be given one of five labels of one or two tokens. Sides:
  scores  the probability of each label, and the likeliest
  choice  the text is one of the labels, drawn
  text    any text of as many tokens as the longest label, drawn: what is to be searched for a label
  16      any text of 16 tokens, the default of `max_tokens`

One engine, whose sides take turns, each row anew; the figures are medians.
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
from pathlib import Path

from batcher import constraints
from batcher.errors import EngineError
from batcher.types import EngineConfig, SamplingParams
from bench.models import requantize
from bench.peers import cpu_model, llama_version
from bench.workloads import Row, read_rows, write_workload
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.loader import load_engine

LABELS = (" positive", " very negative", " neutral", " mixed feelings", " not applicable")
SIDES = {
    "scores": SamplingParams(constraint=constraints.scored_choice(LABELS)),
    "choice": SamplingParams(constraint=constraints.choice(LABELS)),
    "text": SamplingParams(max_tokens=2, ignore_eos=True),
    "16": SamplingParams(max_tokens=16, ignore_eos=True),
}


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory(prefix="batcher-bench-") as folder:
        model = args.model or requantize(Path(folder) / "smollm2-135m-q4_0.gguf")
        file = Path(folder) / "rows.jsonl"
        write_workload("ragged", file, model=model, num_rows=args.rows)
        rows = read_rows(file)
        config = EngineConfig(
            num_slots=args.slots, num_threads=args.threads, context_length=640, is_deduplicating=False
        )
        engine = load_engine("bench", model, config)
        engine.start()
        print(f"llama-cpp-python {llama_version()}, Python {platform.python_version()}; {cpu_model()}")
        print(f"{model.name}, {args.threads} threads, {args.slots} slots, {args.rows} rows, median of {args.repeats}")
        passes = itertools.count()
        for params in SIDES.values():
            complete(engine, rows[:4], params, number=next(passes))
        seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(args.repeats):
            for side, params in SIDES.items():
                seconds[side].append(complete(engine, rows, params, number=next(passes)))
        engine.close()
    print("\n| side | rows/s | of scores |\n|---|---|---|")
    base = statistics.median(seconds["scores"])
    for side, found in seconds.items():
        print(f"| {side} | {args.rows / statistics.median(found):.2f} | {base / statistics.median(found):.2f} |")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96, help="default: 96")
    parser.add_argument("--slots", type=int, default=32, help="default: 32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="default: SmolLM2-135M as Q4_0")
    return parser.parse_args()


def complete(engine: LlamaEngine, rows: list[Row], params: SamplingParams, *, number: int) -> float:
    """The seconds that all rows take, submitted at once. Each pass has a `number` of its own, so that none begins from
    what another has left in the slots."""
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    begin = time.perf_counter()
    prompts = [f"Pass {number}. {row.prompt}\nSentiment:" for row in rows]
    engine.submit([SequenceRequest((n, 0), text, params, seed=n) for n, text in enumerate(prompts)], inbox.put)
    results = [inbox.get() for _ in rows]
    seconds = time.perf_counter() - begin
    if not all(isinstance(result, SequenceResult) and result.choice for result in results):
        sys.exit(f"a row has no completion: {results[0]}")
    return seconds


if __name__ == "__main__":
    main()
