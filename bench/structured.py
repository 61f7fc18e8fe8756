"""What it costs to hold texts to a JSON schema: our engine with it and without, and llama-server with it.

    .venv/bin/python -m bench.structured [--rows 128] [--slots 32] [--repeats 3] [--sides schema,free,server]

Ragged prompts (10 to 300 tokens), each answered by an object of a nested object, arrays, enums, bounded numbers and
strings of at most 24 characters. Sides:
  schema  our engine, with the schema
  free    our engine without it, as many tokens of each row as it had with the schema
  server  llama.cpp's `llama-server` with the same `json_schema`, as many slots and 32 clients

All at temperature 1 and top_p 0.95, a seed for each row. Every measurement is a process of its own that loads the
model, warms up and times one pass; the sides take turns, and the figures are medians. The server draws other texts, so
it is compared by rows/s; its tokens a row are shown beside.
"""

import argparse
import json
import os
import platform
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.models import requantize
from bench.peers import cpu_model, find_tools, llama_version
from bench.server import run_server
from bench.sides import Pass, Setup
from bench.workloads import Row, read_rows, write_rows, write_workload
from workers.process.launch import engine_environment

_NAME = {"type": "string", "minLength": 1, "maxLength": 24}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "title": _NAME,
        "category": {"enum": ["question", "complaint", "praise", "order", "other"]},
        "priority": {"type": "integer", "minimum": 1, "maximum": 5},
        "customer": {
            "type": "object",
            "properties": {"name": _NAME, "country": {"type": "string", "pattern": "^[A-Z]{2}$"}},
            "required": ["name", "country"],
            "additionalProperties": False,
        },
        "tags": {"type": "array", "items": {"enum": ["urgent", "refund", "delivery", "account"]}, "maxItems": 3},
        "is_answered": {"type": "boolean"},
    },
    "required": ["title", "category", "priority", "customer", "tags", "is_answered"],
    "additionalProperties": False,
}
#: More than any object of the schema takes.
MAX_TOKENS = 256
SAMPLING = {"temperature": 1.0, "top_p": 0.95}
#: What llama-server would do beside, unless it is told.
ONLY_TOP_P = {"top_k": 0, "min_p": 0.0}


@dataclass(frozen=True, slots=True)
class Made:
    """A pass, and how many tokens each row's completion had; none of the server's."""

    made: Pass
    lengths: tuple[int, ...] = ()


def main() -> None:
    args = parse_args()
    if args.measure:
        print(json.dumps(asdict(measure_ours(read_rows(args.measure), setup_of(args, args.model), args.schema))))
        return
    with tempfile.TemporaryDirectory(prefix="batcher-bench-") as folder:
        compare(args, Path(folder))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=128, help="default: 128")
    parser.add_argument("--slots", type=int, default=32, help="default: 32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--ctx", type=int, default=640, help="tokens of a sequence (default: 640)")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--sides", default="schema,free,server", help="separated by commas; default: all")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="default: SmolLM2-135M as Q4_0")
    parser.add_argument(
        "--tools", type=Path, metavar="DIR", help="llama-server's folder; default: bench.peers builds it"
    )
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--schema", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def setup_of(args: argparse.Namespace, model: Path) -> Setup:
    return Setup(model, slots=args.slots, threads=args.threads, ctx=args.ctx)


