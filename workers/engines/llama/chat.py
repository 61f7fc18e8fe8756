"""A model's chat template: how its GGUF wants messages to be written into one prompt.

A template is a program in the file of a model, which may come from anywhere, so it runs in Jinja's sandbox, which lets
it neither reach Python's internals nor change what it is given. How long it takes, and how much memory, nothing here
bounds: it runs in a process of its own (`chat_process`). What it may use beyond Jinja is what Hugging Face transformers
offers to templates (`apply_chat_template`): `raise_exception`, `strftime_now`, `tojson` without escapes,
`{% generation %}` around what the assistant said.

Templates differ in how they want contents. Those of models that see read a list of parts, some nothing else; others
know texts alone, and get the parts joined by newlines. They differ, too, in how they want tool calls of the past. The
arguments of a call are an object to most, as transformers has them, but JSON text in the API; to some they are that
text. A message without content is null in the API, and some would write "None". So a template gets what it can use.
Thoughts of the past have several names, of which it gets those that transformers gives it.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workers.engines.llama.chat_frames import ChatTemplateError

#: Stands behind the message to go on with, to find its end. The same as in transformers, as some templates look for it.
_END_MARK = "CONTINUE_FINAL_MESSAGE_TAG "

Message = dict[str, Any]

_SHORT_ID = re.compile("[a-zA-Z0-9]{9}")

#: What thoughts are called in messages; the first is what most templates read.
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")

#: What a text is found by that a template has written.
_NEEDLES = ("batcher-needle-1", "batcher-needle-2")
#: A part that a template has written as it is, as Python's text or as JSON.
_WRITTEN_PART = re.compile(r"""["']type["']: ?["']text["']""")

#: A call beside no content, its arguments in both forms.
_NULL_CHATS: list[list[Message]] = [
    [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": arguments}},
            ],
        },
        {"role": "tool", "name": "f", "content": "x", "tool_call_id": "call00001"},
    ]
    for arguments in (dict[str, Any](), "{}")
]


class ChatTemplate:
    """A compiled template. For any thread. Raises ChatTemplateError where `source` is not a template."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str) -> None:
        # As transformers has it: a block's own line leaves no blank line in the prompt.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            autoescape=False,
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = strftime_now
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._read_parts: dict[object, bool] = {}
        try:
            self._template = environment.from_string(source)
        except MemoryError:
            raise
        # Beside errors of its syntax: nested too deep for Python, or constants that can't be computed.
        except Exception as exc:
            raise ChatTemplateError(f"the model's chat template can't be read: {exc}") from exc

    def render(
        self, messages: str, *, adds_generation_prompt: bool = True, continues_final: bool = False, variables: str = ""
    ) -> str:
        """The prompt of `messages`, the JSON text of a list of `{"role", "content"}`, up to where the answer begins.

        With `continues_final` that is the end of the last message's content, else behind the end of the last message,
        or with `adds_generation_prompt` behind what opens an answer. `variables` is the JSON text of an object of
        further ones for the template; it can't replace ours. Raises ChatTemplateError, and MemoryError.
        """
        try:
            chat, own = json.loads(messages), json.loads(variables or "{}")
            known = {"tools": None, **own, "add_generation_prompt": adds_generation_prompt and not continues_final}
            if continues_final:
                return self._render_open(chat, known)
            return self._render_history(chat, known)
        except (ChatTemplateError, MemoryError):
            raise
        # A template runs into any error that its expressions can: a message without what it looks for, a wrong type.
        except Exception as exc:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {exc}") from exc

    def _render_open(self, chat: list[Message], known: dict[str, Any]) -> str:
        """Up to the end of the last message's content, found as transformers does."""
        field = "continue_final_message"
        content = chat[-1].get("content") if chat else None
        marked: str | list[Message]
        if isinstance(content, list) and content:
            marked = [*content[:-1], content[-1] | {"text": content[-1]["text"] + _END_MARK}]
            content = content[-1]["text"]
        elif isinstance(content, str):
            marked = content + _END_MARK
        else:
            raise ChatTemplateError("the last message has no content to go on with; give it some", field=field)
        text = self._render_history([*chat[:-1], chat[-1] | {"content": marked}], known)
        end = text.rfind(_END_MARK.rstrip())
        if end < 0 or content.strip() not in text:
            raise ChatTemplateError(
                "the model's chat template changes the last message or leaves it out, so it can't go on; leave the "
                "parameter out",
                field=field,
            )
        # A template that strips a message has stripped the mark's blank, and would have stripped those before it.
        return text[:end] if text.startswith(_END_MARK, end) else text[:end].rstrip()

    def _render_history(self, chat: list[Message], known: dict[str, Any]) -> str:
        first: Exception | None = None
        for form in self._forms(chat):
            try:
                return self._write(form, known)
            except Exception as exc:
                first = first or exc
        assert first is not None
        raise first

    def _forms(self, chat: list[Message]) -> Iterator[list[Message]]:
        """`chat` as templates may want it, as this one most probably does first."""
        chat = [self._with_content(_with_thoughts(message)) for message in chat]
        contents = [chat]
        if any(message.get("content") is None for message in chat):
            contents.append([message | {"content": message.get("content") or ""} for message in chat])
            if not self._takes_null:
                contents.reverse()
        for written in contents:
            with_objects = [_with_objects(message) for message in written]
            yield with_objects
            if with_objects != written:
                yield written
        with_short_ids = [_with_short_ids(message) for message in chat]
        if with_short_ids != chat:
            yield [_with_objects(message) for message in with_short_ids]

    def _with_content(self, message: Message) -> Message:
        """The message with its content in a form that the template can read."""
        content, role = message.get("content"), message.get("role")
        if isinstance(content, list) and not self._reads_parts(role):
            return message | {"content": "\n".join(part["text"] for part in content)}
        if isinstance(content, str) and not self._reads_texts:
            return message | {"content": [{"type": "text", "text": content}]}
        return message

    def _reads_parts(self, role: object) -> bool:
        """Whether it writes the parts of a message's content, and not the list itself."""
        known = self._read_parts.get(role)
        if known is None:
            parts = [{"type": "text", "text": needle} for needle in _NEEDLES]
            text = self._try_to_write(_probe(role, parts))
            known = all(needle in text for needle in _NEEDLES) and not re.search(
                r"""["']type["']: ?["']text["']""", text
            )
            self._read_parts[role] = known
        return known

    @cached_property
    def _reads_texts(self) -> bool:
        """Whether it writes contents that are texts. One that reads parts alone does not."""
        return _NEEDLES[0] in self._try_to_write(_probe("user", _NEEDLES[0])) or not self._reads_parts("user")

    def _try_to_write(self, chat: list[Message]) -> str:
        with contextlib.suppress(Exception):
            return self._write(chat, {"tools": None, "add_generation_prompt": False})
        return ""

    def _write(self, chat: list[Message], known: dict[str, Any]) -> str:
        return self._template.render({**known, **self._tokens, "messages": chat})

    @cached_property
    def _takes_null(self) -> bool:
        """Whether a message of calls whose content is null is written as if it had none."""
        for chat in _NULL_CHATS:
            with contextlib.suppress(Exception):
                text = self._write(chat, {"tools": None, "add_generation_prompt": False})
                return "None" not in text and "null" not in text
        return False


