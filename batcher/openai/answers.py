"""Response objects: completions, chats and their streams as the API documents them, from choices or from result rows.

Everything here is plain dicts, ready for JSON. The texts of tokens in log-probabilities are JSON's too: a token whose
bytes are no UTF-8 is written `bytes:\\xe2\\x80`, as the API does.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from batcher.constraints import label_scores
from batcher.ids import call_id
from batcher.openai.fields import FIELDS
from batcher.types import (
    Choice,
    Completion,
    Delta,
    ErrorCode,
    FunctionCall,
    Request,
    RequestFacts,
    RowError,
    RowStatus,
    TokenLogprob,
)

COMPLETION_OBJECT = "text_completion"
CHAT_OBJECT = "chat.completion"
_CHAT_CHUNK_OBJECT = "chat.completion.chunk"

LEAST_LOGPROB = -9999.0

_NO_FACTS = RequestFacts()

#: The HTTP status that the API would give; errors without one are the fault of no request.
STATUS_CODES = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: 400,
    ErrorCode.MODEL_NOT_FOUND: 404,
}

_FIELDS = frozenset(field.name for field in FIELDS)
_LEADING_NAME = re.compile(r"[a-z_]+\b")


def error_param(error: RowError, *, is_chat: bool) -> str | None:
    """The documented `param` of an error: the field that is wrong, if it is one.

    Rows of results have no place for it. What an engine refuses is told by the code or, as in every message about a
    field, by the field's name at its beginning; so answers and lines agree.
    """
    if error.param is not None:
        return error.param
    match error.code:
        case ErrorCode.CONTEXT_LENGTH_EXCEEDED:
            return "messages" if is_chat else "prompt"
        case ErrorCode.MODEL_NOT_FOUND:
            return "model"
        case ErrorCode.INVALID_REQUEST:
            found = _LEADING_NAME.match(error.message)
            return found[0] if found is not None and found[0] in _FIELDS else None
    return None


def completion_object(completion: Completion) -> dict[str, Any]:
    """The documented response object of a completion or chat; of one that failed, the documented error object."""
    request = completion.request
    if completion.error is not None:
        return _error_object(completion.error, param=error_param(completion.error, is_chat=request.is_chat))
    choices = [
        _choice(
            is_chat=request.is_chat,
            index=choice.index,
            text=choice.text,
            reasoning=choice.reasoning,
            logprobs=logprobs_object(choice.logprobs, is_chat=request.is_chat),
            finish_reason=choice.finish_reason.value,
            scores=label_scores(choice, request.params),
            calls=calls_of(choice, response_id=completion.id),
        )
        for choice in completion.choices
    ]
    # The first choice of each prompt stands for it.
    prompts = [choice.usage for choice in completion.choices if choice.index % request.params.n == 0]
    return {
        "id": completion.id,
        "object": CHAT_OBJECT if request.is_chat else COMPLETION_OBJECT,
        "created": completion.created,
        "model": request.model,
        "system_fingerprint": completion.system_fingerprint,
        "choices": choices,
        "usage": _usage_object(
            prompt_tokens=sum(usage.prompt_tokens for usage in prompts),
            cached_tokens=sum(usage.cached_tokens for usage in prompts),
            completion_tokens=sum(choice.usage.completion_tokens for choice in completion.choices),
            reasoning_tokens=sum(choice.usage.reasoning_tokens for choice in completion.choices),
        ),
    }


def calls_of(choice: Choice, *, response_id: str) -> list[dict[str, Any]] | None:
    """The documented `tool_calls` of a choice; None where it calls nothing."""
    return None if choice.call is None else [_call_object(choice.call, call_id(response_id, choice.index))]


def logprobs_object(
    logprobs: Sequence[TokenLogprob] | None, *, is_chat: bool, num_chars_before: int = 0
) -> dict[str, Any] | None:
    """The documented `logprobs` of a choice, or None. Offsets of tokens count from `num_chars_before`.

    In a completion, `top_logprobs` holds the token itself as well as the likeliest ones, so that with `logprobs` 0 it
    has one entry. The first token of an echoed prompt has null in both.
    """
    if logprobs is None:
        return None
    if is_chat:
        return {"content": [_chat_token(token) for token in logprobs], "refusal": None}
    offsets = []
    num_chars = num_chars_before
    for token in logprobs:
        # A token that goes on with a character begins where that does.
        offsets.append(num_chars - 1 if num_chars and token.token and _continues(token.token[0]) else num_chars)
        num_chars += count_chars(token.token)
    return {
        "tokens": [token_text(token.token) for token in logprobs],
        "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token in logprobs],
        "top_logprobs": [None if token.logprob is None else _top(token, token.logprob) for token in logprobs],
        "text_offset": offsets,
    }


def token_text(token: bytes) -> str:
    """A token as text, also one that is a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def count_chars(token: bytes) -> int:
    """How many characters begin in these bytes of UTF-8."""
    return sum(not _continues(byte) for byte in token)


