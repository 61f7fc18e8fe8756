"""A row of logits, one for each token of the vocabulary: what it must be, and where the highest are."""

import math

import numpy as np
import numpy.typing as npt

from batcher.errors import EngineError

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]

#: Tokens whose highest logit is looked for first.
_BLOCK = 256


class NotANumberError(EngineError):
    """A row of logits holds what is no number: the model, or what it computed of this row, is broken."""


def check_finite(highest: float) -> None:
    """Raises NotANumberError where the highest logit of a row is no number."""
    if not math.isfinite(highest):
        raise NotANumberError(
            f"the model computed a logit of {highest}; the GGUF file or the build of llama.cpp is broken"
        )


def candidates(logits: Floats, number: int) -> Ids:
    """Tokens, in ascending order, with the `number` highest logits among them, and all that are equal to the last.

    Of a large vocabulary mostly few more, found in a few blocks. Logits that are no numbers are among them.
    """
    num_blocks = len(logits) // _BLOCK
    if num_blocks <= number:
        return np.arange(len(logits))
    whole = num_blocks * _BLOCK
    blocks = logits[:whole].reshape(num_blocks, _BLOCK)
    maxima = blocks.max(axis=1)
    # As many blocks have a logit like this or a higher one, so no lower one is needed.
    least = np.partition(maxima, -number)[-number]
    best = np.flatnonzero(~(maxima < least))
    at, offsets = np.divmod(np.flatnonzero(~(blocks[best] < least)), _BLOCK)
    return np.concatenate((best[at] * _BLOCK + offsets, whole + np.flatnonzero(~(logits[whole:] < least))))
