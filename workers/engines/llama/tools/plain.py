"""Tells of functions in plain words, for templates that can't: what there is to call and how, and what was called."""

import json
from typing import Any

from batcher.types import Tools

_BEFORE = "You can call functions. Here they are, each with a JSON schema of its parameters:"
_BEHIND = "To call a function, answer with its name and its arguments, and nothing else:"
#: As `format.PLAIN` has it.
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_EXAMPLE = f'{_OPEN}\n{{"name": "...", "arguments": {{...}}}}\n{_CLOSE}'

Message = dict[str, Any]


def tell(messages: str, tools: Tools, *, takes_system: bool) -> str:
    """The JSON text of `messages` with the tools: in the first system message, or where the template takes none in the
    first of the user's. Calls of before are texts of the assistant's, and what they gave are the user's.
    """
    chat: list[Message] = []
    for message in json.loads(messages):
        told = _told(message)
        if message["role"] == "tool" and chat and chat[-1]["role"] == "user":
            # Some templates want the user and the assistant to take turns.
            told["content"] = f"{_text(chat.pop())}\n{told['content']}"
        chat.append(told)
    functions = [json.dumps(function, ensure_ascii=False) for function in tools.list_functions()]
    text = "\n".join([_BEFORE, *functions, "", _BEHIND, _EXAMPLE])
    role = "system" if takes_system else "user"
    at = next((at for at, message in enumerate(chat) if message["role"] == role), None)
    if at is None:
        chat.insert(0, {"role": role, "content": text})
    else:
        own = _text(chat[at])
        chat[at] = chat[at] | {"content": f"{own}\n\n{text}" if takes_system else f"{text}\n\n{own}"}
    return json.dumps(chat, ensure_ascii=False, separators=(",", ":"))


def _told(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{_text(message)}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    calls = [_call(call["function"]) for call in message["tool_calls"]]
    texts = [_text(message), *calls] if message["content"] else calls
    return {name: value for name, value in message.items() if name != "tool_calls"} | {"content": "\n".join(texts)}


def _text(message: Message) -> str:
    """The content of a message, which may be an array of parts."""
    content = message["content"]
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def _call(function: dict[str, Any]) -> str:
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{_OPEN}\n{{"name": {json.dumps(function["name"])}, "arguments": {text or "{}"}}}\n{_CLOSE}'
