"""An answer that comes in pieces (server-sent events) becomes a choice, its text told as it comes."""

from collections.abc import AsyncGenerator, AsyncIterator
from time import monotonic

from batcher.types import Choice, Reasoning, TokenLogprob
from workers.engines.base import OnDelta, SequenceDelta, SequenceRequest
from workers.engines.remote.answers import (
    Answer,
    choices_of,
    finish_reason,
    parse_answer,
    read_logprobs,
    usage_of,
)
from workers.engines.remote.failures import BrokenError, CutError, describe

_DONE = b"[DONE]"
#: Bytes of an answer; one with log-probabilities of 20 tokens at each of 100,000 places has less.
MOST_BYTES = 256 << 20


class StreamReader:
    """Gathers the pieces of one answer. `has_told`: some of its text is with the caller, who can't take it back."""

    def __init__(self, request: SequenceRequest, on_delta: OnDelta) -> None:
        self.has_told = False
        self.fingerprint: str | None = None
        self._request = request
        self._on_delta = on_delta
        self._text: list[str] = []
        self._thoughts: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._reason: str | None = None
        self._last: Answer | None = None

    async def read(self, events: AsyncIterator[bytes], *, began_at: float) -> Choice:
        """Read to the end. Raises CutError where it comes too early, BrokenError, RefusedError."""
        async for data in events:
            if data == _DONE:
                break
            if data.startswith(b'{"error"'):
                raise BrokenError(describe(data))
            self._take(parse_answer(data))
        if self._reason is None:
            raise CutError("the stream ended before the text did")
        reason = finish_reason(self._reason)
        if self._last is None:
            self._last = Answer(choices=[])
        logprobs = tuple(self._logprobs) if self._request.params.logprobs is not None else None
        latency_ms = (monotonic() - began_at) * 1e3
        text = "".join(self._text)
        thoughts = "".join(self._thoughts) or None
        usage = usage_of(self._last)
        return Choice(self._request.key[1], text, reason, usage, latency_ms, logprobs, reasoning=thoughts)

    def read_whole(self, body: bytes, *, began_at: float) -> Choice:
        """Read an answer that is no stream, and tell its text at once."""
        answer = parse_answer(body)
        self.fingerprint = answer.fingerprint()
        found = choices_of(answer, [self._request], latency_ms=(monotonic() - began_at) * 1e3)
        assert found is not None
        self._on_delta(SequenceDelta(self._request.key, found[0].text, found[0].logprobs))
        return found[0]

    def _take(self, piece: Answer) -> None:
        self.fingerprint = self.fingerprint or piece.fingerprint()
        if piece.usage is not None:
            self._last = piece
        for choice in piece.choices:
            message = choice.delta or choice.message
            text = (message.content if message is not None else choice.text) or ""
            self._reason = choice.finish_reason or self._reason
            logprobs: tuple[TokenLogprob, ...] | None = None
            if self._request.params.logprobs is not None and choice.logprobs is not None:
                logprobs = read_logprobs(choice.logprobs, number=self._request.params.logprobs)
                self._logprobs += logprobs
            is_split = self._request.params.reasoning == Reasoning.SPLIT
            thoughts = (message.thoughts if is_split and message is not None else None) or ""
            if text or logprobs or thoughts:
                self._text.append(text)
                self._thoughts.append(thoughts)
                self.has_told = True
                self._on_delta(SequenceDelta(self._request.key, text, logprobs, thoughts))


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data of each event; comments and other fields are left out. Raises BrokenError for too much of it."""
    rest, num_bytes = b"", 0
    async for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > MOST_BYTES:
            raise BrokenError(f"an answer of more than {MOST_BYTES:,} bytes")
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()
