"""The body of an answer becomes choices, whatever it holds. A server is not trusted to keep to the API.

Both shapes of log-probabilities are read on both routes: that of completions (parallel arrays) and that of chats
(`content`), which llama-server has on both.
"""

import math
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batcher.types import Choice, ErrorCode, FinishReason, Reasoning, RowError, TokenLogprob, Usage
from workers.engines.base import SequenceRequest
from workers.engines.remote.failures import BrokenError, RefusedError, describe

#: OpenAI's own for what is too unlikely to say.
_LEAST_LOGPROB = -9999.0

_Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Details(_Part):
    cached_tokens: _Count | None = None
    reasoning_tokens: _Count | None = None


class _Usage(_Part):
    prompt_tokens: _Count
    completion_tokens: _Count = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class _Token(_Part):
    token: str
    logprob: float | None = None
    raw: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(default=None, alias="bytes")
    top_logprobs: "list[_Token] | None" = None

    def as_bytes(self) -> bytes:
        return _token_bytes(self.token) if self.raw is None else bytes(self.raw)


class _Logprobs(_Part):
    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Message(_Part):
    """Its thoughts are `reasoning_content`, of newer servers `reasoning`, where a server tells them from the text."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None

    @property
    def thoughts(self) -> str | None:
        return self.reasoning_content or self.reasoning


class _Choice(_Part):
    index: _Count = 0
    text: str | None = None
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Answer(_Part):
    """What is read of a body: a whole answer, or a piece of one that is streamed."""

    choices: list[_Choice]
    usage: _Usage | None = None
    system_fingerprint: str | None = None

    def fingerprint(self) -> str | None:
        return self.system_fingerprint or None


def parse_answer(body: bytes) -> Answer:
    """Raises BrokenError, which says what is wrong with it."""
    try:
        return Answer.model_validate_json(body)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        what = f"{place}: {first['msg']}" if place else first["msg"]
        raise BrokenError(f"an answer that is none of the OpenAI API ({what}): {describe(body[:2000])}") from exc


def choices_of(answer: Answer, requests: Sequence[SequenceRequest], *, latency_ms: float) -> "list[Choice] | None":
    """The choice of each of `requests`, which went out as one; None where the tokens of each can't be told.

    Raises BrokenError, and RefusedError for what no other try would change.
    """
    found = sorted(answer.choices, key=lambda choice: choice.index)
    if [choice.index for choice in found] != list(range(len(requests))):
        raise BrokenError(
            f"{len(found)} choices of {len(requests)} prompts, numbered {', '.join(str(each.index) for each in found)}"
        )
    usages = [_usage(answer, choice, is_one=len(requests) == 1) for choice in found]
    return (
        [
            to_choice(request, choice, text=_text(choice), usage=usage, latency_ms=latency_ms)
            for request, choice, usage in zip(requests, found, usages, strict=True)
            if usage is not None
        ]
        if None not in usages
        else None
    )


def _usage(answer: Answer, choice: _Choice, *, is_one: bool) -> Usage | None:
    if is_one:
        return usage_of(answer)
    if choice.token_ids is None or choice.prompt_token_ids is None:
        return None
    return Usage(len(choice.prompt_token_ids), len(choice.token_ids))


def usage_of(answer: Answer) -> Usage:
    """As the server says. Raises RefusedError where it says nothing."""
    usage = answer.usage
    if usage is None:
        raise RefusedError(
            RowError(ErrorCode.ENGINE_ERROR, "the server's answer has no usage, so nobody knows its tokens")
        )
    details = usage.prompt_tokens_details
    cached = details.cached_tokens if details is not None and details.cached_tokens is not None else 0
    details = usage.completion_tokens_details
    thought = details.reasoning_tokens or 0 if details is not None else 0
    return Usage(usage.prompt_tokens, usage.completion_tokens, min(cached, usage.prompt_tokens), thought)


def _text(choice: _Choice) -> str:
    if choice.message is not None:
        return choice.message.content or ""
    if choice.text is None:
        raise BrokenError("a choice with neither text nor message")
    return choice.text


def to_choice(request: SequenceRequest, choice: _Choice, *, text: str, usage: Usage, latency_ms: float) -> Choice:
    """Raises BrokenError and RefusedError."""
    logprobs = None
    if request.params.logprobs is not None:
        logprobs = read_logprobs(choice.logprobs, number=request.params.logprobs)
    _check_echo(request, text, logprobs)
    reason = finish_reason(choice.finish_reason)
    is_split = request.params.reasoning == Reasoning.SPLIT and choice.message is not None
    thoughts = choice.message.thoughts if is_split and choice.message is not None else None
    # What the token ids of a prompt are as text, only the server knows.
    num_echoed = len(request.prompt) if request.is_echoing and not request.is_token_ids else 0
    number = request.key[1]
    return Choice(number, text, reason, usage, latency_ms, logprobs, reasoning=thoughts, num_echoed=num_echoed)


def finish_reason(reason: str | None) -> FinishReason:
    """Raises BrokenError for none, RefusedError for an end that is not the model's."""
    match reason:
        case "stop" | "tool_calls" | "function_call" | "eos":
            return FinishReason.STOP
        case "length":
            return FinishReason.LENGTH
        case "content_filter":
            raise RefusedError(RowError(ErrorCode.ENGINE_ERROR, "the server's content filter cut the text"))
        case _:
            raise BrokenError(f"a choice that ended because of {str(reason)[:60]!r}")


