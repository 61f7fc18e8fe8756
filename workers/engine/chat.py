"""A model's chat template: how its GGUF wants messages to be written into one prompt.

A template is a program in the file of a model, which may come from anywhere, so it runs in Jinja's sandbox, which lets
it neither reach Python's internals nor change what it is given. What it may use beyond Jinja is what Hugging Face
transformers offers to templates (`apply_chat_template`): `raise_exception`, `strftime_now`, `tojson` without escapes.
"""

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment


class ChatTemplateError(Exception):
    """Messages that a template refuses, or a template that can't be used; the text says which."""


class ChatTemplate:
    """A compiled template. For any thread. Raises ChatTemplateError where `source` is none."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        # As transformers has it: a block's own line leaves no blank line in the prompt.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            autoescape=False,
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = environment.from_string(source)
        except TemplateError as exc:
            raise ChatTemplateError(f"the model's chat template can't be read: {exc}") from exc

    def render(self, messages: str) -> str:
        """The prompt of `messages`, the JSON text of a list of `{"role", "content"}`, up to where the answer begins."""
        try:
            return self._template.render(
                messages=json.loads(messages), add_generation_prompt=True, tools=None, **self._tokens
            )
        # A template runs into any error that its expressions can: a message without what it looks for, a wrong type.
        except Exception as exc:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {exc}") from exc


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)
