"""Functions that answers of one model may call: how the model is told of them, held to them, and read."""

import json
import threading
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np

from batcher.errors import EngineError
from batcher.types import Choice, Constraint, FinishReason, Tools
from workers.engines.base import OnDelta, SequenceDelta, SequenceRequest, SequenceResult, Sink
from workers.engines.llama.chat_frames import Chat, ChatTemplateError
from workers.engines.llama.tools.format import PLAIN, CallFormat, Write, find_format
from workers.engines.llama.tools.grammar import SpecialTokens, constraint_of
from workers.engines.llama.tools.plain import tell
from workers.engines.llama.tools.reader import CallReader
from workers.engines.llama.vocabulary import Vocabulary

#: Grammars that are kept as texts, as the rows of a job mostly have the same tools.
_MAX_KEPT = 64
_SYSTEM = "Probed system."


class ToolCalling:
    """For one model, whose template `write` writes by. For all threads."""

    def __init__(self, vocabulary: Vocabulary, write: Write) -> None:
        self._vocabulary = vocabulary
        self._write = write
        self._lock = threading.Lock()
        self._found: _Found | None = None
        self._constraint = lru_cache(_MAX_KEPT)(self._make_constraint)

    def chat(self, chat: Chat, tools: Tools) -> Chat:
        """`chat` that tells of the tools. Raises what `write` does beyond ChatTemplateError."""
        found = self._find()
        if found.format.is_of_template:
            functions = [{"type": "function", "function": function} for function in tools.list_functions()]
            variables = json.loads(chat.variables or "{}") | {"tools": functions}
            return replace(chat, variables=json.dumps(variables, ensure_ascii=False))
        return replace(chat, messages=tell(chat.messages, tools, takes_system=found.takes_system))

    def hold(self, request: SequenceRequest) -> SequenceRequest:
        """`request` with a constraint that holds its text to its tools, and where it calls none to what it had."""
        params = request.params
        assert params.tools is not None
        held = replace(params, constraint=self._constraint(params.tools, params.constraint))
        return replace(request, params=held)

    def piece(self, token: int) -> bytes:
        """The bytes of a token in a text that may hold a call: special tokens of the call are written out."""
        found = self._find()
        return self._vocabulary.written(token) if token in found.marks else self._vocabulary.piece(token)

    def reading(self, tools: Tools, sink: Sink, on_delta: OnDelta | None) -> tuple[Sink, OnDelta | None]:
        """What takes the texts of one request, and gives them on as texts and calls."""

        def tell_result(result: SequenceResult | EngineError) -> None:
            if isinstance(result, SequenceResult) and result.choice is not None:
                result = replace(result, choice=_read(result.choice, self._reader(tools)))
            sink(result)

        if on_delta is None:
            return tell_result, None
        live: list[CallReader] = []

        def tell_delta(delta: SequenceDelta) -> None:
            if not live:
                live.append(self._reader(tools))
            read = live[0].read(delta.text)
            if read.text or read.call or delta.logprobs or delta.reasoning:
                on_delta(replace(delta, text=read.text, call=read.call))

        def tell_last(result: SequenceResult | EngineError) -> None:
            if isinstance(result, SequenceResult) and live and (text := live[0].finish()):
                on_delta(SequenceDelta(result.key, text))
            tell_result(result)

        return tell_last, tell_delta

    def _reader(self, tools: Tools) -> CallReader:
        return CallReader(self._find().format, is_required=tools.is_required)

    def _make_constraint(self, tools: Tools, text: Constraint | None) -> Constraint:
        return constraint_of(tools, self._find().format, self._special, text=text)

    def _find(self) -> "_Found":
        with self._lock:
            if self._found is None:
                names = [self._vocabulary.written(token).decode(errors="replace") for token in self._special.ends]
                found = find_format(self._write, ends=names) or PLAIN
                literals = "".join(part for part in found.parts if isinstance(part, str))
                marks = frozenset(token for name, token in self._special.ids.items() if name in literals)
                self._found = _Found(found, marks, found.is_of_template or self._takes_system())
            return self._found

    def _takes_system(self) -> bool:
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": "x"}]
        try:
            return _SYSTEM in self._write(Chat(json.dumps(messages), True, False, ""))
        except ChatTemplateError:
            return False

    @cached_property
    def _special(self) -> SpecialTokens:
        entries = enumerate(self._vocabulary.entries())
        ids = {text.decode(errors="replace"): token for token, (text, is_special) in entries if is_special and text}
        return SpecialTokens(ids, tuple(np.flatnonzero(self._vocabulary.is_end).tolist()))


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found of a template. `marks` are the special tokens of its format."""

    format: CallFormat
    marks: frozenset[int]
    takes_system: bool


def _read(choice: Choice, reader: CallReader) -> Choice:
    text = reader.read(choice.text).text + reader.finish()
    if reader.call is None:
        return replace(choice, text=text)
    reason = FinishReason.TOOL_CALLS if reader.is_complete else choice.finish_reason
    return replace(choice, text=text, call=reader.call, finish_reason=reason)
