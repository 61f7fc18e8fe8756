"""Standard output of a command: what can't be written there ends the command with a line, never with a traceback.

Characters that the locale's encoding has not are written as JSON escapes them, so that a line of JSON stays one. For
the entry point only: a library leaves the streams of its process alone.
"""

import codecs
import errno
import io
import os
import sys
from typing import TYPE_CHECKING

from batcher.errors import StorageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_STDOUT, _STDERR = 1, 2
#: What handles the errors of an encoding.
_ESCAPING = "batcher.json_escapes"


class StdoutError(StorageError):
    """Standard output can't be written: its disk is full, or nobody has it open."""


class _Descriptor(io.FileIO):
    """That of standard output.

    The first write that fails raises StdoutError, or BrokenPipeError where the reader is gone. Later ones are dropped:
    what is left in a buffer must not fail once more at the end of the process. Mutable.
    """

    def __init__(self) -> None:
        super().__init__(_STDOUT, "wb", closefd=False)
        self._has_failed = False

    def write(self, data: "ReadableBuffer", /) -> int:
        if self._has_failed:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except BrokenPipeError:
            self._has_failed = True
            raise
        except OSError as exc:
            self._has_failed = True
            raise StdoutError(f"standard output: cannot write: {_reason(exc)}") from exc


def take_stdout() -> None:
    """Have `sys.stdout` write as this module says, to the descriptor that it has.

    A process may be started with closed streams, and then the next file that it opens is in their place, to which
    whoever prints would write. So their descriptors are taken: stdout can't be written then, and stderr goes nowhere.
    """
    if sys.stderr is None:
        _occupy(_STDERR, os.O_WRONLY)
        sys.stderr = open(_STDERR, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        _occupy(_STDOUT, os.O_RDONLY)
        encoding, is_line_buffered = "utf-8", False
    else:
        encoding, is_line_buffered = sys.stdout.encoding, bool(sys.stdout.line_buffering)
    codecs.register_error(_ESCAPING, _escape)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Descriptor()),
        encoding=encoding,
        errors=_ESCAPING,
        newline="\n",
        line_buffering=is_line_buffered,
    )


def has_reader() -> bool:
    """Whether what goes to standard output can still be read: False of a pipe whose reader is gone."""
    # Here and not above: one command needs it, and every command has this module.
    import select

    poll = select.poll()
    poll.register(_STDOUT, 0)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def _escape(exc: UnicodeError) -> tuple[str, int]:
    assert isinstance(exc, UnicodeEncodeError)
    units = exc.object[exc.start : exc.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True)), exc.end


def _occupy(number: int, flags: int) -> None:
    """Open the null device as this descriptor, for children, too."""
    found = os.open(os.devnull, flags)
    os.dup2(found, number)
    if found != number:
        os.close(found)
    os.set_inheritable(number, True)


def _reason(exc: OSError) -> str:
    if exc.errno == errno.EBADF:
        return "it is not open for writing; leave out >&-, or name a file"
    # Here and not above: no command that can write needs it.
    from batcher.jobdir.store import reason

    return reason(exc)
