"""Writes chats as prompts by a model's template, which runs in a process of its own.

A template is a program of whoever made the model's file. In this process it could compute for hours or take all memory,
and with it the other models and all rows of this worker. Nothing in Python bounds either, as a single expression can do
both. So each writer has a process, whose end is the kernel's business (`chat_process`); when it was ended, the next
chat has a new one. It is started with the first chat. A model has two (`prompts`): for short chats, and for long.

The time that a chat may take is that of the processor: a busy machine has nobody refused. Each that takes too long
halves what the next may take, so that a file of many such rows comes to an end; one that does not restores it.
"""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from io import IOBase

from batcher.errors import EngineError
from workers.engines.llama.chat_frames import (
    EXIT_NO_MEMORY,
    READ_BYTES,
    Chat,
    ChatTemplateError,
    Source,
    encode_chat,
    encode_source,
    read_answer,
)

#: -P: without it, a `workers` in the user's working directory would be taken for ours.
COMMAND = (sys.executable, "-P", "-m", "workers.engines.llama.chat_process")

#: Seconds of computing that a chat may take, and a template to be compiled. Usual chats take less than a thousandth.
MAX_SECONDS = 2.0
#: What is left of it where one after the other took too long.
MIN_SECONDS = 0.1
#: Seconds without a word from a process that may compute for `MAX_SECONDS`: it is frozen, or the machine is.
_PATIENCE_S = 120.0


class ChatProcessError(Exception):
    """There can be no process to write chats, for no fault of the template's or the chat's."""


#: A prompt, or why there is none.
Written = str | ChatTemplateError | ChatProcessError


class ChatWriter:
    """Writes the chats of one model, one at a time. For all threads."""

    def __init__(self, source: Source, *, max_seconds: float = MAX_SECONDS) -> None:
        self._source = source
        self._max_seconds = self._seconds = max_seconds
        self._lock = threading.Lock()
        self._process: _Process | None = None
        #: Why no chat can be written by this template.
        self._why_unusable: str | None = None
        self._is_closed = False

    def write(self, chat: Chat) -> str:
        """The prompt of a chat, as `ChatTemplate.render` has it. Blocks until it is written, or has taken too long.

        Raises ChatTemplateError and ChatProcessError, and EngineError when the writer was closed.
        """
        with self._lock:
            seconds = self._seconds
            try:
                [answer] = self._ask([chat])
            except _EndedError as exc:
                if exc.is_late:
                    self._seconds = max(seconds / 2, min(MIN_SECONDS, self._max_seconds))
                what = exc.of_template(seconds)
                raise ChatTemplateError(f"the model's chat template {what} to write these messages") from exc
        if isinstance(answer, Exception):
            raise answer
        return answer

    def write_all(self, chats: Sequence[Chat]) -> list[Written]:
        """The prompts of chats, or why there are none: quicker than one by one. As `write` raises EngineError."""
        with contextlib.suppress(_EndedError, ChatTemplateError, ChatProcessError), self._lock:
            return [*self._ask(chats)]
        # Which of them is to blame is found out one by one.
        return [self._try_to_write(chat) for chat in chats]

    def _try_to_write(self, chat: Chat) -> Written:
        try:
            return self.write(chat)
        except (ChatTemplateError, ChatProcessError) as exc:
            return exc

    def close(self) -> None:
        """End the process, whatever it does; who waits for it gets an EngineError. Idempotent."""
        self._is_closed = True
        process = self._process
        if process is not None:
            process.kill()
        with self._lock:
            if self._process is not None:
                self._process.end()
                self._process = None

    def _ask(self, chats: Sequence[Chat]) -> list[str | ChatTemplateError]:
        """What the process answers, one after the other. Raises also _EndedError."""
        if self._why_unusable is not None:
            raise ChatTemplateError(self._why_unusable)
        process = self._process
        if process is None or process.has_ended:
            process = self._start()
        last = len(chats) - 1
        frames = [encode_chat(chat, seconds=self._seconds, is_followed=at < last) for at, chat in enumerate(chats)]
        answers = self._exchange(process, frames)
        self._seconds = self._max_seconds
        return answers

    def _start(self) -> "_Process":
        """Start a process that has the template compiled."""
        self._check_open()
        try:
            process = self._process = _Process()
        except OSError as exc:
            raise ChatProcessError(f"no process can be started to write the chat: {exc.strerror or exc}") from exc
        # `close` may have come before there was something to end.
        self._check_open()
        try:
            [answer] = self._exchange(process, [encode_source(self._source, seconds=self._max_seconds)])
        except _EndedError as exc:
            self._why_unusable = f"the model's chat template can't be read: it {exc.of_template(self._max_seconds)}"
            raise ChatTemplateError(self._why_unusable) from exc
        if isinstance(answer, ChatTemplateError):
            self._why_unusable = str(answer)
            self._end(process)
            raise answer
        return process

    def _exchange(self, process: "_Process", frames: Sequence[bytes]) -> list[str | ChatTemplateError]:
        """As `_Process.ask`; raises EngineError where `close` has ended it."""
        try:
            return process.ask(frames)
        except BaseException:
            # An interrupt, too, leaves answers behind that would be taken for those to the next chats.
            self._end(process)
            self._check_open()
            raise

    def _end(self, process: "_Process") -> None:
        self._process = None
        process.end()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError("the engine is closed")


