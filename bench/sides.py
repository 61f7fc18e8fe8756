"""What is measured in a process of its own: one timed pass over the rows of a file by the loop or by our engine.

    .venv/bin/python -m bench.sides SIDE ROWS --model GGUF --slots 32 --threads 2 --ctx 512

prints the pass as JSON. The model is loaded and has computed a few tokens before the clock starts.
"""

import argparse
import dataclasses
import json
import os
import queue
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from bench.workloads import Row, read_rows
from workers.process.launch import engine_environment

#: Tokens the loop computes at once when it reads a prompt; its default.
LOOP_BATCH = 512
#: Computed before the clock starts. None of the rows: a side may keep what it has computed.
WARM_UP = Row("Once upon a time", 4)
#: Ends a process whose side the engine of this version does not have.
UNAVAILABLE = 3


class Side(StrEnum):
    """Who computes the rows."""

    LOOP = "loop"
    SERVER = "server"
    SERVER_OUR_BUILD = "server-our-build"
    OURS = "ours"
    OURS_NO_DEDUP = "ours-no-dedup"
    OURS_NO_COPIES = "ours-no-copies"
    OURS_SAMPLED = "ours-sampled"
    CEILING = "ceiling"


@dataclass(frozen=True, slots=True)
class Setup:
    """What all sides have in common. `ctx` is in tokens per sequence."""

    model: Path
    slots: int
    threads: int
    ctx: int


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over all rows; the tokens are what the rows' usage says."""

    prompt_tokens: int
    completion_tokens: int
    seconds: float

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


class UnavailableError(Exception):
    """This side can't be measured here; the message says why."""


def measure_in_child(side: Side, rows: Path, setup: Setup, *, stock_libraries: Path | None = None) -> Pass:
    """One pass of `loop` or ours in a fresh process. Raises UnavailableError.

    The loop runs on the llama.cpp of the folder `stock_libraries`, where there is one, and else on our build of it.
    """
    command = [sys.executable, "-m", "bench.sides", side, str(rows), "--model", str(setup.model)]
    for name in ("slots", "threads", "ctx"):
        command += [f"--{name}", str(getattr(setup, name))]
    # Spinning threads are best for the loop where nothing else runs; the engine has its own setting.
    environment = engine_environment()
    if side is Side.LOOP:
        environment = {**os.environ, "OMP_WAIT_POLICY": "active"}
        if stock_libraries is not None:
            # Read by llama_cpp in place of the libraries of its own wheel.
            environment["LLAMA_CPP_LIB_PATH"] = str(stock_libraries)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == UNAVAILABLE:
        raise UnavailableError(done.stderr.strip())
    if done.returncode != 0:
        sys.exit(f"{side} ended with {done.returncode}: {done.stderr}")
    return Pass(**json.loads(done.stdout.splitlines()[-1]))


def run_loop(rows: list[Row], setup: Setup) -> Pass:
    """`create_completion`, one prompt after the other."""
    import llama_cpp

    llama = llama_cpp.Llama(
        str(setup.model),
        n_ctx=setup.ctx,
        n_batch=LOOP_BATCH,
        n_threads=setup.threads,
        n_threads_batch=setup.threads,
        flash_attn=True,
        verbose=False,
    )
    llama.create_completion(WARM_UP.prompt, max_tokens=WARM_UP.max_tokens, temperature=0)
    begin, prompt_tokens, completion_tokens = time.perf_counter(), 0, 0
    for row in rows:
        answer = llama.create_completion(row.prompt, max_tokens=row.max_tokens, temperature=0)
        assert isinstance(answer, dict)
        prompt_tokens += answer["usage"]["prompt_tokens"]
        completion_tokens += answer["usage"]["completion_tokens"]
    return Pass(prompt_tokens, completion_tokens, time.perf_counter() - begin)


def run_ours(rows: list[Row], setup: Setup, side: Side) -> Pass:
    """All prompts submitted to one engine at once. Raises UnavailableError."""
    from batcher.errors import EngineError
    from batcher.types import EngineConfig, SamplingParams, Usage
    from workers.engines.base import SequenceRequest, SequenceResult
    from workers.engines.llama.loader import load_engine

    config = EngineConfig(num_slots=setup.slots, num_threads=setup.threads, context_length=setup.ctx)
    if side is Side.OURS_NO_DEDUP:
        if "is_deduplicating" not in {field.name for field in dataclasses.fields(EngineConfig)}:
            raise UnavailableError("EngineConfig has no is_deduplicating")
        without: dict[str, Any] = {"is_deduplicating": False}
        config = dataclasses.replace(config, **without)
    temperature, top_p = (1.0, 0.95) if side is Side.OURS_SAMPLED else (0.0, 1.0)
    engine = load_engine("bench", setup.model, config)
    engine.start()
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()

    def complete(rows: list[Row]) -> list[Usage]:
        requests = (
            SequenceRequest(
                (number, 0),
                row.prompt,
                SamplingParams(max_tokens=row.max_tokens, temperature=temperature, top_p=top_p),
                seed=number,
            )
            for number, row in enumerate(rows)
        )
        engine.submit(requests, inbox.put)
        return [_usage(inbox.get()) for _ in rows]

    def _usage(result: SequenceResult | EngineError) -> Usage:
        if isinstance(result, EngineError):
            raise result
        if result.choice is None:
            sys.exit(f"row {result.key[0]} has no completion: {result.error}")
        return result.choice.usage

    complete([WARM_UP])
    begin = time.perf_counter()
    usages = complete(rows)
    seconds = time.perf_counter() - begin
    engine.close()
    return Pass(sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages), seconds)


def without_copies(rows: list[Row]) -> Iterator[Row]:
    """The rows, the words of each copy turned round: as many tokens, but nothing that could be shared."""
    seen: Counter[str] = Counter()
    for row in rows:
        words = row.prompt.split(" ")
        first = seen[row.prompt]
        seen[row.prompt] += 1
        yield dataclasses.replace(row, prompt=" ".join(words[first:] + words[:first]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", type=Side, choices=[s for s in Side if s not in (Side.SERVER, Side.CEILING)])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    for name in ("slots", "threads", "ctx"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    setup = Setup(args.model, slots=args.slots, threads=args.threads, ctx=args.ctx)
    rows = read_rows(args.rows)
    if args.side is Side.OURS_NO_COPIES:
        rows = list(without_copies(rows))
    try:
        done = run_loop(rows, setup) if args.side is Side.LOOP else run_ours(rows, setup, args.side)
    except UnavailableError as exc:
        print(exc, file=sys.stderr)
        sys.exit(UNAVAILABLE)
    print(json.dumps(asdict(done)))


if __name__ == "__main__":
    main()
