"""`batcher serve` beside llama-server: many clients that stream completions at the same time.

    .venv/bin/python -m bench.serving [--clients 64] [--workload ragged] [--slots 32] [--repeats 3]

Each client takes the next row as soon as its last stream has ended. Every pass starts a fresh server, which loads the
model and has answered once before the clock starts; the two take turns, and the table has medians. The clients are one
event loop in this process, the same for both. `first token` is what a client waits for its first piece of text,
`between` the time from one piece to the next.
"""

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.models import requantize
from bench.peers import cpu_model, find_tools, llama_version
from bench.server import HOST, PATIENCE_S, llama_server
from bench.sides import WARM_UP, Setup
from bench.tables import markdown
from bench.workloads import WORKLOADS, Row, read_rows, scaled, write_workload

MODEL_NAME = "bench"
SIDES = ("llama-server", "batcher serve")


@dataclass(slots=True)
class Load:
    """One pass: tokens by the servers' usage, and seconds."""

    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)

    @property
    def tokens_per_s(self) -> float:
        return (self.prompt_tokens + self.completion_tokens) / self.seconds


def main() -> int:
    """Measure and print. Returns the exit code."""
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="batcher-bench-") as name:
        folder = Path(name)
        model = args.model.resolve() if args.model else requantize(folder / "smollm2-135m-q4_0.gguf")
        setup = Setup(model, slots=args.slots, threads=args.threads, ctx=args.ctx)
        tools = find_tools(args.tools) if SIDES[0] in args.sides else None
        path = folder / "rows.jsonl"
        size = write_workload(args.workload, path, model=model, num_rows=scaled(args.workload, args.scale))
        rows = read_rows(path)
        versions = f"llama-cpp-python {llama_version()}" + (f", llama.cpp {tools.version()}" if tools else "")
        print(
            f"{versions}, Python {platform.python_version()}; "
            f"{cpu_model()}, {setup.threads} threads; model {model.name}, {setup.slots} slots of {setup.ctx} tokens, "
            f"{args.clients} clients; median of {args.repeats}\n\n**{args.workload}**: {size.num_rows} rows, "
            f"{size.prompt_tokens:,} prompt tokens, at most {size.max_tokens:,} new ones, greedy\n",
            flush=True,
        )
        loads: dict[str, list[Load]] = {side: [] for side in args.sides}
        for _ in range(args.repeats):
            for side, passes in loads.items():
                server = batcher_server(setup, folder)
                if side == SIDES[0]:
                    assert tools is not None
                    server = llama_server(tools.server, setup, environment=dict(os.environ))
                passes.append(run_pass(server, rows, num_clients=args.clients))
                print(f"  {side}: {passes[-1].tokens_per_s:.0f} tokens/s", file=sys.stderr)
        print_table(loads)
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="ragged", help="default: ragged")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="default: both")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="default: SmolLM2-135M as Q4_0")
    parser.add_argument("--clients", type=int, default=64, help="default: 64")
    parser.add_argument("--slots", type=int, default=32, help="default: 32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a sequence (default: 512)")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of prompts (default: 1)")
    parser.add_argument(
        "--tools", type=Path, metavar="DIR", help="llama-server's folder; default: bench.peers builds it"
    )
    return parser.parse_args()


@contextmanager
def batcher_server(setup: Setup, folder: Path) -> Iterator[int]:
    """`batcher serve` with its model loaded; gives its port. Gone afterwards."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BATCHER_")}
    options = ["--model", f"{MODEL_NAME}={setup.model}", "--slots", setup.slots, "--threads", setup.threads]
    options += ["--ctx", setup.ctx, "--port", 0, "--no-auth", "--jobs-dir", folder / "jobs"]
    script = "import sys; from batcher.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "serve", *map(str, options)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "http://" not in line:
            sys.exit("batcher serve did not start")
        yield int(line.split("http://")[1].split("/")[0].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait()


def run_pass(server: AbstractContextManager[int], rows: Sequence[Row], *, num_clients: int) -> Load:
    """Start the server, have the clients take all rows in their order, and end it."""
    with server as port:
        return asyncio.run(_load(port, rows, num_clients))


async def _load(port: int, rows: Sequence[Row], num_clients: int) -> Load:
    await _stream(port, WARM_UP, Load())
    load, waiting = Load(), iter(rows)

    async def client() -> None:
        for row in waiting:
            await _stream(port, row, load)

    began = time.perf_counter()
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(client())
    load.seconds = time.perf_counter() - began
    return load


async def _stream(port: int, row: Row, load: Load) -> None:
    """One completion over a connection of its own. Raises RuntimeError with what the server said."""
    body = {"model": MODEL_NAME, "prompt": row.prompt, "max_tokens": row.max_tokens, "temperature": 0}
    content = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    reader, writer = await asyncio.open_connection(HOST, port)
    asked = last = time.perf_counter()
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(content) + content
    )
    usage: dict[str, Any] = {}
    first = 0.0
    is_done = False
    lines = [await reader.readline()]
    if b" 200 " not in lines[0]:
        raise RuntimeError((lines[0] + await reader.read()).decode(errors="replace"))
    async for line in reader:
        if not line.startswith(b"data: "):
            continue
        now = time.perf_counter()
        if line.startswith(b"data: [DONE]"):
            is_done = True
        elif b'"usage":{' in line:
            usage = json.loads(line.removeprefix(b"data: "))["usage"]
        elif not first:
            first = now
            load.first_token_s.append(now - asked)
        else:
            load.between_s.append(now - last)
        last = now
    writer.close()
    if not (is_done and usage):
        raise RuntimeError("a stream ended without [DONE] or usage")
    load.prompt_tokens += usage["prompt_tokens"]
    load.completion_tokens += usage["completion_tokens"]


def print_table(loads: dict[str, list[Load]]) -> None:
    """Print a line for each server."""
    peer = loads.get(SIDES[0])
    base = statistics.median(load.tokens_per_s for load in peer) if peer else None
    lines = []
    for side, passes in loads.items():
        rates = [load.tokens_per_s for load in passes]
        rate = statistics.median(rates)
        waits = [statistics.quantiles(load.first_token_s, n=20) for load in passes]
        gaps = [statistics.quantiles(load.between_s, n=20) for load in passes]
        lines.append(
            [
                side,
                f"{passes[0].prompt_tokens:,} + {passes[0].completion_tokens:,}",
                *(f"{value:,.0f}" for value in (rate, min(rates), max(rates))),
                f"{rate / base:.2f}" if base else "",
                *(f"{statistics.median(each[at] for each in waits):.2f}" for at in (9, 18)),
                *(f"{1000 * statistics.median(each[at] for each in gaps):,.0f}" for at in (9, 18)),
            ]
        )
    header = ["what", "tokens: prompt + generated", "tokens/s", "min", "max", "of llama-server"]
    header += ["first token, s", "95%", "between, ms", "95%"]
    print(markdown(header, lines), flush=True)


if __name__ == "__main__":
    sys.exit(main())
