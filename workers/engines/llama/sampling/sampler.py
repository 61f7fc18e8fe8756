"""Choosing the next token: greedy, or drawn at a temperature from the nucleus, with a seed of its own per sequence.

Nothing narrows the choice unless it is asked for: llama.cpp's own defaults (top_k 40, min_p 0.05, repeat penalty) are
never applied. The temperature comes first, then min_p and top_k, then top_p of what these leave, as vLLM and Hugging
Face transformers have it.

top_p needs no sort: a token is drawn from the whole distribution and kept if it is in the nucleus, that is, if the
tokens more probable than it together have less than top_p; otherwise it and all less probable ones are struck out and
another is drawn. The outcome is distributed exactly as the renormalised nucleus (the rejection method with a rising
pivot of FlashInfer's sampling kernels, https://flashinfer.ai/2025/03/10/sampling.html).
"""

import math
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt

from batcher.types import SamplingParams, splitmix64
from workers.engines.llama.sampling.logits import Floats, Ids, NotANumberError, check_finite
from workers.engines.llama.sampling.masking import few_allowed, masked
from workers.engines.llama.sampling.narrowing import Kept, keep_allowed, keep_few, may_leave_few

Doubles = npt.NDArray[np.float64]

#: Probabilities are summed in blocks of float32, the blocks in float64: exact enough for any vocabulary, and fast.
_BLOCK = 256

#: exp of this, summed over a block, is far inside float32, and so is exp of minus this with a long tail below it.
MAX_EXPONENT = 40.0

#: With logits within so much, times the temperature, of 0, the next row's are tried as they are.
_TRIED_EXPONENT = 30.0
#: No logit was further from 0 than MAX_EXPONENT where all weights sum up to between these two, the first times the
#: size of the vocabulary. A thousandth is more than rounding makes of them.
_LEAST_MEAN = math.exp(-MAX_EXPONENT) * 1.001
_MOST = math.exp(MAX_EXPONENT) * 0.999

#: Threads share a step's rows from here on. With fewer tokens a pass over a row takes some 20 us, and what another
#: thread gains is lost in waiting for Python's lock after each of them.
MIN_SHARED_VOCAB = 100_000
#: Rows that take long for each thread, at least: fewer are done before it has woken up.
_MIN_SHARED_ROWS = 2
#: With more of them, what each does under Python's lock is all that counts.
_MAX_THREADS = 8

#: A nucleus is probed in this many times 1 - top_p of the blocks: four fifths of the draws are then seen to be inside.
_PROBED = 5.0

#: In place of one that can't be sampled.
NO_TOKEN = -1

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


#: What may come: any token (None), those whose bits are set, or one that must. Of a mask bit i of word j is of token
#: 32 * j + i. Shape: (vocabulary size / 32,).
Ruling = npt.NDArray[np.uint32] | int | None

_Row = tuple[Floats, SamplingParams, Draws, Ruling]


