"""The marks by which models tell their thoughts from their answers, found in their chat templates.

Nothing in a GGUF says that a model reasons. Its template does: it knows the marks, as it leaves thoughts out of the
history or opens them for the answer. The marks are of those who train models, so this is a list of what is in use.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from batcher.gguf import chat_template


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """What stands around the thoughts of a model, and around its text.

    Thoughts begin with one of `opens` and end with one of `closes`; the text follows. In front of thoughts and text may
    be `skips`, which belong to neither. Behind one of `ends`, which ends a text, thoughts may begin anew.
    `nothing` is what a prompt ends with where the model is not to think.
    """

    opens: tuple[str, ...]
    closes: tuple[str, ...]
    nothing: str
    skips: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()

    def are_open(self, prompt: str) -> bool:
        """Whether the prompt ends in thoughts that have just begun, so that the answer goes on with them."""
        return prompt.rstrip().endswith(self.opens)

    def are_unclosed(self, content: str) -> bool:
        """Whether a message that is to be gone on with ends in its thoughts."""
        return max(map(content.rfind, self.opens)) > max(map(content.rfind, self.closes))

    def close(self, prompt: str) -> str:
        """`prompt`, so that the answer has no thoughts."""
        if self.are_open(prompt):
            return f"{prompt.rstrip()}\n\n{self.closes[0]}\n\n"
        return prompt + self.nothing


def _tags(opening: str, closing: str, *, skips: tuple[str, ...] = (), ends: tuple[str, ...] = ()) -> ThoughtMarks:
    return ThoughtMarks((opening,), (closing,), f"{opening}\n\n{closing}\n\n", skips, ends)


#: OpenAI's harmony format: https://github.com/openai/harmony/blob/main/docs/format.md. A call of a tool, which is
#: addressed in its channel, is no text by these marks and stays whole in it.
HARMONY = ThoughtMarks(
    opens=("<|channel|>analysis<|message|>",),
    closes=("<|end|>",),
    nothing="<|channel|>final<|message|>",
    skips=("<|start|>assistant", "<|channel|>final<|message|>", "<|channel|>commentary<|message|>"),
    ends=("<|end|>",),
)
THINK = _tags("<think>", "</think>")

#: By what a template has all of, the first that fits.
_BY_TEMPLATE: Sequence[tuple[tuple[str, ...], ThoughtMarks]] = (
    (("<|channel|>", "<|message|>", "analysis"), HARMONY),
    # Gemma 4.
    (("<|channel>", "<channel|>", "thought"), _tags("<|channel>thought", "<channel|>")),
    # Granite 3.3.
    (("</think>", "</response>"), _tags("<think>", "</think>", skips=("<response>",), ends=("</response>",))),
    # Qwen 3, DeepSeek R1, GLM, Kimi K2, Nemotron, SmolLM 3 and most others.
    (("</think>",), THINK),
    # Magistral, Ministral 3.
    (("[/THINK]",), _tags("[THINK]", "[/THINK]")),
    # Command A Reasoning, Command R7B.
    (
        ("<|END_THINKING|>",),
        _tags("<|START_THINKING|>", "<|END_THINKING|>", skips=("<|START_RESPONSE|>",), ends=("<|END_RESPONSE|>",)),
    ),
    (("</seed:think>",), _tags("<seed:think>", "</seed:think>")),
    (("</mm:think>",), _tags("<mm:think>", "</mm:think>")),
    (("<|inner_suffix|>",), _tags("<|inner_prefix|>", "<|inner_suffix|>")),
    (("◁/think▷",), _tags("◁think▷", "◁/think▷")),
    (("</thought>",), _tags("<thought>", "</thought>")),
    (("</thinking>",), _tags("<thinking>", "</thinking>")),
)


def find_marks(template: str | None) -> ThoughtMarks | None:
    """The marks that a chat template knows; None for a model that does not reason."""
    if template is None:
        return None
    return next((marks for known, marks in _BY_TEMPLATE if all(text in template for text in known)), None)


def model_reasons(path: Path, *, template: str | None = None) -> bool:
    """Whether the model in a GGUF file reasons, by the template in it, or by one that is used in place of that."""
    return find_marks(template or chat_template(path)) is not None