def read_logprobs(found: _Logprobs | None, *, number: int) -> tuple[TokenLogprob, ...]:
    """Of each token, with the `number` likeliest at its place. Raises RefusedError where there are none."""
    if found is not None and found.content is not None:
        return tuple(
            TokenLogprob(
                token.as_bytes(),
                _finite(token.logprob),
                _likeliest([(each.as_bytes(), each.logprob) for each in token.top_logprobs or ()], number),
            )
            for token in found.content
        )
    if found is None or found.tokens is None or found.token_logprobs is None:
        raise RefusedError(
            RowError(ErrorCode.INVALID_REQUEST, "logprobs: the server gave none; leave it out", "logprobs")
        )
    tops = found.top_logprobs or [None] * len(found.tokens)
    if not len(found.tokens) == len(found.token_logprobs) == len(tops):
        raise BrokenError("log-probabilities of another number than their tokens")
    return tuple(
        TokenLogprob(
            _token_bytes(token),
            _finite(logprob),
            _likeliest([(_token_bytes(other), value) for other, value in (top or {}).items()], number),
        )
        for token, logprob, top in zip(found.tokens, found.token_logprobs, tops, strict=True)
    )


def _likeliest(top: list[tuple[bytes, float | None]], number: int) -> tuple[tuple[bytes, float], ...]:
    """Servers give the token that was drawn as well, and one likeliest where none were asked for."""
    known = [(token, value) for token, given in top if (value := _finite(given)) is not None]
    return tuple(sorted(known, key=lambda pair: -pair[1])[:number])


def _finite(logprob: float | None) -> float | None:
    return logprob if logprob is None or math.isfinite(logprob) else _LEAST_LOGPROB


def _token_bytes(token: str) -> bytes:
    r"""OpenAI writes a token that is no UTF-8 as `bytes:\xe2\x96`."""
    if token.startswith("bytes:"):
        try:
            return token.removeprefix("bytes:").encode().decode("unicode_escape").encode("latin-1")
        except UnicodeError:
            pass
    return token.encode(errors="replace")


def _check_echo(request: SequenceRequest, text: str, logprobs: tuple[TokenLogprob, ...] | None) -> None:
    if not request.is_echoing:
        return
    if not request.is_token_ids and not text.startswith(request.prompt):
        raise RefusedError(
            RowError(
                ErrorCode.INVALID_REQUEST, "echo: the server left the prompt out of the text; leave it out", "echo"
            )
        )
