"""Log-probabilities of generated tokens, by the model's own logits."""

from collections.abc import Callable

import numpy as np

from batcher.types import TokenLogprob
from workers.engines.llama.sampling.sampler import Floats


def token_logprob(logits: Floats, token: int, *, num_top: int, piece: Callable[[int], bytes]) -> TokenLogprob:
    """The log-probability of `token`, and those of the `num_top` likeliest, under the softmax of `logits`.

    Shape: (vocabulary size,). Reads them all, as sampling does.
    """
    values = logits.astype(np.float64)
    highest = values.max()
    log_total = highest + np.log(np.exp(values - highest).sum())
    top: tuple[tuple[bytes, float], ...] = ()
    if num_top:
        num_top = min(num_top, len(values))
        likeliest = np.argpartition(values, -num_top)[-num_top:]
        likeliest = likeliest[np.argsort(-values[likeliest], kind="stable")]
        top = tuple((piece(one), float(values[one] - log_total)) for one in likeliest.tolist())
    return TokenLogprob(piece(token), float(values[token] - log_total), top)
