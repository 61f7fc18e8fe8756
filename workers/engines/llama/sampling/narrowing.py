"""The tokens that top_k and min_p leave, where these are few: found by the logits, so that no others have a weight."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from batcher.types import SamplingParams
from workers.engines.llama.sampling.logits import Floats, Ids, candidates, check_finite

Doubles = npt.NDArray[np.float64]

#: More tokens of a vocabulary than one in so many are not few: for them, passes over the whole take less.
_FEW = 64
#: A lower min_p hardly leaves few, so that is not looked for.
_LEAST_MIN_P = 0.01
#: A top_k of more than one token in so many is looked for among all weights.
_FEW_TOP = 256


@dataclass(frozen=True, slots=True)
class Kept:
    """Tokens in ascending order, and their weights: exp(logit / temperature), times a constant. None is 0."""

    tokens: Ids
    weights: Doubles


def may_leave_few(params: SamplingParams, vocab_size: int) -> bool:
    """Whether `keep_few` looks for what is left."""
    return 0 < params.top_k < vocab_size // _FEW_TOP or params.min_p >= _LEAST_MIN_P


def keep_few(logits: Floats, params: SamplingParams) -> Kept | None:
    """What top_k and min_p leave; None where they leave many, or all. Of equal logits those of lower ids stay.

    Shape: (vocabulary size,). Raises EngineError where a logit is no number.
    """
    if not may_leave_few(params, len(logits)):
        return None
    if 0 < params.top_k < len(logits) // _FEW_TOP:
        tokens = candidates(logits, params.top_k)
        values = logits[tokens]
        highest = float(values.max())
        is_kept = _is_among_highest(values, params.top_k)
        tokens, values = tokens[is_kept], values[is_kept]
    else:
        highest = float(logits.max())
        # A little lower than the lowest that stays, which is decided below, in double precision.
        bound = highest + params.temperature * math.log(params.min_p)
        is_high = logits >= np.float32(bound - 1e-5 * (1.0 + abs(highest) + abs(bound)))
        if np.count_nonzero(is_high) > len(logits) // _FEW:
            return None
        tokens = np.flatnonzero(is_high)
        values = logits[tokens]
    check_finite(highest)
    weights = np.exp((values.astype(np.float64) - highest) / params.temperature)
    is_kept = (weights > 0.0) & (weights >= params.min_p)
    return Kept(tokens[is_kept], weights[is_kept])


def keep_allowed(tokens: Ids, logits: Floats, params: SamplingParams) -> Kept:
    """What top_k and min_p leave of a few `tokens`, in ascending order, whose logits these are.

    Shape: (n,) each. Raises EngineError where a logit is no number.
    """
    if 0 < params.top_k < len(tokens):
        is_kept = _is_among_highest(logits, params.top_k)
        tokens, logits = tokens[is_kept], logits[is_kept]
    highest = float(logits.max())
    check_finite(highest)
    weights = np.exp((logits.astype(np.float64) - highest) / params.temperature)
    is_kept = (weights > 0.0) & (weights >= params.min_p)
    return Kept(tokens[is_kept], weights[is_kept])


def _is_among_highest(values: Floats, number: int) -> npt.NDArray[np.bool_]:
    """Which of `values` are the `number` highest, the first ones of those equal to the last."""
    least = np.partition(values, -number)[-number]
    is_kept: npt.NDArray[np.bool_] = values > least
    is_kept[np.flatnonzero(values == least)[: number - int(np.count_nonzero(is_kept))]] = True
    return is_kept