class Sampler:
    """Samples rows of logits over one vocabulary, in up to `num_threads` threads. One caller at a time.

    What is drawn for a row depends on the row, its parameters and its draws alone.
    """

    def __init__(self, vocab_size: int, *, num_threads: int = 1) -> None:
        num_threads = min(num_threads, _MAX_THREADS) if vocab_size >= MIN_SHARED_VOCAB else 1
        self._vocab_size = vocab_size
        self._samplers = [RowSampler(vocab_size) for _ in range(num_threads)]
        self._helpers = ThreadPoolExecutor(num_threads, "sampler")

    def close(self) -> None:
        """End the threads."""
        self._helpers.shutdown()

    def sample(
        self,
        logits: Iterable[Floats],
        params: Sequence[SamplingParams],
        draws: Sequence[Draws],
        rulings: Sequence[Ruling] | None = None,
    ) -> list[int]:
        """One token for each row of `logits`.

        Shape: (n, vocab_size), or n rows; with n entries in `params`, `draws` and, if any is ruled, `rulings`. Advances
        the draws, but where one token must come, and leaves the logits alone. NO_TOKEN for a row that holds what is no
        number: the model or its computation is broken.
        """
        rows = list(zip(logits, params, draws, [None] * len(params) if rulings is None else rulings, strict=True))
        num_threads = len(self._samplers)
        if num_threads > 1:
            num_threads = min(num_threads, sum(map(self._takes_long, params)) // _MIN_SHARED_ROWS)
        tokens = [0] * len(rows)
        left = deque(range(len(rows)))
        helpers = [self._helpers.submit(_sample_rows, s, rows, left, tokens) for s in self._samplers[1:num_threads]]
        try:
            _sample_rows(self._samplers[0], rows, left, tokens)
        finally:
            left.clear()
            # One that has not begun has nothing left to do, and is not waited for: no processor may be free.
            helpers = [each for each in helpers if not each.cancel()]
            wait(helpers)
        for helper in helpers:
            helper.result()
        return tokens

    def _takes_long(self, params: SamplingParams) -> bool:
        """Whether a row has passes that are long enough to be worth another thread."""
        return not params.is_greedy and not may_leave_few(params, self._vocab_size)


def _sample_rows(sampler: "RowSampler", rows: Sequence[_Row], left: deque[int], tokens: list[int]) -> None:
    """Sample one row after the other, as long as there are numbers of rows in `left`, which other threads take, too."""
    # Weights that overflow are noticed by their sum.
    with np.errstate(over="ignore"):
        while True:
            try:
                at = left.popleft()
            except IndexError:
                return
            try:
                tokens[at] = sampler.sample(*rows[at])
            except NotANumberError:
                tokens[at] = NO_TOKEN


class RowSampler:
    """Samples a row at a time, whose 4 bytes a token stay in the processor's cache from the first pass to the last.

    Not thread-safe: it owns its scratch memory.
    """

    def __init__(self, vocab_size: int) -> None:
        num_blocks = -(-vocab_size // _BLOCK)
        # Whole blocks; the places past the vocabulary keep a weight of 0.
        self._padded = np.zeros(num_blocks * _BLOCK, np.float32)
        self._weights = self._padded[:vocab_size]
        self._blocks = self._padded.reshape(num_blocks, _BLOCK)
        self._is_marked = np.zeros(num_blocks * _BLOCK, np.bool_)
        self._marks = np.zeros(num_blocks * _BLOCK, np.float32)
        #: About the highest logit of the row before.
        self._likely_highest = 0.0

    def sample(self, logits: Floats, params: SamplingParams, draws: Draws, ruling: Ruling = None) -> int:
        """A token for one row. Raises EngineError."""
        if ruling is not None:
            if isinstance(ruling, int):
                return ruling
            allowed = few_allowed(ruling, len(logits))
            if allowed is not None:
                return _draw_allowed(allowed, logits[allowed], params, draws)
            logits = masked(logits, ruling)
        if params.is_greedy:
            best = int(logits.argmax())
            check_finite(float(logits[best]))
            return best
        is_cut = 0 < params.top_k < len(self._weights)
        if is_cut or params.min_p > 0.0:
            if (kept := keep_few(logits, params)) is not None:
                return _draw_among(kept, params.top_p, draws)
            self._weigh(logits, params.temperature)
            if params.min_p > 0.0:
                self._strike_below(params.min_p * float(self._weights.max()))
            if is_cut:
                self._strike_all_but(params.top_k)
            sums = self._sum_blocks()
        else:
            sums = self._weigh_and_sum(logits, params.temperature)
        if params.top_p < 1.0:
            return self._draw_from_nucleus(params.top_p, sums, draws)
        return self._draw(sums.cumsum(), draws)

    def _weigh_and_sum(self, logits: Floats, temperature: float) -> Doubles:
        """Do what `_weigh` does, and return the sums of the blocks.

        Looking for the highest logit is a pass over memory that nothing has read yet, a fifth of the time of all: where
        the row before had none that was far from 0, the sum of the weights tells as well whether they fit.
        """
        if abs(self._likely_highest) <= _TRIED_EXPONENT * temperature:
            self._exponentiate(logits, temperature)
            sums = self._sum_blocks()
            total = float(sums.sum())
            if _LEAST_MEAN * len(self._weights) < total < _MOST:
                self._likely_highest = math.log(total) * temperature
                return sums
        self._weigh(logits, temperature)
        return self._sum_blocks()

    def _weigh(self, logits: Floats, temperature: float) -> None:
        """Set the weights to exp(logit / temperature), times a constant where they would not fit a float32.

        Raises EngineError where no logit is a finite number, or one is none.
        """
        highest = self._likely_highest = float(logits.max())
        check_finite(highest)
        if abs(highest) > MAX_EXPONENT * temperature:
            logits = np.subtract(logits, np.float32(highest), out=self._weights)
        self._exponentiate(logits, temperature)

    def _exponentiate(self, logits: Floats, temperature: float) -> None:
        if temperature != 1.0:
            logits = np.multiply(logits, np.float32(1.0 / temperature), out=self._weights)
        np.exp(logits, out=self._weights)

    def _strike_below(self, least: float) -> None:
        """Set the weights that are less than `least` to 0."""
        np.greater_equal(self._padded, least, out=self._is_marked)
        np.copyto(self._marks, self._is_marked)
        np.multiply(self._padded, self._marks, out=self._padded)

    def _strike_all_but(self, number: int) -> None:
        """Set all weights but the `number` largest to 0. Of equal ones those of lower ids stay."""
        least = float(np.partition(self._padded, -number)[-number])
        if not least:
            return
        self._strike_below(least)
        num_over = int(np.count_nonzero(self._is_marked)) - number
        if num_over:
            self._padded[np.flatnonzero(np.equal(self._padded, least))[-num_over:]] = 0.0

    def _sum_blocks(self) -> Doubles:
        # einsum adds rows up three times as fast as sum(axis=1), and starts no threads of its own as a matmul does.
        sums: Floats = np.einsum("ij->i", self._blocks)
        return sums.astype(np.float64)

    def _draw(self, sums: Doubles, draws: Draws) -> int:
        """The token where the running sum of the weights passes a random share of the total.

        `sums`: the running sum at the end of each block.
        """
        target = draws.next() * float(sums[-1])
        block = min(int(sums.searchsorted(target, "right")), len(sums) - 1)
        if block:
            target -= float(sums[block - 1])
        inside = self._blocks[block].astype(np.float64).cumsum()
        index = int(inside.searchsorted(target, "right"))
        if index == _BLOCK:
            # Rounding carried the target past the block's own sum: the last token so far with any weight.
            return int(np.flatnonzero(self._padded[: (block + 1) * _BLOCK])[-1])
        return block * _BLOCK + index

    def _draw_from_nucleus(self, top_p: float, sums: Doubles, draws: Draws) -> int:
        """Strikes out the weights of the tokens that it finds outside the nucleus. `sums`: of the blocks."""
        weights, num_blocks = self._padded, len(self._blocks)
        num_probed = math.ceil(_PROBED * (1.0 - top_p) * num_blocks)
        running = sums.cumsum()
        # The most likely token, with nothing above it, is in the nucleus even where the product underflows.
        limit = max(top_p * float(running[-1]), sys.float_info.min)
        while True:
            token = self._draw(running, draws)
            pivot = weights[token]
            # First two bounds that cost little; each counts the token itself as well.
            room = limit + float(pivot)
            # No block of a smaller sum has a token as probable as this one: enough for a peaked distribution.
            if float(sums.dot(sums >= pivot)) < room:
                return token
            # For a flat one, mostly a part of the blocks holds enough less probable tokens.
            if num_probed <= num_blocks // 2:
                rest = float(running[-1] - running[num_probed - 1])
                if rest + self._sum_marked(np.greater_equal, pivot, num_probed) < room:
                    return token
            above = self._sum_marked(np.greater, pivot, num_blocks)
            # Among equally probable tokens the lower id goes first.
            is_tied = np.equal(weights[:token], pivot, out=self._is_marked[:token])
            num_tied = int(np.count_nonzero(is_tied))
            if above + float(pivot) * num_tied < limit:
                return token
            np.multiply(weights, self._marks, out=weights)
            if num_tied:
                weights[:token][is_tied] = pivot
            sums = self._sum_blocks()
            running = sums.cumsum()

    def _sum_marked(self, compare: np.ufunc, pivot: np.float32, num_blocks: int) -> float:
        """The sum of the weights in the first blocks that compare so with the pivot. Their marks become 1, others 0."""
        # A product with ones and zeros, because indexing by booleans takes longer than exp where it selects many.
        size = num_blocks * _BLOCK
        np.copyto(self._marks[:size], compare(self._padded[:size], pivot, out=self._is_marked[:size]))
        sums: Floats = np.vecdot(self._blocks[:num_blocks], self._marks[:size].reshape(num_blocks, _BLOCK))
        return float(sums.sum(dtype=np.float64))


def _draw_allowed(tokens: Ids, logits: Floats, params: SamplingParams, draws: Draws) -> int:
    """One of a few tokens."""
    if len(tokens) == 1:
        return int(tokens[0])
    if params.is_greedy:
        best = int(logits.argmax())
        check_finite(float(logits[best]))
        return int(tokens[best])
    return _draw_among(keep_allowed(tokens, logits, params), params.top_p, draws)


def _draw_among(kept: Kept, top_p: float, draws: Draws) -> int:
    """A token of the nucleus of `kept`, in the way of the whole vocabulary."""
    tokens, weights = kept.tokens, kept.weights
    limit = max(top_p * float(weights.sum()), sys.float_info.min)
    while True:
        running = weights.cumsum()
        at = min(int(running.searchsorted(draws.next() * float(running[-1]), "right")), len(weights) - 1)
        is_ahead = weights > weights[at]
        is_ahead[:at] |= weights[:at] == weights[at]
        if top_p >= 1.0 or float(weights[is_ahead].sum()) < limit:
            return int(tokens[at])
        tokens, weights = tokens[is_ahead], weights[is_ahead]
