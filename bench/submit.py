"""How fast `submit` reads, validates and splits a JSONL file, and in how much memory, beside a bare pyarrow read.

    .venv/bin/python -m bench.submit [--rows N]

Writes a file of N rows of about 500 bytes (1,000,000 by default, 500 MB) to a temporary folder, and for each of the two
starts a fresh process: the bare read parses the file block by block with `pyarrow.json.open_json` (on all cores, as is
its default) and drops it; submit makes a whole job of it, every shard flushed to disk. The peak memory is what the
kernel says of the process. Exits with 1 if submit's peak reaches 500 MB.
"""

import argparse
import importlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

MAX_RSS_MB = 500
ROW_BYTES = 500
_WORDS = (
    "time",
    "way",
    "year",
    "day",
    "thing",
    "world",
    "life",
    "hand",
    "part",
    "child",
    "eye",
    "place",
    "work",
    "week",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One process: seconds of its work without its imports, CPU seconds of all of it, peak resident memory in MB."""

    elapsed_s: float
    cpu_s: float
    peak_mb: float


def write_rows(path: Path, num_rows: int) -> None:
    """Rows with an id, a prompt, two parameters and two more columns; the same ones on every call."""
    rng = random.Random(0)
    prompts = [json.dumps(" ".join(rng.choices(_WORDS, k=90))[: ROW_BYTES - 120]) for _ in range(1009)]
    with path.open("w", encoding="utf-8") as file:
        for row in range(num_rows):
            file.write(
                f'{{"custom_id": "request-{row}", "prompt": {prompts[row % 1009]}, "max_tokens": {row % 64 + 1}, '
                f'"temperature": 0.7, "topic": "{_WORDS[row % len(_WORDS)]}", "number": {row}}}\n'
            )


def read_bare(path: Path, folder: Path) -> int:
    """Parse the file and drop it. Returns the number of rows."""
    import pyarrow.json as pj

    return sum(batch.num_rows for batch in pj.open_json(path))


def submit(path: Path, folder: Path) -> int:
    """Make a job of the file. Returns the number of rows."""
    from batcher.jobdir.folder import JobDir
    from batcher.submission.planner import submit as submit_job
    from batcher.submission.source import SubmitOptions
    from batcher.types import SamplingParams

    options = SubmitOptions(default_model="model", params=SamplingParams(), known_models=None)
    manifest = submit_job(JobDir(folder / "job"), [str(path)], options).manifest
    assert manifest.num_refused == 0
    return manifest.num_rows


MEASURED = {"bare pyarrow read": read_bare, "batcher submit": submit}


def run_child(name: str, path: Path, folder: Path) -> None:
    """In the fresh process: do the work once and print rows and seconds."""
    for module in ("pyarrow.json", "batcher.submission.planner"):
        importlib.import_module(module)  # Imports are not what is measured.
    start = time.perf_counter()
    num_rows = MEASURED[name](path, folder)
    print(json.dumps([num_rows, time.perf_counter() - start]))


def measure(name: str, path: Path, folder: Path, *, num_rows: int) -> Measured:
    """Run one of `MEASURED` in a process of its own."""
    command = [sys.executable, __file__, "--child", name, str(path), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    output = child.stdout.read()
    # Not RUSAGE_CHILDREN: that is the largest of all children.
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"{name}: the process ended with {child.returncode}")
    found, elapsed_s = json.loads(output)
    assert found == num_rows, (found, num_rows)
    # Linux counts in KiB, macOS in bytes.
    peak_mb = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return Measured(elapsed_s, usage.ru_utime + usage.ru_stime, peak_mb)


def print_table(results: dict[str, Measured], *, num_rows: int, num_bytes: int) -> None:
    """The one table of this benchmark, as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("pyarrow", "pydantic"))
    print(f"{num_rows:,} rows, {num_bytes / 1e6:,.0f} MB; Python {platform.python_version()}, {versions}, ", end="")
    print(f"{os.cpu_count()} cores\n")
    print("| what | seconds | CPU seconds | rows/s | MB/s | of the bare read | peak RSS, MB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    bare = results["bare pyarrow read"].elapsed_s
    for name, result in results.items():
        rates = f"{num_rows / result.elapsed_s:,.0f} | {num_bytes / 1e6 / result.elapsed_s:,.0f}"
        times = f"{result.elapsed_s:.1f} | {result.cpu_s:.1f}"
        print(f"| {name} | {times} | {rates} | {bare / result.elapsed_s:.3f} | {result.peak_mb:,.0f} |")


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the file (default: 1,000,000)")
    parser.add_argument("--child", nargs=3, metavar=("WHAT", "FILE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, file, folder = arguments.child
        run_child(name, Path(file), Path(folder))
        return 0
    with tempfile.TemporaryDirectory(prefix="batcher-bench-") as temporary:
        path = Path(temporary) / "prompts.jsonl"
        write_rows(path, arguments.rows)
        results = {name: measure(name, path, Path(temporary), num_rows=arguments.rows) for name in MEASURED}
        print_table(results, num_rows=arguments.rows, num_bytes=path.stat().st_size)
    peak_mb = results["batcher submit"].peak_mb
    if peak_mb >= MAX_RSS_MB:
        print(f"\nsubmit took {peak_mb:,.0f} MB at its peak; the bound is {MAX_RSS_MB} MB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
