"""Which quantization of a repository is fetched where none is named: the best that fits this machine."""

from collections.abc import Sequence
from dataclasses import dataclass

from batcher.errors import ModelError
from batcher.models.weights import Weights

#: The weights take at most this share of the memory that is available: the rest is for the KV cache of the slots, of
#: which a worker takes half, and for the computation.
WEIGHTS_SHARE = 2 / 3

#: Beyond 8 bits nothing is gained that shows in texts, and each token takes twice the time.
_BEYOND = ("F16", "BF16", "F32")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model of a repository, and its bytes."""

    weights: Weights
    num_bytes: int


def choose(candidates: Sequence[Candidate], *, available: int, repository: str) -> tuple[Candidate, str]:
    """The best that fits, and why this one, in words. Raises ModelError where there is none, or no telling apart.

    `available`: bytes of memory. The best is the largest of at most 8 bits a weight; wider ones only if there are no
    others.
    """
    labels = [each.weights.label for each in candidates]
    if len(set(labels)) < len(labels):
        files = ", ".join(each.weights.first for each in candidates)
        raise ModelError(f"hf:{repository}: which model of the repository? Give hf:{repository}/FILE.gguf, of {files}")
    narrow = [each for each in candidates if each.weights.label not in _BEYOND] or list(candidates)
    room = available * WEIGHTS_SHARE
    fitting = [each for each in narrow if each.num_bytes <= room]
    if not fitting:
        least = min(narrow, key=lambda each: each.num_bytes)
        label = least.weights.label or least.weights.first
        raise ModelError(
            f"hf:{repository}: none of its {len(candidates)} models fits: the smallest, {label}, has "
            f"{size_text(least.num_bytes)}, and weights may take two thirds of {size_text(available)} of free memory; "
            "take a smaller model, free memory, or name the quantization to have it all the same"
        )
    best = max(fitting, key=lambda each: each.num_bytes)
    label = best.weights.label or best.weights.first
    limit = f"{size_text(best.num_bytes)}, and weights may take two thirds of {size_text(available)} of free memory"
    larger = [each for each in narrow if each.num_bytes > room]
    why = "the best that fits" if larger else "the best up to 8 bits"
    return best, f"hf:{repository}: takes {label}, {why} ({limit}); hf:{repository}:QUANT takes another"


def size_text(num_bytes: float) -> str:
    """Bytes as files are sold: 2.5 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} bytes"
