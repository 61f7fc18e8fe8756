"""How one model thinks before it answers: by the marks of its chat template, and the tokens that they are made of."""

import json

from batcher.thoughts import ThoughtMarks, find_marks
from batcher.types import Reasoning
from workers.engines.base import SequenceRequest
from workers.engines.llama.kv_cache import Tokens
from workers.engines.llama.sampling.thoughts import ThoughtSplitter
from workers.engines.llama.vocabulary import Vocabulary

#: By which templates have thinking switched off.
_SWITCHES = {"enable_thinking": False, "thinking": False}

#: Tokens at the end of a prompt in which a mark has room, with blanks behind it.
_NUM_LAST = 64


class Thinking:
    """For any thread while the model is loaded."""

    def __init__(self, marks: ThoughtMarks, vocabulary: Vocabulary, *, template: str) -> None:
        self._marks = marks
        self._vocabulary = vocabulary
        self._has_switch = any(name in template for name in _SWITCHES)

    def splitter_for(self, request: SequenceRequest, prompt: Tokens) -> ThoughtSplitter | None:
        """What splits the completion of a request, whose `prompt` was tokenized; None where none is to be split."""
        if not request.is_chat or request.params.reasoning == Reasoning.KEEP:
            return None
        is_open = self._is_open(request, prompt)
        return ThoughtSplitter(self._marks, is_open=is_open, special=self._vocabulary.written)

    def switch_off(self, variables: str) -> str:
        """The variables of a template, as JSON text, which say that there are to be no thoughts, unless they differ."""
        return json.dumps(_SWITCHES | json.loads(variables or "{}"), ensure_ascii=False, sort_keys=True)

    def leave_out(self, prompt: str) -> str:
        """The prompt of a chat written by variables of `switch_off`, behind which no thoughts begin."""
        # A template that has a switch has closed them itself, if it is one that closes them.
        return prompt if self._has_switch and not self._marks.are_open(prompt) else self._marks.close(prompt)

    def _is_open(self, request: SequenceRequest, prompt: Tokens) -> bool:
        if request.params.continue_final_message:
            content = json.loads(request.prompt)[-1].get("content")
            if isinstance(content, list):
                content = "".join(part["text"] for part in content)
            return isinstance(content, str) and self._marks.are_unclosed(content)
        written = b"".join(map(self._vocabulary.written, prompt[-_NUM_LAST:].tolist()))
        return self._marks.are_open(written.decode(errors="replace"))


def thinking_of(template: str | None, vocabulary: Vocabulary) -> Thinking | None:
    """None for a model that does not reason."""
    marks = find_marks(template)
    return None if marks is None or template is None else Thinking(marks, vocabulary, template=template)
