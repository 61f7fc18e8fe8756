"""Log-probabilities of tokens and of the likeliest beside them, by the model's own logits."""

import math
from collections.abc import Callable

import numpy as np

from batcher.types import TokenLogprob
from workers.engines.llama.sampling.logits import Floats, Ids, candidates, check_finite
from workers.engines.llama.sampling.sampler import MAX_EXPONENT


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


def likeliest(logits: Floats, number: int) -> Ids:
    """The `number` tokens of the highest logits, or all if there are no more, the highest first."""
    if not number:
        return np.zeros(0, np.intp)
    among = candidates(logits, number)
    values = logits[among]
    number = min(number, len(values))
    at = np.argpartition(values, -number)[-number:]
    return among[at[np.argsort(-values[at], kind="stable")]]
