"""What a request asks for, as the tokens that the model is to continue: text, a chat by template, a gap to fill in.

And what its parameters say in words or numbers of tokens, checked and translated for this model's vocabulary.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from types import MappingProxyType

import numpy as np

from batcher.types import Constraint, ConstraintKind, ErrorCode, Reasoning, RowError, SamplingParams, Tools
from workers.engines.base import OnDelta, SequenceRequest, Sink
from workers.engines.llama.chat_frames import Chat, ChatTemplateError, Source
from workers.engines.llama.chat_writer import ChatProcessError, ChatWriter, Written
from workers.engines.llama.kv_cache import Tokens
from workers.engines.llama.labels import LabelError, Path, Scoring, label_tokens
from workers.engines.llama.sampling.adjustment import Adjustment, adjustment_of
from workers.engines.llama.sampling.bad_words import NO_BAD_WORDS, BadWords, bad_words_of
from workers.engines.llama.sampling.thoughts import ThoughtSplitter
from workers.engines.llama.sampling.transcript import Tell
from workers.engines.llama.thinking import thinking_of
from workers.engines.llama.tools.calling import ToolCalling
from workers.engines.llama.vocabulary import Vocabulary

#: Characters for each token of the context that are tokenized in a moment, so that nothing need be known of them.
_FEW_CHARS = 16

#: Characters of chats that are written in some milliseconds. Longer ones wait for each other, nobody else for them.
_MANY_CHARS = 65_536

#: Chats that are written in one go, if they have no more than `_MANY_CHARS` together.
_MOST_AT_ONCE = 64

#: Lists of bad words whose tokens are kept, as the rows of a job mostly have the same.
_MAX_KEPT_BAD_WORDS = 16

#: Choices the tokens of whose labels are kept.
_MAX_KEPT_LABELS = 64


class Prompts:
    """Tokenizes for one model, whose sequences hold `limit` tokens. For any thread while the model is loaded."""

    def __init__(self, vocabulary: Vocabulary, *, chat_template: str | None, limit: int) -> None:
        self._vocabulary = vocabulary
        self._limit = limit
        self._bad_words = lru_cache(_MAX_KEPT_BAD_WORDS)(self._tokenize_bad_words)
        self._labels = lru_cache(_MAX_KEPT_LABELS)(self._tokenize_labels)
        #: None for a model that does not reason.
        self._thinking = thinking_of(chat_template, vocabulary)
        self._writers: tuple[ChatWriter, ChatWriter] | None = None
        self._calling: ToolCalling | None = None
        if chat_template is not None:
            source = Source(chat_template, bos_token=vocabulary.bos_text, eos_token=vocabulary.eos_text)
            #: For short and for long chats.
            self._writers = (ChatWriter(source), ChatWriter(source))
            self._calling = ToolCalling(vocabulary, self._writers[0].write)

    def close(self) -> None:
        """Have no more chats written; who waits for one gets an EngineError."""
        for writer in self._writers or ():
            writer.close()

    def tokenize_all(self, requests: Sequence[SequenceRequest]) -> Iterator[Tokens | RowError]:
        """As `tokenize` for each. Many chats are written at a time, while others are tokenized."""
        for some in _cut(requests):
            chats = [self._chat_of(request) for request in some if request.is_chat and request.params.tools is None]
            written = self._writers[0].write_all(chats) if self._writers is not None and len(chats) > 1 else []
            ahead = dict(zip(chats, written, strict=bool(written)))
            for request in some:
                yield self.tokenize(request, ahead=ahead)

    def tokenize(
        self, request: SequenceRequest, *, ahead: Mapping[Chat, Written] = MappingProxyType({})
    ) -> Tokens | RowError:
        """The tokens of the prompt, or why the request can never run. Raises EngineError after `close`."""
        if (refused := self._check_params(request.params)) is not None:
            return refused
        text = request.prompt
        if request.is_token_ids:
            found = self._read_ids(text, suffix=request.params.suffix)
            return found if isinstance(found, RowError) else self._check_length(found, request.params)
        if request.is_chat:
            written = self._write_chat(request, ahead)
            if isinstance(written, RowError):
                return written
            text = written
        if (hopeless := self._find_too_long(len(text) + len(request.params.suffix))) is not None:
            return hopeless
        found = self._fill_in(text, request.params.suffix) if request.params.suffix else self._vocabulary.tokenize(text)
        return found if isinstance(found, RowError) else self._check_length(found, request.params)

    def adjust(self, params: SamplingParams, prompt: Tokens) -> Adjustment | None:
        """What a request whose `prompt` was tokenized changes in the model's logits."""
        bad_words = self._bad_words(params.bad_words) if params.bad_words else NO_BAD_WORDS
        assert isinstance(bad_words, BadWords), "it was checked"
        return adjustment_of(params, prompt=prompt, end_ids=self._end_ids, bad_words=bad_words)

    def score(self, request: SequenceRequest, *, tell: Tell | None) -> tuple[SequenceRequest, Scoring | None]:
        """What scores the labels of a request, and the request with room for the longest; others as they are.

        Labels that have no tokens are for `tokenize` to refuse.
        """
        choice = request.params.constraint
        if choice is None or choice.kind is not ConstraintKind.SCORED_CHOICE:
            return request, None
        labels = self._labels(choice)
        if isinstance(labels, RowError):
            return request, None
        scoring = Scoring(labels, tell=tell)
        # Of what is drawn nothing is used: at 0 that is no work.
        params = replace(request.params, max_tokens=scoring.longest, clips_max_tokens=False, temperature=0.0)
        return replace(request, params=params), scoring

    def split(self, request: SequenceRequest, prompt: Tokens) -> ThoughtSplitter | None:
        """What tells the thoughts in the completion of a request from its text; None where nobody has to."""
        return None if self._thinking is None else self._thinking.splitter_for(request, prompt)

    def read_calls(self, tools: Tools, sink: Sink, on_delta: OnDelta | None) -> tuple[Sink, OnDelta | None]:
        """What takes the texts of a request, and gives them on as texts and calls."""
        return (sink, on_delta) if self._calling is None else self._calling.reading(tools, sink, on_delta)

    def hold(self, request: SequenceRequest) -> tuple[SequenceRequest, Callable[[int], bytes]]:
        """`request`, whose prompt was tokenized, held to its tools, and what gives the bytes of a token of its text."""
        if request.params.tools is None or self._calling is None:
            return request, self._vocabulary.piece
        return self._calling.hold(request), self._calling.piece

    def fit(self, request: SequenceRequest, prompt: Tokens) -> SequenceRequest:
        """`request`, to generate no more than there is room for behind its `prompt`, where it allows for that."""
        params, room = request.params, self._limit - len(prompt)
        if params.max_tokens <= room:
            return request
        assert params.clips_max_tokens, "it was checked"
        return replace(request, params=replace(params, max_tokens=room))

    def _write_chat(self, request: SequenceRequest, ahead: Mapping[Chat, Written]) -> str | RowError:
        if self._writers is None or self._calling is None:
            return _invalid("messages: the model has no chat template; complete a prompt with /v1/completions instead")
        chat = self._chat_of(request)
        try:
            if request.params.tools is not None:
                chat = self._calling.chat(chat, request.params.tools)
            found = ahead[chat] if chat in ahead else self._writers[_num_chars(request) > _MANY_CHARS].write(chat)
            if isinstance(found, Exception):
                raise found
            return self._without_thoughts(found, request)
        except ChatTemplateError as exc:
            return _invalid(f"{exc.field}: {exc}")
        except ChatProcessError as exc:
            return RowError(ErrorCode.ENGINE_ERROR, str(exc))

    def _chat_of(self, request: SequenceRequest) -> Chat:
        params = request.params
        variables = params.chat_template_kwargs
        if self._thinking is not None and _is_without_thoughts(params):
            variables = self._thinking.switch_off(variables)
        return Chat(
            request.prompt,
            adds_generation_prompt=params.add_generation_prompt,
            continues_final=params.continue_final_message,
            variables=variables,
        )

    def _without_thoughts(self, prompt: str, request: SequenceRequest) -> str:
        """The prompt of a chat, behind which no thoughts begin where there are to be none."""
        params = request.params
        if self._thinking is None or not _is_without_thoughts(params) or not params.add_generation_prompt:
            return prompt
        return self._thinking.leave_out(prompt)

    def _read_ids(self, text: str, *, suffix: str) -> Tokens | RowError:
        """The tokens as they are: no BOS is put before them."""
        if suffix:
            return _invalid("suffix: a prompt of token ids can't be filled in by it; send the prompt as text")
        tokens = np.array(json.loads(text), np.int32)
        highest = int(tokens.max())
        if highest >= self._vocabulary.size:
            return _invalid(
                f"the prompt has the token {highest}; the model's go from 0 to {self._vocabulary.size - 1}, as its own "
                "tokenizer gives them"
            )
        return tokens

    @cached_property
    def _end_ids(self) -> Tokens:
        return np.flatnonzero(self._vocabulary.is_end).astype(np.int32)

    def _check_params(self, params: SamplingParams) -> RowError | None:
        """The error of parameters that name what this model does not have."""
        size = self._vocabulary.size
        named = {"logit_bias": [token for token, _ in params.logit_bias], "stop_token_ids": params.stop_token_ids}
        for name, tokens in named.items():
            for token in tokens:
                if not 0 <= token < size:
                    return _invalid(f"{name} has the token {token}; the model's go from 0 to {size - 1}")
        if params.constraint is not None and params.constraint.kind is ConstraintKind.SCORED_CHOICE:
            labels = self._labels(params.constraint)
            if isinstance(labels, RowError):
                return labels
        bad_words = self._bad_words(params.bad_words) if params.bad_words else None
        return bad_words if isinstance(bad_words, RowError) else None

    def _tokenize_labels(self, choice: Constraint) -> tuple[Path, ...] | RowError:
        try:
            return tuple(label_tokens(label, self._vocabulary) for label in choice.labels)
        except LabelError as exc:
            return _invalid(f"choice: {exc}")

    def _tokenize_bad_words(self, words: tuple[str, ...]) -> BadWords | RowError:
        try:
            return bad_words_of(words, lambda text: self._vocabulary.tokenize(text, adds_bos=False))
        except ValueError as exc:
            return _invalid(str(exc))

    def _find_too_long(self, num_chars: int) -> RowError | None:
        """The error of a text that is too long whatever its tokens are: to find them would take long."""
        if num_chars <= self._limit * _FEW_CHARS or num_chars <= self._limit * self._vocabulary.most_bytes:
            return None
        num_tokens = num_chars // self._vocabulary.most_bytes
        return self._too_long(
            f"the prompt is too long: it has {num_chars} characters, so at least {num_tokens} tokens; shorten it"
        )

    def _fill_in(self, text: str, suffix: str) -> Tokens | RowError:
        """Prefix, suffix, and then the middle, by the marks that the model was trained with."""
        marks = self._vocabulary.fill_in_marks
        if marks is None:
            return _invalid("suffix: the model was not trained to fill in before a suffix; leave it out")
        prefix_mark, suffix_mark, middle_mark = (np.array([mark], np.int32) for mark in marks)
        # Of the suffix without a BOS.
        after = self._vocabulary.tokenize(suffix, adds_bos=False)
        return np.concatenate((prefix_mark, self._vocabulary.tokenize(text), suffix_mark, after, middle_mark))

    def _check_length(self, prompt: Tokens, params: SamplingParams) -> Tokens | RowError:
        if not len(prompt):
            return _invalid("prompt is empty and the model has no BOS token; give it text")
        if len(prompt) + (1 if params.clips_max_tokens else params.max_tokens) <= self._limit:
            return prompt
        if params.clips_max_tokens:
            return self._too_long(
                f"the prompt is too long: it has {len(prompt)} tokens and leaves no room for an answer; shorten it"
            )
        if params.constraint is not None and params.constraint.kind is ConstraintKind.SCORED_CHOICE:
            return self._too_long(
                f"the prompt is too long: it has {len(prompt)} tokens, and the labels go on for {params.max_tokens}; "
                "shorten it"
            )
        return self._too_long(
            f"you asked for {len(prompt) + params.max_tokens} tokens ({len(prompt)} in the prompt, {params.max_tokens} "
            "of max_tokens): the prompt is too long, or max_tokens too large; shorten the prompt, lower max_tokens"
        )

    def _too_long(self, problem: str) -> RowError:
        # Clients know the error by its words, and may fall back to a model with a larger context then: litellm by how
        # OpenAI's begins, langchain by "prompt is too long".
        return RowError(
            ErrorCode.CONTEXT_LENGTH_EXCEEDED,
            f"This model's maximum context length is {self._limit} tokens, but {problem}, or start the worker with a "
            "larger --ctx",
        )


def _num_chars(request: SequenceRequest) -> int:
    """Of what a template is given: messages, tools, and variables, which may be whole documents."""
    params = request.params
    num_functions = len(params.tools.functions) if params.tools is not None else 0
    return len(request.prompt) + len(params.chat_template_kwargs) + num_functions


def _is_without_thoughts(params: SamplingParams) -> bool:
    # What is scored stands where the text begins.
    is_scored = params.constraint is not None and params.constraint.kind is ConstraintKind.SCORED_CHOICE
    return is_scored or params.reasoning == Reasoning.OFF


def _cut(requests: Sequence[SequenceRequest]) -> Iterator[list[SequenceRequest]]:
    """The requests in groups whose chats can be written at once."""
    group: list[SequenceRequest] = []
    num_chars = 0
    for request in requests:
        size = _num_chars(request)
        if group and (len(group) >= _MOST_AT_ONCE or num_chars + size > _MANY_CHARS):
            yield group
            group, num_chars = [], 0
        group.append(request)
        num_chars += size
    if group:
        yield group


def _invalid(message: str) -> RowError:
    return RowError(ErrorCode.INVALID_REQUEST, message)