def compare(args: argparse.Namespace, folder: Path) -> None:
    """Measure the sides by turns, and print a table."""
    sides = args.sides.split(",")
    setup = setup_of(args, args.model.resolve() if args.model else requantize(folder / "smollm2-135m-q4_0.gguf"))
    file, shorter = folder / "rows.jsonl", folder / "shorter.jsonl"
    write_workload("ragged", file, model=setup.model, num_rows=args.rows)
    rows = [replace(row, max_tokens=MAX_TOKENS) for row in read_rows(file)]
    write_rows(rows, file)
    tools = find_tools(args.tools) if "server" in sides else None
    print(f"llama-cpp-python {llama_version()}, Python {platform.python_version()}; {cpu_model()}")
    print(f"{setup.model.name}, {setup.threads} threads, {setup.slots} slots of {setup.ctx} tokens, {args.rows} rows")
    print(f"median of {args.repeats}", flush=True)
    passes: dict[str, list[Pass]] = {side: [] for side in sides}
    for _ in range(args.repeats):
        if "schema" in sides:
            made = in_child(file, setup, has_schema=True)
            passes["schema"].append(made.made)
            write_rows([replace(row, max_tokens=n) for row, n in zip(rows, made.lengths, strict=True)], shorter)
        if "free" in sides:
            passes["free"].append(in_child(shorter, setup, has_schema=False).made)
        if tools is not None:
            params = {**SAMPLING, **ONLY_TOP_P, "json_schema": SCHEMA}
            environment = dict(os.environ)
            done = run_server(tools.server, rows, setup, num_clients=32, environment=environment, params=params)
            passes["server"].append(done)
    print("\n| side | rows/s | tokens/s | tokens of a completion | seconds |\n|---|---|---|---|---|")
    for side, done_all in passes.items():
        seconds = statistics.median(each.seconds for each in done_all)
        tokens = statistics.median(each.tokens_per_s for each in done_all)
        length = statistics.median(each.completion_tokens for each in done_all) / args.rows
        print(f"| {side} | {args.rows / seconds:.2f} | {tokens:.0f} | {length:.1f} | {seconds:.2f} |")


def in_child(rows: Path, setup: Setup, *, has_schema: bool) -> Made:
    """One pass of ours in a fresh process."""
    command = [sys.executable, "-m", "bench.structured", "--measure", str(rows), "--model", str(setup.model)]
    command += [part for name in ("slots", "threads", "ctx") for part in (f"--{name}", str(getattr(setup, name)))]
    command += ["--schema"] if has_schema else []
    done = subprocess.run(command, env=engine_environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"our engine ended with {done.returncode}: {done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return Made(Pass(**found["made"]), tuple(found["lengths"]))


def measure_ours(rows: list[Row], setup: Setup, has_schema: bool) -> Made:
    """All prompts submitted to one engine at once."""
    from batcher import constraints
    from batcher.errors import EngineError
    from batcher.types import EngineConfig, SamplingParams, Usage
    from workers.engines.base import SequenceRequest, SequenceResult
    from workers.engines.llama.loader import load_engine

    config = EngineConfig(num_slots=setup.slots, num_threads=setup.threads, context_length=setup.ctx)
    engine = load_engine("bench", setup.model, config)
    engine.start()
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    constraint = constraints.json_schema(SCHEMA) if has_schema else None

    def complete(rows: list[Row]) -> list[Usage]:
        params = SamplingParams(temperature=1.0, top_p=0.95, constraint=constraint, ignore_eos=not has_schema)
        asked = [
            SequenceRequest((number, 0), row.prompt, replace(params, max_tokens=row.max_tokens), seed=number)
            for number, row in enumerate(rows)
        ]
        engine.submit(asked, inbox.put)
        results = [inbox.get() for _ in asked]
        choices = {r.key: r.choice for r in results if isinstance(r, SequenceResult)}
        found = [choices[each.key] for each in asked]
        if None in found:
            sys.exit("a row has no completion")
        return [choice.usage for choice in found if choice is not None]

    # The grammar is compiled here, as a worker has it from its first rows on.
    complete([Row("Once upon a time", 4)])
    begin = time.perf_counter()
    usages = complete(rows)
    seconds = time.perf_counter() - begin
    engine.close()
    lengths = tuple(usage.completion_tokens for usage in usages)
    return Made(Pass(sum(usage.prompt_tokens for usage in usages), sum(lengths), seconds), lengths)


if __name__ == "__main__":
    main()
