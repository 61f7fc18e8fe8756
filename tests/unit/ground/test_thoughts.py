"""The marks of models that reason, as their chat templates have them. The templates are short ones in their manner."""

import pytest

from batcher.thoughts import HARMONY, THINK, find_marks

_TEMPLATES = {
    "plain": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "qwen3": "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}",
    "deepseek_r1": "{{ content.split('</think>')[-1] }}{% if add_generation_prompt %}<|Assistant|><think>{% endif %}",
    "magistral": "[SYSTEM_PROMPT]...[/SYSTEM_PROMPT]{{ '[THINK]' + block.thinking + '[/THINK]' }}",
    "gpt_oss": "<|start|>assistant<|channel|>analysis<|message|>{{ message.thinking }}<|end|>",
    "gemma4": "{{ '<|channel>thought\n' + message.reasoning + '\n<channel|>' }}",
    "command": "<|START_THINKING|>{{ message.tool_plan }}<|END_THINKING|><|START_RESPONSE|>",
    "granite": "Write your thoughts between <think></think> and write your response between <response></response>",
    "seed": "<seed:think>{{ message.reasoning_content }}</seed:think>",
}


@pytest.mark.parametrize(
    ("name", "opening", "closing"),
    [
        ("qwen3", "<think>", "</think>"),
        ("deepseek_r1", "<think>", "</think>"),
        ("granite", "<think>", "</think>"),
        ("magistral", "[THINK]", "[/THINK]"),
        ("gpt_oss", "<|channel|>analysis<|message|>", "<|end|>"),
        ("gemma4", "<|channel>thought", "<channel|>"),
        ("command", "<|START_THINKING|>", "<|END_THINKING|>"),
        ("seed", "<seed:think>", "</seed:think>"),
    ],
)
def test_marks_are_those_of_the_template(name: str, opening: str, closing: str) -> None:
    marks = find_marks(_TEMPLATES[name])

    assert marks is not None
    assert (marks.opens, marks.closes) == ((opening,), (closing,))


@pytest.mark.parametrize("template", [None, "", _TEMPLATES["plain"]])
def test_model_without_marks_does_not_reason(template: str | None) -> None:
    assert find_marks(template) is None


def test_prompt_that_ends_in_an_opening_mark_has_begun_the_thoughts() -> None:
    assert THINK.are_open("<|Assistant|><think>\n")
    assert THINK.are_open("<|im_start|>assistant\n<think>")
    assert not THINK.are_open("<|im_start|>assistant\n")
    # Qwen 3, told not to think.
    assert not THINK.are_open("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    # What a user says is not at the end.
    assert not THINK.are_open("<|user|>What does <think> mean?<|assistant|>")


def test_message_to_go_on_with_may_end_in_its_thoughts() -> None:
    assert THINK.are_unclosed("<think>First")
    assert not THINK.are_unclosed("<think>First</think> So")
    assert not THINK.are_unclosed("So")


def test_prompt_is_closed_so_that_the_answer_has_no_thoughts() -> None:
    assert THINK.close("<|Assistant|><think>\n") == "<|Assistant|><think>\n\n</think>\n\n"
    assert THINK.close("<|Assistant|>") == "<|Assistant|><think>\n\n</think>\n\n"
    assert HARMONY.close("<|start|>assistant") == "<|start|>assistant<|channel|>final<|message|>"