def completion_body(rows: Sequence[Mapping[str, Any]], *, facts: RequestFacts = _NO_FACTS) -> dict[str, Any]:
    """The documented response object of one request; `rows` are its result rows in order of index.

    For a request that failed it is the documented error object, `{"error": {...}}`.
    """
    first = rows[0]
    if first["status"] == RowStatus.ERROR.value:
        error = RowError(ErrorCode(first["error_code"]), first["error_message"], facts.error_param)
        return _error_object(
            error, param=error.param if facts.is_refused else error_param(error, is_chat=facts.is_chat)
        )
    is_chat = first["object"] == CHAT_OBJECT
    choices = [
        _choice(
            is_chat=is_chat,
            index=row["index"],
            text=row["text"],
            reasoning=row.get("reasoning"),
            logprobs=json.loads(row["logprobs"]) if row["logprobs"] is not None else None,
            finish_reason=row["finish_reason"],
            scores=None if row.get("scores") is None else dict(row["scores"]),
            calls=json.loads(row["tool_calls"]) if row.get("tool_calls") is not None else None,
        )
        for row in rows
    ]
    created = first["created"]
    prompts = [row for row in rows if row["index"] % facts.num_choices_each == 0]
    return {
        "id": first["id"],
        "object": first["object"],
        "created": int(created.timestamp()) if isinstance(created, datetime) else created,
        "model": first["model"],
        "system_fingerprint": facts.system_fingerprint,
        "choices": choices,
        "usage": _usage_object(
            prompt_tokens=sum(row["prompt_tokens"] for row in prompts),
            cached_tokens=sum(row["cached_tokens"] for row in prompts),
            completion_tokens=sum(row["completion_tokens"] for row in rows),
            reasoning_tokens=sum(row.get("reasoning_tokens") or 0 for row in rows),
        ),
    }


def batch_output_line(
    rows: Sequence[Mapping[str, Any]], *, digits: str, facts: RequestFacts = _NO_FACTS
) -> dict[str, Any]:
    """The line of an OpenAI batch output file for one request. `digits` make its ids (`Manifest.response_digits`), the
    other arguments are those of `completion_body`.

    As in OpenAI's files, an error the API answers with an HTTP status has a `response` with that status, and an error
    for which no request is to blame (engine, crash, timeout) has `response` null and `error` set.
    """
    first = rows[0]
    line: dict[str, Any] = {
        "id": f"batch_req_{digits}",
        "custom_id": first["custom_id"],
        "response": None,
        "error": None,
    }
    status = 200
    if first["status"] == RowStatus.ERROR.value:
        code = ErrorCode(first["error_code"])
        if code not in STATUS_CODES:
            line["error"] = {"code": code.value, "message": first["error_message"]}
            return line
        status = STATUS_CODES[code]
    body = completion_body(rows, facts=facts)
    line["response"] = {"status_code": status, "request_id": f"req_{digits}", "body": body}
    return line


class Unrun(StrEnum):
    """Why a request of a batch was never run, by the codes that the API documents."""

    EXPIRED = "batch_expired"
    CANCELLED = "batch_cancelled"


_UNRUN_MESSAGES = {
    Unrun.EXPIRED: "the completion window was over before this request was completed; send it in another batch",
    Unrun.CANCELLED: "the batch was cancelled before this request was completed; send it in another batch",
}


def unrun_line(custom_id: str, *, digits: str, why: Unrun) -> dict[str, Any]:
    """The line of an OpenAI batch error file for a request that was never run. `digits` as in `batch_output_line`."""
    error = {"code": why.value, "message": _UNRUN_MESSAGES[why]}
    return {"id": f"batch_req_{digits}", "custom_id": custom_id, "response": None, "error": error}


