"""What a request changes in the logits before a token is sampled: bias, penalties, tokens that may not come now.

A bias is added first. Then a token that stands in the prompt or in what was generated loses by `repetition_penalty`:
a logit above 0 is divided by it, another multiplied. Then one that was generated c times loses c * frequency_penalty,
and presence_penalty once if c is not 0. At last the ends of the text are ruled out before `min_tokens`, and tokens that
would complete one of the `bad_words`. That is vLLM's order, but that it rules out before it adds, with the same result.
"""

import numpy as np
import numpy.typing as npt

from batcher.types import SamplingParams
from workers.engines.llama.kv_cache import Tokens
from workers.engines.llama.sampling.bad_words import NO_BAD_WORDS, BadWords
from workers.engines.llama.sampling.logits import Floats

#: The logit of a token that is ruled out: no weight beside any other. Not infinite, so that there are still numbers to
#: sample from where a request rules out every token.
_RULED_OUT = -1e31

#: No penalty brings a logit beyond this, so that a tiny or a huge one does not look like a model that is broken.
_MOST = 1e30


class Adjustment:
    """The changes to one sequence's logits. Mutable.

    `end_ids` are the tokens that the model ends a text with.
    """

    __slots__ = (
        "_added",
        "_bad_words",
        "_bias",
        "_ends",
        "_frequency",
        "_ids",
        "_min_tokens",
        "_presence",
        "_prompt",
        "_repetition",
        "_seen",
        "_values",
    )

    def __init__(
        self, params: SamplingParams, *, prompt: Tokens, end_ids: Tokens, bad_words: BadWords = NO_BAD_WORDS
    ) -> None:
        self._presence = params.presence_penalty
        self._frequency = params.frequency_penalty
        self._repetition = params.repetition_penalty
        # An end that a constraint allows is one to be ignored, too, where something else may come.
        self._min_tokens = params.max_tokens if _ignores_ends(params) else params.min_tokens
        self._ends = np.append(end_ids, np.array(params.stop_token_ids, np.int32)) if self._min_tokens else end_ids[:0]
        self._bad_words = bad_words
        is_scaling = self._repetition != 1.0
        #: Each token of the prompt once, where it matters.
        self._prompt = np.unique(prompt) if is_scaling else prompt[:0]
        # A bias and the penalties for what was generated are one addition, unless something comes between them.
        self._bias = _as_arrays(dict(params.logit_bias) if is_scaling else {})
        self._added = {} if is_scaling else dict(params.logit_bias)
        self._ids, self._values = _as_arrays(self._added)
        self._seen: set[int] = set()

    def count(self, token: int) -> None:
        """Note a generated token."""
        if not (self._presence or self._frequency):
            return
        first = 0.0 if token in self._seen else self._presence
        self._seen.add(token)
        self._added[token] = self._added.get(token, 0.0) - first - self._frequency
        self._ids, self._values = _as_arrays(self._added)

    def apply(self, logits: Floats, generated: Tokens) -> Floats:
        """A copy of `logits` with the changes, for what comes after the tokens `generated`.

        Shape: (vocabulary size,).
        """
        adjusted = logits.copy()
        if self._repetition != 1.0:
            ids, values = self._bias
            adjusted[ids] += values
            self._scale(adjusted, np.append(self._prompt, generated))
        adjusted[self._ids] += self._values
        if len(generated) < self._min_tokens:
            adjusted[self._ends] = _RULED_OUT
        if self._bad_words.is_any:
            adjusted[self._bad_words.ends(generated)] = _RULED_OUT
        return adjusted

    def _scale(self, logits: Floats, ids: Tokens) -> None:
        """Have the tokens `ids` lose by the repetition penalty, each once however often it is there."""
        values = logits[ids].astype(np.float64)
        with np.errstate(over="ignore"):
            scaled = np.where(values > 0, values / self._repetition, values * self._repetition)
        logits[ids] = scaled.clip(-_MOST, _MOST)


def adjustment_of(
    params: SamplingParams, *, prompt: Tokens, end_ids: Tokens, bad_words: BadWords = NO_BAD_WORDS
) -> Adjustment | None:
    """None for a request that changes nothing."""
    if (
        params.logit_bias
        or params.presence_penalty
        or params.frequency_penalty
        or params.repetition_penalty != 1.0
        or params.min_tokens
        or _ignores_ends(params)
        or bad_words.is_any
    ):
        return Adjustment(params, prompt=prompt, end_ids=end_ids, bad_words=bad_words)
    return None


def _ignores_ends(params: SamplingParams) -> bool:
    return params.ignore_eos and params.constraint is not None


def _as_arrays(added: dict[int, float]) -> tuple[npt.NDArray[np.intp], Floats]:
    return np.fromiter(added.keys(), np.intp, len(added)), np.fromiter(added.values(), np.float32, len(added))
