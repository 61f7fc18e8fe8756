"""Plain rows that are chats: they have messages, or `--chat` makes their prompt the user's message.

A row that has a prompt is no chat by its messages; they are a column of the user's then. The system message of the job
goes before the messages of a chat that has none of its own.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from batcher.errors import InputError, InvalidBodyError, InvalidRowError
from batcher.openai import bodies
from batcher.openai.parameters import shown

#: The key or column of a row that holds the messages of a chat.
MESSAGES = "messages"


@dataclass(frozen=True, slots=True)
class ChatRows:
    """How the rows of an input become chats.

    `prompt_column` is where prompts are; None: a template makes them. `reads_messages`: a row without a prompt can have
    messages instead. `makes_chats`: prompts become chats. `system` is the text of the job's system message.
    Raises InputError for a system message that no row could take.
    """

    prompt_column: str | None
    reads_messages: bool
    makes_chats: bool
    system: str | None

    def __post_init__(self) -> None:
        if self.system is not None and not (self.reads_messages or self.makes_chats):
            raise InputError("--system is for chats, and these prompts are completions; give --chat too")

    def is_among(self, names: Collection[str]) -> bool:
        """Whether rows with these keys or columns can be chats."""
        return self.makes_chats or (self.reads_messages and MESSAGES in names)

    def is_chat(self, values: Mapping[str, Any]) -> bool:
        """Whether a row is one."""
        return self.makes_chats or self._has_messages(values)

    def column(self, values: Mapping[str, Any]) -> str | None:
        """The key that the chat in a row is made of; None for a row that is no chat, and where a template makes it."""
        if self._has_messages(values):
            return MESSAGES
        return self.prompt_column if self.makes_chats else None

    def prompt(self, values: Mapping[str, Any]) -> str:
        """The prompt of the chat in a row, where no template makes it. Raises InvalidRowError."""
        column = self.column(values)
        assert column is not None, "the row is a chat"
        value = values.get(column)
        if self._has_messages(values):
            return self._of_messages(_read_json(value) if isinstance(value, str) else value, column)
        if isinstance(value, str):
            return self.of_user(value)
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            return self._of_messages(value, column)
        if column not in values:
            remedy = "use a string, or say with --prompt-column or --template where it comes from"
            raise InvalidRowError(f"{column} is missing; {remedy}", param=column, kind="missing")
        if isinstance(value, list) and value:
            remedy = "a chat has one: use a string, and a row for each"
            raise InvalidRowError(f"{column} is {shown(value)}; {remedy}", param=column, kind="several")
        raise InvalidRowError(f"{column} is {shown(value)}; use a string, or an array of messages", param=column)

    def of_user(self, text: str) -> str:
        """The prompt of a chat of one message, the user's."""
        return self._of_messages([{"role": "user", "content": text}], MESSAGES)

    def refused_prompt(self, values: Mapping[str, Any]) -> str | None:
        """What a chat that is refused has for a prompt in the results, as far as it goes."""
        column = self.column(values)
        value = None if column is None else values.get(column)
        return bodies.compact_json(value) if isinstance(value, list) else value if isinstance(value, str) else None

    def _has_messages(self, values: Mapping[str, Any]) -> bool:
        """Whether a row is to be read by its messages: they may be wrong, but there is no prompt."""
        if not self.reads_messages or MESSAGES not in values:
            return False
        if self.prompt_column is None or self.prompt_column not in values:
            return True
        return values[self.prompt_column] is None and values[MESSAGES] is not None

    def _of_messages(self, messages: Any, column: str) -> str:
        try:
            return bodies.chat_prompt(messages, system=self.system)
        except InvalidBodyError as exc:
            # It begins with the field, which is `messages` whatever the column is called.
            where = "" if column == MESSAGES else f"{column}: "
            raise InvalidRowError(f"{where}{exc}", param=exc.param) from exc


def _read_json(text: str) -> Any:
    """What a column of text holds, as tables without nested types have to write messages."""
    if bodies.has_too_many_containers(text.encode(errors="replace")):
        raise InvalidRowError(f"messages {bodies.TOO_MANY_CONTAINERS}", param=MESSAGES)
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError as exc:
        why = bodies.not_json(text.encode(errors="replace"), exc)
        problem = f"messages is {shown(text)}, which is text and {why}"
        raise InvalidRowError(f"{problem}; use an array of messages, or its JSON text", param=MESSAGES) from exc
