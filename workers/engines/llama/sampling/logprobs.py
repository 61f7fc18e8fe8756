"""Log-probabilities of tokens and of the likeliest beside them, by the model's own logits.

Two passes over a row, in the precision of the logits; only a few blocks of a large vocabulary are looked through for
the likeliest tokens.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from batcher.types import TokenLogprob
from workers.engines.llama.sampling.sampler import MAX_EXPONENT, Floats, check_finite

#: Tokens whose highest logit is taken first.
_BLOCK = 256


def token_logprob(logits: Floats, token: int, *, num_top: int, piece: Callable[[int], bytes]) -> TokenLogprob:
    """The log-probability of `token`, and those of the `num_top` likeliest, under the softmax of `logits`.

    Shape: (vocabulary size,). Raises EngineError where one is no number.
    """
    log_total = log_sum_exp(logits)
    top = tuple((piece(one), float(logits[one]) - log_total) for one in likeliest(logits, num_top).tolist())
    return TokenLogprob(piece(token), float(logits[token]) - log_total, top)


def log_sum_exp(logits: Floats, scratch: Floats | None = None) -> float:
    """The logarithm of the sum of the exponentials. Overwrites `scratch`, of the same shape, if it is given.

    Raises EngineError where a logit is no number: the model or its computation is broken.
    """
    highest = float(logits.max())
    check_finite(highest)
    shift = 0.0
    if abs(highest) > MAX_EXPONENT:
        # The exponentials would not fit a float32.
        shift = highest
        logits = scratch = np.subtract(logits, np.float32(highest), out=scratch)
    return shift + math.log(float(np.exp(logits, out=scratch).sum()))


def likeliest(logits: Floats, number: int) -> npt.NDArray[np.intp]:
    """The `number` tokens of the highest logits, or all if there are no more, the highest first."""
    if not number:
        return np.zeros(0, np.intp)
    number = min(number, len(logits))
    num_blocks = len(logits) // _BLOCK
    if num_blocks <= number:
        among = np.arange(len(logits))
    else:
        # Each lies in one of as many blocks with the highest maxima, or in the rest at the end.
        maxima = logits[: num_blocks * _BLOCK].reshape(num_blocks, _BLOCK).max(axis=1)
        best = np.argpartition(maxima, -number)[-number:]
        among = (best[:, None] * _BLOCK + np.arange(_BLOCK)).ravel()
        among = np.concatenate((among, np.arange(num_blocks * _BLOCK, len(logits))))
    values = logits[among]
    at = np.argpartition(values, -number)[-number:]
    return among[at[np.argsort(-values[at], kind="stable")]]
