"""What a request has to know of its tokens one by one: what ends it, text as it comes, log-probabilities, penalties.

Sequences that want none of it have no transcript; their text is made at the end, all at once.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from batcher.types import SamplingParams, TokenLogprob
from workers.engines.llama.sampling.adjustment import Adjustment
from workers.engines.llama.sampling.logits import Floats
from workers.engines.llama.sampling.logprobs import token_logprob
from workers.engines.llama.sampling.text import TextBuffer

#: Receives text that is final, and the log-probabilities of the tokens that end in it.
Tell = Callable[[str, tuple[TokenLogprob, ...] | None], None]


@dataclass(frozen=True, slots=True)
class Echo:
    """What comes before the text of an answer, and before its log-probabilities."""

    text: str
    logprobs: tuple[TokenLogprob, ...] | None


class Transcript:
    """The tokens of one sequence as text. Mutable; for the engine's thread. `piece` gives the bytes of a token."""

    __slots__ = (
        "_buffer",
        "_echo",
        "_ends",
        "_ignores_end",
        "_includes_stop",
        "_logprobs",
        "_min_tokens",
        "_num_chars_told",
        "_num_listed",
        "_num_top",
        "_piece",
        "_stop_ids",
        "_tell",
        "adjustment",
    )

    def __init__(
        self,
        params: SamplingParams,
        *,
        piece: Callable[[int], bytes],
        tell: Tell | None,
        adjustment: Adjustment | None = None,
    ) -> None:
        self.adjustment = adjustment
        self._piece = piece
        self._tell = tell
        self._buffer = TextBuffer(params.stop, includes_stop=params.include_stop_str_in_output)
        self._stop_ids = frozenset(params.stop_token_ids)
        self._ignores_end = params.ignore_eos
        self._includes_stop = params.include_stop_str_in_output
        self._min_tokens = params.min_tokens
        self._echo = Echo("", None)
        self._num_top = params.logprobs
        self._logprobs: list[TokenLogprob] = []
        #: Of each token, the bytes up to its end.
        self._ends: list[int] = []
        self._num_chars_told = self._num_listed = 0

    def ends_at(self, token: int) -> bool:
        """Whether the completion ends with `token`, which ends a text of the model, and which then is no part of it."""
        return len(self._ends) >= self._min_tokens and (not self._ignores_end or token in self._stop_ids)

    def begin(self, echo: Echo) -> None:
        """Put the prompt in front. Before any token is added."""
        self._echo = echo
        if self._tell is not None:
            self._tell(echo.text, echo.logprobs)

    def append_end(self, token: int, logits: Floats) -> None:
        """Note the token that ended the completion and is no part of its text.

        Behind a prompt with log-probabilities it is listed, so that there all is found that was generated.
        """
        if self._echo.logprobs is not None:
            self._logprobs.append(token_logprob(logits, token, num_top=self._num_top or 0, piece=self._piece))
            self._ends.append(self._ends[-1] if self._ends else 0)

    def append(self, token: int, logits: Floats) -> bool:
        """Add a token that was sampled from `logits`. Returns whether the completion ends with it.

        That is where a stop string is complete, or the token one to stop at. Nothing ends it before `min_tokens`.
        """
        is_last = token in self._stop_ids and len(self._ends) >= self._min_tokens
        if is_last and not self._includes_stop:
            self.append_end(token, logits)
            return True
        if self._num_top is not None:
            self._logprobs.append(token_logprob(logits, token, num_top=self._num_top, piece=self._piece))
        if self.adjustment is not None:
            self.adjustment.count(token)
        piece = self._piece(token)
        self._ends.append((self._ends[-1] if self._ends else 0) + len(piece))
        is_stopped = self._buffer.append(piece, may_stop=len(self._ends) > self._min_tokens) or is_last
        if self._tell is not None and not is_stopped:
            text = self._buffer.take()
            self._tell_new(text, bisect.bisect_right(self._ends, self._buffer.num_taken))
        return is_stopped

    def finish(self) -> tuple[str, tuple[TokenLogprob, ...] | None]:
        """The whole text, and the log-probabilities of its tokens. Tells what was not told yet."""
        text, end = self._buffer.text(), self._buffer.num_bytes
        # Those that begin before the end: of a token that a stop string cuts, a part is in the text.
        num_tokens = len(self._ends)
        if self._buffer.is_stopped:
            num_tokens = min(num_tokens, 1 + bisect.bisect_left(self._ends, end)) if end else 0
        if self._tell is not None:
            self._tell_new(text[self._num_chars_told :], num_tokens)
        if self._num_top is None:
            return self._echo.text + text, None
        return self._echo.text + text, (*(self._echo.logprobs or ()), *self._logprobs[:num_tokens])

    def _tell_new(self, text: str, num_tokens: int) -> None:
        """Tell `text`, if there is any, with the log-probabilities of the tokens up to `num_tokens`."""
        assert self._tell is not None
        listed: tuple[TokenLogprob, ...] | None = None
        if self._num_top is not None:
            listed = tuple(self._logprobs[self._num_listed : num_tokens])
            self._num_listed = max(self._num_listed, num_tokens)
        if text or listed:
            self._num_chars_told += len(text)
            self._tell(text, listed)


def transcript_of(
    params: SamplingParams,
    *,
    piece: Callable[[int], bytes],
    tell: Tell | None,
    adjustment: Adjustment | None = None,
    is_echoing: bool = False,
) -> Transcript | None:
    """None for a request that can be given its text at the end, all at once."""
    is_plain = not params.stop and not params.stop_token_ids and not params.ignore_eos and not params.min_tokens
    if tell is None and not is_echoing and params.logprobs is None and adjustment is None and is_plain:
        return None
    return Transcript(params, piece=piece, tell=tell, adjustment=adjustment)
