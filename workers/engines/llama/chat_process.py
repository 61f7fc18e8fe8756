"""The process that writes the chats of one model, by its template, which may be anybody's program.

Started by `chat_writer` as `python -m workers.engines.llama.chat_process`; stdin is a socket. The kernel ends it when a
chat takes longer than it may, in seconds of computing (SIGPROF, which nobody handles). It ends by itself when no memory
is left below its limit, and when the socket ends.
"""

import contextlib
import importlib
import os
import resource
import signal
import socket
from pathlib import Path

from workers.engines.llama.chat import ChatTemplate, strftime_now
from workers.engines.llama.chat_frames import (
    EXIT_NO_MEMORY,
    READ_BYTES,
    Chat,
    ChatTemplateError,
    Read,
    Source,
    decode_source,
    encode_refusal,
    encode_text,
    read_chat,
)

#: Bytes of memory beyond what the process takes at its start. A chat of 10 MB, the server's limit, takes at most half.
MAX_MEMORY_BYTES = 512 << 20
#: Bytes of a prompt. No model has room for as many.
MAX_PROMPT_BYTES = 64 << 20
#: What Jinja and Python import only when it is used.
_NEEDED_LATE = ("jinja2.constants", "jinja2.debug", "encodings.unicode_escape", "html", "textwrap", "unicodedata")
#: Characters of what a template says when it refuses messages.
_MAX_REASON_CHARS = 1000


def main() -> int:
    """Answer until the other side hangs up. Returns the exit code."""
    # Ctrl-C is for those who wait for the prompts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _go_first()
    _limit_memory()
    _close_doors()
    try:
        with socket.socket(fileno=0) as channel, channel.makefile("rb", READ_BYTES) as frames:
            _answer_all(channel, frames.read)
    except MemoryError:
        return EXIT_NO_MEMORY
    # The other side died with something unsaid or unread.
    except ConnectionError:
        return 1
    return 0


def _answer_all(channel: socket.socket, read: Read) -> None:
    template: ChatTemplate | None = None
    waiting = bytearray()
    while (found := read_chat(read)) is not None:
        chat, seconds, is_followed = found
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if template is None:
                template, text = _compile(decode_source(chat)), ""
            else:
                text = _write(template, chat)
            answer = encode_text(text)
            if len(answer) > MAX_PROMPT_BYTES:
                raise MemoryError
        except ChatTemplateError as exc:
            answer = encode_refusal(ChatTemplateError(str(exc)[:_MAX_REASON_CHARS], field=exc.field))
        signal.setitimer(signal.ITIMER_PROF, 0)
        waiting += answer
        # Not before: the other side reads only when it has sent all.
        if not is_followed:
            channel.sendall(waiting)
            waiting.clear()


def _compile(source: Source) -> ChatTemplate:
    return ChatTemplate(source.source, bos_token=source.bos_token, eos_token=source.eos_token)


def _write(template: ChatTemplate, chat: Chat) -> str:
    return template.render(
        chat.messages,
        adds_generation_prompt=chat.adds_generation_prompt,
        continues_final=chat.continues_final,
        variables=chat.variables,
    )


def _go_first() -> None:
    """Have the kernel take this process before all others when memory is short."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _limit_memory() -> None:
    # Where the system does not say how much it takes now, none is set.
    with contextlib.suppress(OSError, ValueError):
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = num_pages * os.sysconf("SC_PAGE_SIZE") + MAX_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _close_doors() -> None:
    """Open no more files and connections, and start no processes, whatever a hole in the sandbox may let in."""
    for name in _NEEDED_LATE:
        importlib.import_module(name)
    # The time zone is read with the first time.
    strftime_now("%H")
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (0, 0))


if __name__ == "__main__":
    # The interpreter's own end is of no use to anybody, and with a template's heap it takes long.
    os._exit(main())
