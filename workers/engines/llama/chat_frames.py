"""What passes between an engine and the process that writes its chats (`chat_writer`, `chat_process`).

Frames over a socket: first the template, answered by an empty text or by why it can't be used; then chats, each
answered by its prompt or by why there is none. Answers wait while more chats follow. A frame is a head and a text or
two. Both sides are of one installation, so there is no version.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass

#: Of a chat: bits, among them how it ends, seconds of computing that it may take, bytes of its messages and variables.
_CHAT_HEAD = struct.Struct("<BdQQ")
#: Of an answer: whether it is a refusal, bytes of its text.
_ANSWER_HEAD = struct.Struct("<?Q")

_ADDS_GENERATION_PROMPT, _CONTINUES_FINAL, _IS_FOLLOWED = 1, 2, 4

#: How the process ends when there is no memory left below its limit.
EXIT_NO_MEMORY = 97

#: Bytes that are read from the socket in one go, if there are as many.
READ_BYTES = 64 << 10

#: Reads so many bytes, and fewer only at the end.
Read = Callable[[int], bytes]


class ChatTemplateError(Exception):
    """Messages that a template refuses, or a template that can't be used; the text says which.

    `field` is the parameter that is to blame.
    """

    def __init__(self, message: str, *, field: str = "messages") -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Source:
    """A template, and what its model calls the tokens at the ends of a text."""

    source: str
    bos_token: str
    eos_token: str


@dataclass(frozen=True, slots=True)
class Chat:
    """What `ChatTemplate.render` takes."""

    messages: str
    adds_generation_prompt: bool
    continues_final: bool
    variables: str


def encode_source(source: Source, *, seconds: float) -> bytes:
    """A frame. Compiling may take so many seconds of computing."""
    return _frame(0, seconds, json.dumps(asdict(source)), "")


def encode_chat(chat: Chat, *, seconds: float, is_followed: bool = False) -> bytes:
    """A frame. To write it may take so many seconds of computing; its answer waits if `is_followed` by another."""
    bits = _ADDS_GENERATION_PROMPT * chat.adds_generation_prompt | _CONTINUES_FINAL * chat.continues_final
    return _frame(bits | _IS_FOLLOWED * is_followed, seconds, chat.messages, chat.variables)


def decode_source(chat: Chat) -> Source:
    """What the first frame is."""
    return Source(**json.loads(chat.messages))


def read_chat(read: Read) -> tuple[Chat, float, bool] | None:
    """The next frame, the seconds that it may take, and whether another follows; None at the end."""
    head = read(_CHAT_HEAD.size)
    if len(head) < _CHAT_HEAD.size:
        return None
    bits, seconds, num_bytes, num_more = _CHAT_HEAD.unpack(head)
    messages, variables = _decode(read(num_bytes)), _decode(read(num_more))
    chat = Chat(messages, bool(bits & _ADDS_GENERATION_PROMPT), bool(bits & _CONTINUES_FINAL), variables)
    return chat, seconds, bool(bits & _IS_FOLLOWED)


def encode_text(text: str) -> bytes:
    """An answer."""
    data = _encode(text)
    return _ANSWER_HEAD.pack(False, len(data)) + data


def encode_refusal(error: ChatTemplateError) -> bytes:
    """An answer."""
    data = json.dumps([str(error), error.field]).encode()
    return _ANSWER_HEAD.pack(True, len(data)) + data


def read_answer(read: Read) -> str | ChatTemplateError:
    """The text of the next answer, or what it refuses. Raises EOFError at the end."""
    head = read(_ANSWER_HEAD.size)
    if len(head) < _ANSWER_HEAD.size:
        raise EOFError
    is_refusal, num_bytes = _ANSWER_HEAD.unpack(head)
    data = read(num_bytes)
    if len(data) < num_bytes:
        raise EOFError
    if not is_refusal:
        return _decode(data)
    message, field = json.loads(data)
    return ChatTemplateError(message, field=field)


def _frame(bits: int, seconds: float, messages: str, variables: str) -> bytes:
    first, second = _encode(messages), _encode(variables)
    return _CHAT_HEAD.pack(bits, seconds, len(first), len(second)) + first + second


# Halves of surrogate pairs, which JSON can name, are taken along.
def _encode(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _decode(data: bytes) -> str:
    return data.decode(errors="surrogatepass")
