"""Requests that must get the same answer: the first is decoded, the others share what it gives.

Greedy ones are twins if prompt and parameters are equal, sampled ones if their seed is too. While the first waits or
runs, its twins join it; for those that come later its answer is remembered, the last ones used and only so much text.
"""

import hashlib
from collections import OrderedDict

from batcher.types import Choice
from workers.engine.sampler import MIN_TEMPERATURE
from workers.engine.sequence import Sequence

#: Answers kept, and the characters of text in them: some 20 MB, or a few times that with long texts.
MAX_REMEMBERED = 32_768
MAX_REMEMBERED_CHARS = 16_000_000

Key = tuple[object, ...]


class Twins:
    """Keeps the first of each kind, and the answers given. For the engine's thread, but for `key`."""

    def __init__(self, *, max_remembered: int = MAX_REMEMBERED, max_chars: int = MAX_REMEMBERED_CHARS) -> None:
        self._max_remembered = max_remembered
        self._max_chars = max_chars
        self._num_chars = 0
        self._firsts: dict[Key, Sequence] = {}
        self._answers: OrderedDict[Key, Choice] = OrderedDict()

    def join(self, sequence: Sequence) -> bool:
        """Whether `sequence` needs no decoding of its own. Then it has its answer now, or gets it with its twin.

        One that must be alone never does.
        """
        if sequence.request.is_alone:
            return False
        key = _key(sequence)
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
            sequence.answer_like(answer)
            return True
        first = self._firsts.get(key)
        if first is not None and first.is_wanted:
            first.twins.append(sequence)
            return True
        self._firsts[key] = sequence
        return False

    def settle(self, sequence: Sequence, choice: Choice) -> None:
        """Remember the answer to a finished sequence."""
        key = _key(sequence)
        if self._firsts.get(key) is not sequence:
            return
        del self._firsts[key]
        self._answers[key] = choice
        self._num_chars += len(choice.text)
        while len(self._answers) > self._max_remembered or self._num_chars > self._max_chars:
            _, oldest = self._answers.popitem(last=False)
            self._num_chars -= len(oldest.text)

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence that gets no answer."""
        key = _key(sequence)
        if self._firsts.get(key) is sequence:
            del self._firsts[key]


def _key(sequence: Sequence) -> Key:
    params, timeout_s = sequence.request.params, sequence.request.timeout_s
    digest = hashlib.blake2b(sequence.prompt.tobytes(), digest_size=16).digest()
    if params.temperature < MIN_TEMPERATURE:
        return digest, params.max_tokens, params.stop, timeout_s
    return digest, params.max_tokens, params.stop, timeout_s, params.temperature, params.top_p, params.seed
