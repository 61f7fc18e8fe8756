"""Tokens that a constraint rules out: those whose bits are not set in a mask."""

import numpy as np
import numpy.typing as npt

from workers.engines.llama.sampling.logits import Floats, Ids

Mask = npt.NDArray[np.uint32]

#: More tokens of a vocabulary than one in so many are not few: for them, passes over the whole take less.
_FEW = 64


def few_allowed(mask: Mask, vocab_size: int) -> Ids | None:
    """The tokens of a mask in ascending order, where they are few; else None. Shape of `mask`: (vocab_size / 32,)."""
    words = np.flatnonzero(mask)
    if int(np.bitwise_count(mask[words]).sum()) > vocab_size // _FEW:
        return None
    bits = np.unpackbits(mask[words].view(np.uint8), bitorder="little").reshape(len(words), 32)
    at, offsets = np.nonzero(bits)
    return words[at] * 32 + offsets


def masked(logits: Floats, mask: Mask) -> Floats:
    """A copy of a row of logits, in which those that are ruled out are -inf. Shape: (vocabulary size,)."""
    is_allowed = np.unpackbits(mask.view(np.uint8), count=len(logits), bitorder="little").view(np.bool_)
    return np.where(is_allowed, logits, np.float32(-np.inf))
