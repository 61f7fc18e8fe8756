"""What llama.cpp itself can do: `llama-batched-bench`, which reads all prompts, then generates for all in lockstep."""

import json
import subprocess
import sys
from pathlib import Path

from bench.server import BATCH_OPTIONS
from bench.sides import Pass, Setup
from bench.workloads import Size


def run_ceiling(program: Path, size: Size, setup: Setup, *, environment: dict[str, str]) -> Pass:
    """The time that a workload of this size would take at the program's rates, which have no sampling, texts or gaps.

    It is run with as many sequences as slots, of the workload's mean prompt and completion; then the seconds are
    prompt tokens / S_PP + generated tokens / S_TG. Blocks for minutes.
    """
    parallel = min(setup.slots, size.num_rows)
    command = [str(program), "-m", str(setup.model), "-c", str(setup.slots * setup.ctx), *BATCH_OPTIONS]
    command += ["-npp", str(round(size.prompt_tokens / size.num_rows))]
    command += ["-ntg", str(round(size.max_tokens / size.num_rows)), "-npl", str(parallel)]
    command += ["-fa", "on", "-t", str(setup.threads), "-tb", str(setup.threads), "--output-format", "jsonl"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        sys.exit(f"{program} ended with {done.returncode}: {done.stderr}")
    rates = json.loads(lines[-1])
    seconds = size.prompt_tokens / rates["speed_pp"] + size.max_tokens / rates["speed_tg"]
    return Pass(size.prompt_tokens, size.max_tokens, seconds)
