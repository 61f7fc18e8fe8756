"""What the rest of the product costs: the whole `batcher run` beside the bare engine, and how it grows with the rows.

    .venv/bin/python -m bench.job [--rows 256] [--model GGUF] [--repeats 3]
    .venv/bin/python -m bench.job --growth [--growth-rows 200 2000 20000]

The first runs the rows of the workload `ragged` with the command, broker and worker included, and in a bare engine in a
process of its own, in turns, and gives medians. The command's start-up and end, which do not depend on the rows, are
what a job of one row and one new token takes; they are taken off in one line of the table.

`--growth` runs jobs of short prompts on a tiny random model, where the engine costs little and the rest shows: tokens/s
without start-up, and the peak of resident memory of the largest process of the command, as the kernel says.
"""

import argparse
import json
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.models import requantize
from bench.peers import cpu_model, llama_version
from bench.sides import Pass, Setup, Side, measure_in_child
from bench.tables import markdown
from bench.workloads import WORDS, Row, write_rows, write_workload
from tests.support.tiny_gguf import write_tiny_gguf

WORKLOAD = "ragged"
#: Of the jobs of `--growth`: words of a prompt, and new tokens.
GROWTH_WORDS = 4
GROWTH_MAX_TOKENS = 8
_STARTUP_ROW = Row("once upon a time", 1)


@dataclass(frozen=True, slots=True)
class JobRun:
    """One `batcher run`: tokens by its summary, seconds of the whole command, and of those from the first claim of a
    shard to the last commit; peak resident memory of its largest process.
    """

    tokens: int
    seconds: float
    claimed_s: float
    peak_mb: float


def main() -> int:
    """Measure and print. Returns the exit code."""
    args = parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Of the options of all commands only those given here.
    for name in [name for name in os.environ if name.startswith("BATCHER_")]:
        del os.environ[name]
    print(f"llama-cpp-python {llama_version()}, Python {platform.python_version()}; ", end="")
    print(f"{cpu_model()}, {args.threads} threads, {args.slots} slots of {args.ctx} tokens; median of {args.repeats}")
    try:
        with tempfile.TemporaryDirectory(prefix="batcher-bench-") as folder:
            (measure_growth if args.growth else compare_with_engine)(args, Path(folder))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="of the job (default: 256)")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="default: SmolLM2-135M as Q4_0")
    parser.add_argument("--slots", type=int, default=32, help="default: 32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of a sequence (default: 512)")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--growth", action="store_true", help="jobs of growing length on a tiny model instead")
    parser.add_argument("--growth-rows", type=int, nargs="+", default=[200, 2000, 20_000], metavar="N")
    return parser.parse_args()


def run_job(rows: Path, setup: Setup, output: Path) -> JobRun:
    """Run the command over a file of rows; exits where a row failed. Blocks."""
    command = [str(Path(sys.executable).with_name("batcher")), "run", str(rows), "-o", str(output), "--quiet"]
    command += ["--model", f"bench={setup.model}", "--ctx", str(setup.ctx), "--slots", str(setup.slots)]
    command += ["--threads", str(setup.threads)]
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            # It counts the descendants that were waited for too: `ru_maxrss` is the largest of all.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        if process.returncode != 0:
            sys.exit(f"batcher run ended with {process.returncode}: {log.read().decode(errors='replace')}")
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    # Linux counts in KiB, macOS in bytes.
    peak_mb = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return JobRun(summary["prompt_tokens"] + summary["completion_tokens"], seconds, summary["elapsed_s"], peak_mb)


