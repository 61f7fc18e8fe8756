"""Requests that must get the same answer: the first is decoded, the others share what it gives.

Greedy ones are twins if prompt and parameters are equal, sampled ones if their seed is too. While the first waits or
runs, its twins join it; for those that come later its answer is remembered, the last ones used and only so much text.
"""

import hashlib
from collections import OrderedDict
from dataclasses import fields
from operator import attrgetter

from batcher.types import Choice, SamplingParams
from workers.engines.llama.sequence import Sequence, TwinKey

#: Answers kept, and the characters of text in them: some 20 MB, or a few times that with long texts.
MAX_REMEMBERED = 32_768
MAX_REMEMBERED_CHARS = 16_000_000
#: A log-probability takes about the room of so many characters.
_CHARS_A_LOGPROB = 100

#: What shapes no completion, or only by the seed of its sequence or the tokens of its prompt, which are compared.
UNSHAPING = frozenset(
    (
        *("seed", "n", "best_of", "clips_max_tokens"),
        *("suffix", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"),
    )
)

#: What only shapes how tokens are drawn.
DRAWING = frozenset(("temperature", "top_p", "top_k", "min_p"))

_NAMES = [field.name for field in fields(SamplingParams) if field.name not in UNSHAPING]
_shaping = attrgetter(*_NAMES)
_shaping_greedy = attrgetter(*(name for name in _NAMES if name not in DRAWING))


class Twins:
    """Keeps the first of each kind, and the answers given. For the engine's thread."""

    def __init__(self, *, max_remembered: int = MAX_REMEMBERED, max_chars: int = MAX_REMEMBERED_CHARS) -> None:
        self._max_remembered = max_remembered
        self._max_chars = max_chars
        self._num_chars = 0
        self._firsts: dict[TwinKey, Sequence] = {}
        self._answers: OrderedDict[TwinKey, Choice] = OrderedDict()

    def join(self, sequence: Sequence) -> bool:
        """Whether `sequence` needs no decoding of its own. Then it has its answer now, or gets it with its twin.

        One that must be alone never does, nor a live one: its twin may be a row that has to wait.
        """
        if sequence.request.is_alone or sequence.request.is_live:
            return False
        key = sequence.twin_key = _key(sequence)
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
            sequence.answer_like(answer)
            return True
        first = self._firsts.get(key)
        if first is sequence:
            # It was away to get another matching.
            return False
        if first is not None and first.is_wanted:
            first.twins.append(sequence)
            return True
        self._firsts[key] = sequence
        return False

    def settle(self, sequence: Sequence, choice: Choice) -> None:
        """Remember the answer to a finished sequence."""
        key = sequence.twin_key
        if key is None or not self.drop(sequence):
            return
        self._answers[key] = choice
        self._num_chars += _num_chars(choice)
        while len(self._answers) > self._max_remembered or self._num_chars > self._max_chars:
            _, oldest = self._answers.popitem(last=False)
            self._num_chars -= _num_chars(oldest)

    def drop(self, sequence: Sequence) -> bool:
        """Let no more twins join a sequence. Returns whether any could until now."""
        key = sequence.twin_key
        if key is None or self._firsts.get(key) is not sequence:
            return False
        del self._firsts[key]
        return True


def _num_chars(choice: Choice) -> int:
    """About as many characters as take the room of an answer."""
    listed = choice.logprobs or ()
    return (
        len(choice.text)
        + len(choice.reasoning or "")
        + _CHARS_A_LOGPROB * (len(listed) + sum(len(token.top) for token in listed))
    )


def _key(sequence: Sequence) -> TwinKey:
    params, timeout_s = sequence.request.params, sequence.request.timeout_s
    digest = hashlib.blake2b(sequence.prompt.tobytes(), digest_size=16).digest()
    request = sequence.request
    # The same tokens are echoed as the text that they were, or as what they stand for.
    echo = (request.is_token_ids, request.scores_prompt) if request.is_echoing else None
    # Of chats alone: the same tokens as a plain prompt are answered with one text.
    thoughts = sequence.transcript.starts_in_thoughts if sequence.transcript is not None else None
    if params.is_greedy or sequence.scoring is not None:
        return digest, timeout_s, echo, thoughts, _shaping_greedy(params)
    return digest, timeout_s, echo, thoughts, request.seed, _shaping(params)