class ChunkStream:
    """Shapes the chunks of one streamed request, each a dict for one server-sent event. Mutable: counts as it goes.

    First `opening`, then `delta` and `end` as the engine has them, at last `usage`, if that was asked for.
    """

    def __init__(
        self,
        request: Request,
        *,
        completion_id: str,
        created: int,
        includes_usage: bool,
        system_fingerprint: str | None = None,
    ) -> None:
        self._request = request
        self._includes_usage = includes_usage
        self._completion_id = completion_id
        self._head = {
            "id": completion_id,
            "object": _CHAT_CHUNK_OBJECT if request.is_chat else COMPLETION_OBJECT,
            "created": created,
            "model": request.model,
            "system_fingerprint": system_fingerprint,
        }
        self._num_chars = [0] * request.num_choices
        self._num_prompt_tokens = 0
        self._num_cached_tokens = 0
        self._num_completion_tokens = 0
        self._num_reasoning_tokens = 0

    def opening(self) -> list[dict[str, Any]]:
        """What comes before the engine has anything: a chat's role, the prompt of a completion that echoes it."""
        request = self._request
        if request.is_chat:
            role = {"role": "assistant", "content": ""}
            return [self._chat_chunk(index, role) for index in range(request.num_choices)]
        if not request.params.echo or request.is_echoed_by_engine:
            return []
        n = request.params.n
        return [self._text_chunk(index, request.prompts[index // n]) for index in range(request.num_choices)]

    def delta(self, delta: Delta) -> dict[str, Any]:
        """The chunk of what a choice has gained."""
        before = self._num_chars[delta.index]
        self._num_chars[delta.index] += sum(count_chars(token.token) for token in delta.logprobs or ())
        logprobs = logprobs_object(delta.logprobs, is_chat=self._request.is_chat, num_chars_before=before)
        if self._request.is_chat:
            return self._chat_chunk(delta.index, _chat_delta(delta, self._completion_id), logprobs=logprobs)
        return self._text_chunk(delta.index, delta.text, logprobs=logprobs)

    def end(self, choice: Choice) -> dict[str, Any]:
        """The last chunk of a choice, which says why it ended. Its text has gone out in deltas before."""
        if choice.index % self._request.params.n == 0:
            self._num_prompt_tokens += choice.usage.prompt_tokens
            self._num_cached_tokens += choice.usage.cached_tokens
        self._num_completion_tokens += choice.usage.completion_tokens
        self._num_reasoning_tokens += choice.usage.reasoning_tokens
        reason = choice.finish_reason.value
        if self._request.is_chat:
            chunk = self._chat_chunk(choice.index, {}, finish_reason=reason)
        else:
            chunk = self._text_chunk(choice.index, "", finish_reason=reason)
        chunk["choices"][0] |= _scores(label_scores(choice, self._request.params))
        return chunk

    def usage(self) -> dict[str, Any]:
        """The chunk with the usage of all choices that have ended, and no choice."""
        usage = _usage_object(
            prompt_tokens=self._num_prompt_tokens,
            cached_tokens=self._num_cached_tokens,
            completion_tokens=self._num_completion_tokens,
            reasoning_tokens=self._num_reasoning_tokens,
        )
        return {**self._head, "choices": [], "usage": usage}

    def _text_chunk(
        self, index: int, text: str, *, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
    ) -> dict[str, Any]:
        return self._chunk({"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish_reason})

    def _chat_chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        return self._chunk({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason})

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._head, "choices": [choice]}
        return {**chunk, "usage": None} if self._includes_usage else chunk


def _choice(
    *,
    is_chat: bool,
    index: int,
    text: str,
    reasoning: str | None,
    logprobs: dict[str, Any] | None,
    finish_reason: str,
    scores: Mapping[str, float] | None = None,
    calls: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    ending = {"logprobs": logprobs, "finish_reason": finish_reason, **_scores(scores)}
    if is_chat:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        # The API documents no place for thoughts; its peers and their clients have this one.
        if reasoning is not None:
            message["reasoning_content"] = reasoning
        if calls is not None:
            message |= {"content": text or None, "tool_calls": calls}
        return {"index": index, "message": message, **ending}
    return {"text": text, "index": index, **ending}


def _scores(scores: Mapping[str, float] | None) -> dict[str, Any]:
    """What a choice has beside the documented, where labels were scored: the probability of each."""
    return {} if scores is None else {"scores": scores}


def _chat_delta(delta: Delta, completion_id: str) -> dict[str, Any]:
    """What a chat has gained. The id and the name of a call come once, with the first of its arguments."""
    gained: dict[str, Any] = {"reasoning_content": delta.reasoning} if delta.reasoning else {}
    if delta.text or not (gained or delta.call) or (delta.logprobs and not delta.call):
        gained["content"] = delta.text
    if delta.call is not None:
        call: dict[str, Any] = {"function": {"arguments": delta.call.arguments}}
        if delta.call.name:
            call = _call_object(delta.call, call_id(completion_id, delta.index))
        gained["tool_calls"] = [{"index": 0, **call}]
    return gained


def _call_object(call: FunctionCall, id_: str) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _usage_object(
    *, prompt_tokens: int, cached_tokens: int, completion_tokens: int, reasoning_tokens: int
) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
    if reasoning_tokens:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return usage


def _error_object(error: RowError, *, param: str | None) -> dict[str, Any]:
    kind = "invalid_request_error" if error.code in STATUS_CODES else "server_error"
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code.value}}


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    top = [_token_object(other, logprob) for other, logprob in token.top]
    assert token.logprob is not None, "a chat echoes no prompt"
    return {**_token_object(token.token, token.logprob), "top_logprobs": top}


def _token_object(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token_text(token), "logprob": _finite(logprob), "bytes": list(token)}


def _top(token: TokenLogprob, logprob: float) -> dict[str, float]:
    """The likeliest tokens by their texts, and the token itself; of tokens with the same text the likelier one."""
    found: dict[str, float] = {}
    for other, value in (*token.top, (token.token, logprob)):
        found.setdefault(token_text(other), _finite(value))
    return found


def _finite(logprob: float) -> float:
    """JSON has no infinity; the API documents -9999.0 for what is hardly possible."""
    return max(logprob, LEAST_LOGPROB)


def _continues(byte: int) -> bool:
    """Whether a byte of UTF-8 goes on with a character."""
    return byte & 0xC0 == 0x80
