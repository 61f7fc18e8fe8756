"""Starts the processes that compute: Python with `workers.child`, joined to its parent by two pipes (see `supervisor`).

Half of the seconds until a child computes are imports, for which it needs to know nothing. So a command that is going
to need workers starts their processes first and gets its own work done meanwhile: `spare_children`.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

#: -P: without it, a `workers` in the user's working directory would be taken for ours.
CHILD_COMMAND = (sys.executable, "-P", "-m", "workers.child")

#: Has malloc ask the kernel for huge pages (glibc 2.35 and newer; others ignore it). Weights and KV cache are streamed
#: from memory at each step (docs/performance.md).
_HUGE_PAGES = "glibc.malloc.hugetlb=1"

#: Seconds for the last lines of children that have ended.
_END_PATIENCE_S = 1.0


def engine_environment() -> dict[str, str]:
    """This process's environment with what is good for llama.cpp; whatever the user has set stays.

    For the start of a process that computes: it can't be set later.
    """
    return {"GLIBC_TUNABLES": _HUGE_PAGES, **os.environ}


def launch_child(
    command: Sequence[str] = CHILD_COMMAND, *, descriptors: tuple[int, ...] = (), log: int | None = None
) -> subprocess.Popen[bytes]:
    """Start a child that waits for its configuration, a line on its stdin. `descriptors` stay open in it, too.

    `log` is the descriptor of its stderr; None: that of this process.

    It leads a session of its own, so that a Ctrl-C in the terminal does not reach it.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
        pass_fds=descriptors,
        env=engine_environment(),
    )


@contextlib.contextmanager
def spare_children(number: int, *, log: int | None = None) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Children for those who take one (`pop`) and own it from then on; what nobody took is gone at the end.

    `log` is as for `launch_child`.
    """
    spares: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(number):
            spares.append(launch_child(log=log))
        yield spares
    finally:
        for child in spares:
            kill_child(child)


def kill_child(child: subprocess.Popen[bytes]) -> None:
    """End a child at once, with whatever it may have started, and wait for it."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    close_child(child)


def close_child(child: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a child and close its pipes."""
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class ChildPipe:
    """A pipe for the stderr of children, in a `with` block: `descriptor` is their end, `read` gets the other one.

    That is called in a thread, and is to read and close it.
    """

    def __init__(self, read: Callable[[int], None]) -> None:
        self._read = read

    def __enter__(self) -> Self:
        reading, self.descriptor = os.pipe()
        self._thread = threading.Thread(target=self._read, args=(reading,), name="child-pipe", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self.descriptor)
        # Not longer: something that a child has left behind may hold the other end.
        self._thread.join(_END_PATIENCE_S)
