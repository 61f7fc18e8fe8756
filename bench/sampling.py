"""What choosing the next tokens costs a decode step, beside llama.cpp's own sampler chain on the same logits.

    .venv/bin/python -m bench.sampling [--vocabulary N ...] [--rows N ...] [--threads N] [--repeats N]

The logits are made up, in the shape of a model's: a normal bulk ("flat", about ten bits of entropy), and the same with
some tokens standing out of it ("peaked", two to three bits). A step samples every row once, in one thread and, of a
large vocabulary, in several, the two in turns; the figures are medians. llama.cpp does the first rows only (all of a
request's stages in one chain), filling its array of candidates before each row as `llama_sampler_sample` does.
"""

import argparse
import ctypes
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batcher.types import SamplingParams
from bench.peers import cpu_model, llama_version
from workers.engines.llama.sampling.sampler import Draws, Sampler

VOCABULARIES = (49_152, 152_064, 262_144)
ROWS = (32, 256)
PEER_ROWS = 8
PEER_REPEATS = 5
CASES = (
    ("peaked", SamplingParams(temperature=0)),
    ("peaked", SamplingParams(temperature=1)),
    ("flat", SamplingParams(temperature=1)),
    ("peaked", SamplingParams(temperature=1, top_p=0.95)),
    ("flat", SamplingParams(temperature=1, top_p=0.95)),
    ("flat", SamplingParams(temperature=0.7)),
    ("flat", SamplingParams(temperature=1, top_k=50)),
    ("flat", SamplingParams(temperature=1, min_p=0.05)),
)

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the table. `entropy` in bits, of the softmax at temperature 1, the mean of the rows.

    `step_ms` is that of one thread, `shared_step_ms` of several.
    """

    vocab_size: int
    num_rows: int
    shape: str
    entropy: float
    params: SamplingParams
    step_ms: float
    shared_step_ms: float
    peer_row_us: float


def make_logits(shape: str, *, num_rows: int, vocab_size: int) -> Logits:
    """The same on every call. Shape: (num_rows, vocab_size)."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.standard_normal((num_rows, vocab_size), np.float32)
    if shape == "peaked":
        for row in logits:
            row[rng.integers(vocab_size, size=30)] = rng.uniform(8, 20, 30)
    return logits


def entropy(logits: Logits) -> float:
    """Bits."""
    weights = np.exp(logits.astype(np.float64))
    weights /= weights.sum(axis=1, keepdims=True)
    return float(-(weights * np.log2(weights)).sum(axis=1).mean())


def median_s(*steps: Callable[[], object], repeats: int) -> tuple[float, ...]:
    """Seconds of each of them, which take turns. Runs all once more, unmeasured, to begin with."""
    times: list[list[float]] = [[] for _ in steps]
    for repeat in range(1 + repeats):
        for step, found in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if repeat:
                found.append(time.perf_counter() - start)
    return tuple(map(statistics.median, times))


def sampler_step(logits: Logits, params: SamplingParams, *, num_threads: int) -> Callable[[], list[int]]:
    """A step of this project's sampler: every row once."""
    num_rows, vocab_size = logits.shape
    sampler, draws = Sampler(vocab_size, num_threads=num_threads), [Draws(seed) for seed in range(num_rows)]
    return lambda: sampler.sample(logits, [params] * num_rows, draws)


def llama_step(logits: Logits, params: SamplingParams) -> Callable[[], list[int]]:
    """The same of llama.cpp's chain. The chain is freed with the process."""
    import llama_cpp

    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    if params.temperature == 0:
        stages = [llama_cpp.llama_sampler_init_greedy()]
    else:
        stages = [llama_cpp.llama_sampler_init_temp(params.temperature)]
        if params.min_p > 0:
            stages.append(llama_cpp.llama_sampler_init_min_p(params.min_p, 1))
        if params.top_k > 0:
            stages.append(llama_cpp.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1:
            stages.append(llama_cpp.llama_sampler_init_top_p(params.top_p, 1))
        stages.append(llama_cpp.llama_sampler_init_dist(0))
    for stage in stages:
        llama_cpp.llama_sampler_chain_add(chain, stage)

    ids = np.arange(logits.shape[1], dtype=np.int32)
    table = np.zeros(len(ids), np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)]))
    data = table.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))

    def sample(row: Logits) -> int:
        table["id"], table["logit"], table["p"] = ids, row, 0
        candidates = llama_cpp.llama_token_data_array(data, len(table), -1, False)
        llama_cpp.llama_sampler_apply(chain, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)

    return lambda: [sample(row) for row in logits]


def measure(vocabularies: Sequence[int], rows: Sequence[int], *, num_threads: int, repeats: int) -> list[Measured]:
    """Every case at every size."""
    results = []
    for vocab_size, num_rows, (shape, params) in itertools.product(vocabularies, rows, CASES):
        logits = make_logits(shape, num_rows=num_rows, vocab_size=vocab_size)
        steps = (sampler_step(logits, params, num_threads=number) for number in (1, num_threads))
        alone_s, shared_s = median_s(*steps, repeats=repeats)
        few = logits[:PEER_ROWS]
        (peer_s,) = median_s(llama_step(few, params), repeats=min(repeats, PEER_REPEATS))
        times = (alone_s * 1e3, shared_s * 1e3, peer_s / len(few) * 1e6)
        results.append(Measured(vocab_size, num_rows, shape, entropy(few), params, *times))
    return results


def print_table(results: list[Measured], *, num_threads: int, repeats: int) -> None:
    """The one table of this benchmark, as Markdown."""
    # Most of the time goes into exp, and how long that takes depends on the instructions that numpy finds.
    exp_loops = np.lib.introspect.opt_func_info("^exp$", "float32").get("exp", {}).get("ff", {})
    print(
        f"median of {repeats}; numpy {np.__version__} (exp: {exp_loops.get('current', 'baseline')}), "
        f"llama-cpp-python {llama_version()}, Python {platform.python_version()}, "
        f"{cpu_model()}, {os.cpu_count()} cores\n"
    )
    print(
        f"| vocabulary | rows | logits | sampling | ms a step | us a row | in {num_threads} threads, ms a step "
        "| llama.cpp: us a row |"
    )
    print("|---:|---:|---|---|---:|---:|---:|---:|")
    for line in results:
        logits = f"{line.shape}, {line.entropy:.1f} bits"
        print(
            f"| {line.vocab_size:,} | {line.num_rows} | {logits} | {_describe(line.params)} "
            f"| {line.step_ms:.2f} | {line.step_ms / line.num_rows * 1e3:.0f} | {line.shared_step_ms:.2f} "
            f"| {line.peer_row_us:,.0f} |"
        )


def _describe(params: SamplingParams) -> str:
    names = ("temperature", "min_p", "top_k", "top_p")
    default = SamplingParams()
    narrowing = [name for name in names if getattr(params, name) != getattr(default, name)]
    return ", ".join(f"{name} {getattr(params, name):g}" for name in dict.fromkeys(("temperature", *narrowing)))


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=list(VOCABULARIES), metavar="N", help="sizes")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), metavar="N", help="rows a step")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--repeats", type=int, default=31, help="steps per line (default: 31)")
    args = parser.parse_args()
    results = measure(args.vocabulary, args.rows, num_threads=args.threads, repeats=args.repeats)
    print_table(results, num_threads=args.threads, repeats=args.repeats)
    return 0


if __name__ == "__main__":
    sys.exit(main())