class _EndedError(Exception):
    """The process ended, or was frozen for long. `exit_code` as `Popen.returncode` has it."""

    def __init__(self, exit_code: int, *, is_frozen: bool) -> None:
        super().__init__(f"the process that writes chats ended with {exit_code}")
        self._exit_code = exit_code
        self.is_late = is_frozen or exit_code == -signal.SIGPROF

    def of_template(self, seconds: float) -> str:
        """What to say of a template that had so many seconds. Raises ChatProcessError where it is not to blame."""
        if self.is_late:
            return f"takes longer than {seconds:g} s"
        # The kernel takes this process first when memory is short.
        if self._exit_code in (EXIT_NO_MEMORY, -signal.SIGKILL):
            return "needs more memory than it may have"
        if self._exit_code < 0:
            return f"ends Python with {signal.Signals(-self._exit_code).name}"
        raise ChatProcessError(str(self)) from self


class _Process:
    """A running `chat_process`, and our end of its socket. Ended when nobody holds it. Raises OSError."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        try:
            with theirs:
                # A group of its own: Ctrl-C is for those who wait for the prompts.
                self._popen = subprocess.Popen(
                    COMMAND, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, process_group=0
                )
        except OSError:
            self._channel.close()
            raise
        self._channel.settimeout(_PATIENCE_S)
        self._answers = self._channel.makefile("rb", READ_BYTES)
        self._finalize = weakref.finalize(self, _end, self._popen, self._channel, self._answers)

    @property
    def has_ended(self) -> bool:
        """Whether it is gone while nobody asked it: the kernel takes it first when memory is short."""
        return self._popen.poll() is not None

    def ask(self, frames: Sequence[bytes]) -> list[str | ChatTemplateError]:
        """The answers to frames, all of which but the last are followed. Raises _EndedError."""
        try:
            self._channel.sendall(b"".join(frames))
            return [read_answer(self._answers.read) for _ in frames]
        except (EOFError, OSError) as exc:
            is_frozen = isinstance(exc, TimeoutError)
            if is_frozen:
                self.kill()
            raise _EndedError(self._popen.wait(), is_frozen=is_frozen) from exc

    def kill(self) -> None:
        """End it; who asks it hears of that."""
        self._popen.kill()

    def end(self) -> None:
        """End it, and free what it took. Idempotent; not while somebody asks it."""
        self._finalize()


def _end(popen: "subprocess.Popen[bytes]", channel: socket.socket, answers: IOBase) -> None:
    popen.kill()
    popen.wait()
    answers.close()
    channel.close()