class Jobs:
    """Runs jobs, each in a new directory of `folder`."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self._setup = setup
        self._folder = folder
        self._count = 0
        self._one_row = folder / "one.jsonl"
        write_rows([_STARTUP_ROW], self._one_row)

    def run(self, rows: Path) -> JobRun:
        self._count += 1
        done = run_job(rows, self._setup, self._folder / f"job-{self._count}")
        print(f"  {rows.stem}: {done.tokens} tokens in {done.seconds:.2f} s", file=sys.stderr)
        return done

    def measure_startup(self) -> float:
        """Seconds of a job that has hardly anything to compute."""
        return self.run(self._one_row).seconds


def compare_with_engine(args: argparse.Namespace, folder: Path) -> None:
    """The whole command beside the bare engine: one table."""
    model = args.model.resolve() if args.model else requantize(folder / "smollm2-135m-q4_0.gguf")
    setup = Setup(model, slots=args.slots, threads=args.threads, ctx=args.ctx)
    rows = folder / "rows.jsonl"
    size = write_workload(WORKLOAD, rows, model=model, num_rows=args.rows)
    jobs = Jobs(setup, folder)
    engine: list[Pass] = []
    startups: list[float] = []
    runs: list[JobRun] = []
    for _ in range(args.repeats):
        startups.append(jobs.measure_startup())
        runs.append(jobs.run(rows))
        engine.append(measure_in_child(Side.OURS, rows, setup))
        print(f"  engine: {engine[-1].tokens} tokens in {engine[-1].seconds:.2f} s", file=sys.stderr)
    startup_s = statistics.median(startups)
    measured = {
        "bare engine": [(done.tokens, done.seconds) for done in engine],
        "batcher run, the whole command": [(run.tokens, run.seconds) for run in runs],
        f"... without start-up and end ({startup_s:.1f} s)": [(run.tokens, run.seconds - startup_s) for run in runs],
        "... from first claim to last commit": [(run.tokens, run.claimed_s) for run in runs],
    }
    print(f"\n**{WORKLOAD}**: {size.num_rows} rows, {size.prompt_tokens:,} prompt tokens, ", end="")
    print(f"at most {size.max_tokens:,} new ones; model {model.name}\n")
    bare = statistics.median(done.tokens_per_s for done in engine)
    lines = [_line(name, found, bare) for name, found in measured.items()]
    print(markdown(["what", "tokens", "seconds", "tokens/s", "min", "max", "of the bare engine"], lines), flush=True)


def _line(name: str, measured: Sequence[tuple[int, float]], bare: float) -> list[str]:
    rates = [tokens / seconds for tokens, seconds in measured]
    rate = statistics.median(rates)
    seconds = statistics.median(seconds for _, seconds in measured)
    numbers = (f"{number:,.0f}" for number in (rate, min(rates), max(rates)))
    return [name, f"{measured[0][0]:,}", f"{seconds:.2f}", *numbers, f"{rate / bare:.3f}"]


def measure_growth(args: argparse.Namespace, folder: Path) -> None:
    """Jobs of growing length on the tiny model: one table."""
    model = args.model.resolve() if args.model else write_tiny_gguf(folder / "tiny.gguf")
    jobs = Jobs(Setup(model, slots=args.slots, threads=args.threads, ctx=args.ctx), folder)
    runs: dict[int, list[JobRun]] = {num_rows: [] for num_rows in args.growth_rows}
    startups: list[float] = []
    for num_rows in runs:
        write_rows(short_rows(num_rows), folder / f"{num_rows}.jsonl")
    for _ in range(args.repeats):
        startups.append(jobs.measure_startup())
        for num_rows, done in runs.items():
            done.append(jobs.run(folder / f"{num_rows}.jsonl"))
    startup_s = statistics.median(startups)
    print(f"\nprompts of {GROWTH_WORDS} words, at most {GROWTH_MAX_TOKENS} new tokens, model {model.name}; ", end="")
    print(f"a job of 1 row takes {startup_s:.1f} s, which tokens/s and rows/s leave out\n")
    lines = []
    for num_rows, done in runs.items():
        seconds = statistics.median(run.seconds for run in done)
        rates = [num / (seconds - startup_s) for num in (done[0].tokens, num_rows)]
        peak_mb = max(run.peak_mb for run in done)
        numbers = [f"{number:,.0f}" for number in (num_rows, done[0].tokens)]
        lines.append([*numbers, f"{seconds:.1f}", *(f"{rate:,.0f}" for rate in rates), f"{peak_mb:,.0f}"])
    header = ["rows", "tokens", "seconds", "tokens/s", "rows/s", "peak RSS of the largest process, MB"]
    print(markdown(header, lines), flush=True)


def short_rows(num_rows: int) -> list[Row]:
    """Prompts of a few words; the same ones on every call."""
    rng = random.Random(1)
    words = WORDS.split()
    return [Row(" ".join(rng.choices(words, k=GROWTH_WORDS)), GROWTH_MAX_TOKENS) for _ in range(num_rows)]


if __name__ == "__main__":
    sys.exit(main())