def _probe(role: object, content: Any) -> list[Message]:
    """A chat with a message of this role and content, in which others are texts."""
    user, message = {"role": "user", "content": "x"}, {"role": role, "content": content}
    if role == "system":
        return [message, user]
    if role == "tool":
        return [*_NULL_CHATS[0][:2], _NULL_CHATS[0][2] | message]
    return [message] if role == "user" else [user, message]


class _Generation(Extension):
    """`{% generation %}`: its body, as if it was not there."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _with_thoughts(message: Message) -> Message:
    """The message with its thoughts under the names that templates know, as transformers has them."""
    if not isinstance(message, dict):
        return message
    found = next((message[name] for name in _THOUGHTS if message.get(name) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def _with_objects(message: Message) -> Message:
    """The message with objects as arguments of its calls, where their text is that of one."""
    if not isinstance(message, dict) or not message.get("tool_calls"):
        return message
    calls = [call | {"function": _with_object(call["function"])} for call in message["tool_calls"]]
    return message | {"tool_calls": calls}


def _with_short_ids(message: Message) -> Message:
    """The message with ids of calls of nine letters and digits: Mistral's templates refuse all others."""
    if not isinstance(message, dict):
        return message
    short = dict(message)
    if message.get("tool_call_id"):
        short["tool_call_id"] = _short_id(message["tool_call_id"])
    if message.get("tool_calls"):
        short["tool_calls"] = [
            call | {"id": _short_id(call["id"])} if call.get("id") else call for call in message["tool_calls"]
        ]
    return short


def _short_id(call_id: str) -> str:
    return call_id if _SHORT_ID.fullmatch(call_id) else hashlib.blake2b(call_id.encode(), digest_size=5).hexdigest()[:9]


def _with_object(function: dict[str, Any]) -> dict[str, Any]:
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        return function
    try:
        found = json.loads(arguments) if arguments else {}
    except (ValueError, TypeError):
        return function
    return function | {"arguments": found} if isinstance(found, dict) else function


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def strftime_now(layout: str) -> str:
    """The local time, for templates."""
    return datetime.now().strftime(layout)
