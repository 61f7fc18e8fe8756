"""Log-probabilities of prompts: what is left of the logits at each token of a prompt, one row a KV cell.

A request that wants its prompt echoed with log-probabilities needs the model's logits behind each of its tokens. They
are a float for each token of the vocabulary, so a step asks for no more than `max_scored_tokens` of them, and each row
of them is reduced, right after the decode, to the log-probability of the token that follows and the likeliest tokens.

What is left lies beside the KV cache, slot by slot: a prompt that begins like one whose scores are there takes them
over with its cells. Plain numpy, no llama.cpp.
"""

import numpy as np
import numpy.typing as npt

from workers.engines.llama.sampling.logits import NotANumberError
from workers.engines.llama.sampling.logprobs import likeliest, log_sum_exp

Tokens = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

#: The likeliest tokens that are kept of each row: as many as the documented API gives.
NUM_TOP = 5

#: Bytes of logits of prompts in one step, of the largest vocabularies.
_MAX_LOGITS_BYTES = 64 << 20
#: Rows in one step: a longer one would hold up those that run beside it.
_MAX_ROWS = 128


def max_scored_tokens(vocab_size: int) -> int:
    """How many prompt tokens a step may want logits of, beside one for each slot."""
    return max(1, min(_MAX_ROWS, _MAX_LOGITS_BYTES // (4 * vocab_size)))


class ScoreTable:
    """The scores of the tokens in each slot: row p of a slot has what the model says after its first p + 1 tokens.

    logprobs      shape (num_slots, cells): the natural log-probability of the token at p + 1
    top_tokens    shape (num_slots, cells, NUM_TOP): the likeliest tokens there, the likeliest first; -1 past the
                  end of a smaller vocabulary
    top_logprobs  the same shape: their log-probabilities
    """

    def __init__(self, *, num_slots: int, cells: int) -> None:
        # Zeros take no memory until they are written, which only requests do that want them.
        self.logprobs: Doubles = np.zeros((num_slots, cells), np.float64)
        self.top_tokens: Tokens = np.zeros((num_slots, cells, NUM_TOP), np.int32)
        self.top_logprobs: Doubles = np.zeros((num_slots, cells, NUM_TOP), np.float64)

    def copy(self, source: int, target: int, count: int) -> None:
        """Have the first `count` rows of `target` be those of `source`. Mutates."""
        if source != target and count:
            for column in (self.logprobs, self.top_tokens, self.top_logprobs):
                column[target, :count] = column[source, :count]

    def put(
        self,
        logits: Floats,
        rows: npt.NDArray[np.intp],
        *,
        slots: Tokens,
        positions: Tokens,
        next_tokens: Tokens,
    ) -> set[int]:
        """Reduce some `rows` of `logits`, and keep what is left at their slots and positions. Mutates.

        Shape of `logits`: (m, vocabulary size); of the others: (n,). Returns the slots of rows that hold what is no
        number, of which nothing is kept.
        """
        spoiled = set()
        scratch = np.empty(logits.shape[1], np.float32)
        for at, slot, position, token in zip(
            rows.tolist(), slots.tolist(), positions.tolist(), next_tokens.tolist(), strict=True
        ):
            row = logits[at]
            try:
                log_total = log_sum_exp(row, scratch)
            except NotANumberError:
                spoiled.add(slot)
                continue
            top = likeliest(row, NUM_TOP)
            self.logprobs[slot, position] = float(row[token]) - log_total
            self.top_tokens[slot, position] = -1
            self.top_tokens[slot, position, : len(top)] = top
            self.top_logprobs[slot, position, : len(top)] = row[top].astype(np.float64) - log_total
        return spoiled
