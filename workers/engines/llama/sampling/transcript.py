"""What a request has to know of its tokens one by one: what ends it, text as it comes, log-probabilities, penalties.

Sequences that want none of it have no transcript; their text is made at the end, all at once.
"""

import bisect
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from batcher.types import Reasoning, SamplingParams, TokenLogprob
from workers.engines.llama.sampling.adjustment import Adjustment
from workers.engines.llama.sampling.logits import Floats
from workers.engines.llama.sampling.logprobs import token_logprob
from workers.engines.llama.sampling.text import TextBuffer
from workers.engines.llama.sampling.thoughts import Kind, Piece, ThoughtSplitter, ThoughtText

#: Of tokens in a row, where they are wanted.
Logprobs = tuple[TokenLogprob, ...] | None

#: Receives text that is final, the log-probabilities of the tokens that end in it, and thoughts that came before.
Tell = Callable[[str, Logprobs, str], None]


@dataclass(frozen=True, slots=True)
class Echo:
    """What comes before the text of an answer, and before its log-probabilities."""

    text: str
    logprobs: tuple[TokenLogprob, ...] | None


@dataclass(slots=True)
class _Unsettled:
    """A token of which `num_bytes` are held back: with them it is not known yet whether it is thoughts or text."""

    num_bytes: int
    logprob: TokenLogprob | None
    kind: Kind
    #: Bytes of it that are text.
    num_text: int = 0


