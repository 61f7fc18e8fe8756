"""Choosing the next token: greedy, or drawn at a temperature from the nucleus, with a seed of its own per sequence.

Nothing else narrows the choice: llama.cpp's own defaults (top_k 40, min_p 0.05, repeat penalty) are never applied. The
temperature is applied before top_p, as the documented API's peers do (vLLM, Hugging Face transformers).

top_p needs no sort: a token is drawn from the whole distribution and kept if it is in the nucleus, that is, if the
tokens more probable than it together have less than top_p; otherwise it and all less probable ones are struck out and
another is drawn. The outcome is distributed exactly as the renormalised nucleus (the rejection method with a rising
pivot of FlashInfer's sampling kernels, https://flashinfer.ai/2025/03/10/sampling.html).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from batcher.errors import EngineError
from batcher.types import SamplingParams, splitmix64

Floats = npt.NDArray[np.float32]

#: Below this a temperature is greedy: 1/T would overflow a float32.
MIN_TEMPERATURE = 1e-5

#: Probabilities are summed in blocks of float32, the blocks in float64: exact enough for any vocabulary, and fast.
_BLOCK = 256

_GAMMA = 0x9E37_79B9_7F4A_7C15
_MASK_64 = (1 << 64) - 1


class Draws:
    """Uniform numbers in [0, 1): the SplitMix64 sequence of one seed."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        # Mixed once, so that the streams of neighbouring seeds do not overlap.
        self._state = splitmix64(seed & _MASK_64)

    def next(self) -> float:
        value = splitmix64(self._state)
        self._state = (self._state + _GAMMA) & _MASK_64
        return (value >> 11) * 2.0**-53


class Sampler:
    """Samples rows of logits over one vocabulary. Not thread-safe: it owns its scratch memory."""

    def __init__(self, vocab_size: int) -> None:
        padded = -(-vocab_size // _BLOCK) * _BLOCK
        self._vocab_size = vocab_size
        self._weights = np.zeros(padded, np.float32)
        self._reduced = np.zeros(padded, np.float32)

    def sample(self, logits: Floats, params: Sequence[SamplingParams], draws: Sequence[Draws]) -> list[int]:
        """One token for each row of `logits`.

        Shape: (n, vocab_size), with n entries in `params` and `draws`. Advances the draws, leaves the logits alone.
        Raises EngineError where a row holds no number: the model or its computation is broken.
        """
        return [self._sample_row(row, p, d) for row, p, d in zip(logits, params, draws, strict=True)]

    def _sample_row(self, logits: Floats, params: SamplingParams, draws: Draws) -> int:
        best = int(logits.argmax())
        highest = logits[best]
        if not np.isfinite(highest):
            raise EngineError(
                f"the model computed a logit of {highest}; the GGUF file or the build of llama.cpp is broken"
            )
        if params.temperature < MIN_TEMPERATURE:
            return best
        weights = self._weights[: self._vocab_size]
        np.subtract(logits, highest, out=weights)
        weights *= np.float32(1.0 / params.temperature)
        np.exp(weights, out=weights)
        if params.top_p >= 1.0:
            return _draw(self._weights, draws.next())
        return self._draw_from_nucleus(params.top_p, draws)

    def _draw_from_nucleus(self, top_p: float, draws: Draws) -> int:
        weights, reduced = self._weights, self._reduced
        limit = top_p * float(weights.reshape(-1, _BLOCK).sum(axis=1).sum(dtype=np.float64))
        np.copyto(reduced, weights)
        while True:
            token = _draw(reduced, draws.next())
            pivot = weights[token]
            # Among equally probable tokens the lower id goes first.
            above = float(weights[weights > pivot].sum(dtype=np.float64))
            above += float(pivot) * int(np.count_nonzero(weights[:token] == pivot))
            if above < limit:
                return token
            reduced[weights < pivot] = 0
            reduced[token:][weights[token:] == pivot] = 0


def _draw(weights: Floats, uniform: float) -> int:
    """The index where the running sum of `weights` (whole blocks of them) passes `uniform` of the total."""
    sums = np.cumsum(weights.reshape(-1, _BLOCK).sum(axis=1), dtype=np.float64)
    target = uniform * sums[-1]
    block = min(int(np.searchsorted(sums, target, side="right")), len(sums) - 1)
    before = sums[block - 1] if block else 0.0
    inside = np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    index = int(np.searchsorted(inside, target - before, side="right"))
    if index == _BLOCK:
        # Rounding carried the target past the block's own sum: the last token so far with any weight.
        return int(np.flatnonzero(weights[: (block + 1) * _BLOCK])[-1])
    return block * _BLOCK + index
