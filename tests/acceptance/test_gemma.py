"""The real Gemma 3 270M, whose windows are 512 tokens, by regret: the engine's own tokens beside what llama-cpp-python
alone finds likely, one sequence at a time and without flash attention."""

import random
from pathlib import Path

import numpy as np

from batcher.types import SamplingParams
from tests.acceptance.conftest import PATIENCE_S, ROOT
from tests.support.regret import Decoded, Reference, decode
from tests.support.tiny_engine import running
from workers.engines.base import SequenceRequest

CONTEXT_LENGTH = 2048
#: Weights of 4 bits round activations to 8, in another order for many rows than for one.
MAX_REGRET = 0.3
MAX_MEAN_DIFFERENCE = 0.08

PARAMS = SamplingParams(max_tokens=24, temperature=0, logprobs=0, ignore_eos=True)


def sentences(seed: int, number: int) -> str:
    """So many characters of the license's sentences, in an order that nobody knows by heart."""
    found = " ".join((ROOT / "LICENSE").read_text().split()).split(". ")
    random.Random(seed).shuffle(found)
    return ". ".join(found)[:number]


def test_tokens_are_as_likely_as_by_llama_cpp_alone_beyond_the_window(gemma_path: Path) -> None:
    stem = sentences(1, 4200)
    prompts = {
        "short": "The capital of France is",
        "1,700 tokens": sentences(2, 9000),
        "600 tokens": sentences(3, 3250),
        "stem": stem + "\n\nIn short:",
        "stem, copied": stem + "\n\nThe opposite is true, because",
    }
    first, last = list(prompts)[:4], list(prompts)[4:]
    with running(gemma_path, num_slots=4, context_length=CONTEXT_LENGTH) as engine:
        decoded: dict[str, Decoded] = {}
        for names in (first, last):
            requests = [SequenceRequest((at, 0), prompts[name], PARAMS, seed=0) for at, name in enumerate(names)]
            decoded |= zip(names, decode(engine, requests, patience_s=PATIENCE_S), strict=True)

    assert len(decoded["1,700 tokens"].prompt) > 1700
    assert len(decoded["600 tokens"].prompt) > 600
    assert min(decoded[name].num_cached for name in last) > 700
    with Reference(gemma_path, context_length=CONTEXT_LENGTH) as reference:
        for name, each in decoded.items():
            logprobs = reference.logprobs(each)
            own = logprobs[np.arange(len(each.completion)), each.completion]
            regret = float((logprobs.max(axis=-1) - own).max())
            difference = float(np.abs(np.array(each.logprobs) - own).mean())
            assert regret <= MAX_REGRET, name
            assert difference < MAX_MEAN_DIFFERENCE, name


def test_slots_fit_into_the_memory_that_is_given(gemma_path: Path) -> None:
    with running(gemma_path, num_slots=None, context_length=CONTEXT_LENGTH, memory=2**30) as engine:
        # 36 MiB each, in half of what the weights leave.
        assert engine.num_slots == 10