class Transcript:
    """The tokens of one sequence as text. Mutable; for the engine's thread. `piece` gives the bytes of a token.

    Where a `splitter` tells thoughts from text, stop strings and log-probabilities are those of the text alone.
    """

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
        "_num_tokens",
        "_num_top",
        "_piece",
        "_splitter",
        "_stop_ids",
        "_tell",
        "_tells_thoughts",
        "_thoughts",
        "_unsettled",
        "_was",
        "adjustment",
        "num_reasoning_tokens",
    )

    def __init__(
        self,
        params: SamplingParams,
        *,
        piece: Callable[[int], bytes],
        tell: Tell | None,
        adjustment: Adjustment | None = None,
        splitter: ThoughtSplitter | None = None,
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
        #: Of each token of the text, the bytes up to its end.
        self._ends: list[int] = []
        self._num_chars_told = self._num_listed = self._num_tokens = 0
        self._splitter = splitter
        self._thoughts = ThoughtText()
        self._tells_thoughts = params.reasoning == Reasoning.SPLIT
        self._unsettled: deque[_Unsettled] = deque()
        #: What the last bytes were.
        self._was = Kind.NOTHING
        #: Tokens that are thoughts or marks of them.
        self.num_reasoning_tokens = 0

    @property
    def starts_in_thoughts(self) -> bool | None:
        """Whether the completion begins with thoughts; None where they are not told from the text."""
        return None if self._splitter is None else self._splitter.starts_open

    @property
    def is_in_thoughts(self) -> bool:
        """Whether what comes next is thoughts, or the mark that ends them."""
        return self._splitter is not None and self._splitter.kind is Kind.THOUGHT

    @property
    def reasoning(self) -> str | None:
        """The thoughts, once `finish` was called; None where there were none or nobody wants them."""
        is_told = self._splitter is not None and self._splitter.has_thoughts and self._tells_thoughts
        return self._thoughts.text() if is_told else None

    def ends_at(self, token: int) -> bool:
        """Whether the completion ends with `token`, which ends a text of the model, and which then is no part of it."""
        return self._num_tokens >= self._min_tokens and (not self._ignores_end or token in self._stop_ids)

    def begin(self, echo: Echo) -> None:
        """Put the prompt in front. Before any token is added."""
        self._echo = echo
        if self._tell is not None:
            self._tell(echo.text, echo.logprobs, "")

    @property
    def num_echoed(self) -> int:
        """Characters of the prompt in front of the text."""
        return len(self._echo.text)

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
        is_last = token in self._stop_ids and self._num_tokens >= self._min_tokens
        if is_last and not self._includes_stop:
            self.append_end(token, logits)
            return True
        logprob = None
        if self._num_top is not None:
            logprob = token_logprob(logits, token, num_top=self._num_top, piece=self._piece)
        if self.adjustment is not None:
            self.adjustment.count(token)
        self._num_tokens += 1
        is_stopped = self._add(token, logprob) or is_last
        if self._tell is not None and not is_stopped:
            self._tell_thoughts(self._thoughts.take())
            text = self._buffer.take()
            self._tell_new(text, bisect.bisect_right(self._ends, self._buffer.num_taken))
        return is_stopped

    def _add(self, token: int, logprob: TokenLogprob | None) -> bool:
        """Add the bytes of a token. Returns whether a stop string is complete."""
        piece = self._piece(token)
        if self._splitter is not None:
            piece = piece or self._splitter.name(token)
            kind = Kind.NOTHING if piece else self._splitter.kind
            self._unsettled.append(_Unsettled(len(piece), logprob, kind))
            is_stopped = self._sort(self._splitter.feed(piece))
            self._settle()
            return is_stopped
        self._list(len(piece), logprob)
        return self._buffer.append(piece, may_stop=self._num_tokens > self._min_tokens)

    def _sort(self, pieces: Iterable[Piece]) -> bool:
        """Put bytes where they belong. Returns whether a stop string is complete, behind which all is left out."""
        for kind, data in pieces:
            is_apart = self._was is not kind
            self._was = kind
            if kind is Kind.THOUGHT:
                self._thoughts.append(data, is_apart=is_apart)
            gap = b""
            if kind is Kind.TEXT and is_apart and self._buffer.num_bytes:
                gap = b"\n\n"
                self._buffer.append(gap, may_stop=False)
            self._assign(kind, len(data), num_before=len(gap))
            if kind is Kind.TEXT and self._buffer.append(data, may_stop=self._num_tokens > self._min_tokens):
                return True
        return False

    def _assign(self, kind: Kind, num_bytes: int, *, num_before: int) -> None:
        """Note of so many bytes of tokens that are not settled what they are; text has `num_before` put in front."""
        for token in self._unsettled:
            num_taken = min(token.num_bytes, num_bytes)
            if num_taken:
                token.num_bytes -= num_taken
                num_bytes -= num_taken
                token.kind = max(token.kind, kind)
                if kind is Kind.TEXT:
                    token.num_text += num_taken + num_before
                    num_before = 0

    def _settle(self) -> None:
        """Note the tokens of which nothing is held back any more."""
        while self._unsettled and not self._unsettled[0].num_bytes:
            token = self._unsettled.popleft()
            if token.kind is Kind.TEXT:
                self._list(token.num_text, token.logprob)
            else:
                self.num_reasoning_tokens += token.kind is not Kind.NOTHING

    def _finish_split(self, splitter: ThoughtSplitter) -> None:
        if not self._buffer.is_stopped:
            self._sort(splitter.finish())
        for token in self._unsettled:
            token.num_bytes = 0
        self._settle()
        self._tell_thoughts(self._thoughts.take_rest())

    def _list(self, num_bytes: int, logprob: TokenLogprob | None) -> None:
        """Note a token of the text."""
        self._ends.append((self._ends[-1] if self._ends else 0) + num_bytes)
        if logprob is not None:
            self._logprobs.append(logprob)

    def finish(self) -> tuple[str, tuple[TokenLogprob, ...] | None]:
        """The whole text, and the log-probabilities of its tokens. Tells what was not told yet."""
        if self._splitter is not None:
            self._finish_split(self._splitter)
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
            self._tell(text, listed, "")

    def _tell_thoughts(self, thoughts: str) -> None:
        if thoughts and self._tell is not None and self._tells_thoughts:
            self._tell("", None, thoughts)


def transcript_of(
    params: SamplingParams,
    *,
    piece: Callable[[int], bytes],
    tell: Tell | None,
    adjustment: Adjustment | None = None,
    is_echoing: bool = False,
    splitter: ThoughtSplitter | None = None,
) -> Transcript | None:
    """None for a request that can be given its text at the end, all at once."""
    is_plain = not params.stop and not params.stop_token_ids and not params.ignore_eos and not params.min_tokens
    is_plain = is_plain and not is_echoing and splitter is None and params.tools is None
    if tell is None and params.logprobs is None and adjustment is None and is_plain:
        return None
    return Transcript(params, piece=piece, tell=tell, adjustment=adjustment, splitter=splitter)
