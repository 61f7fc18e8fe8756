"""Who may compute in this process: any number of engines side by side, or one request alone.

A row that is under suspicion of killing workers runs alone, in the whole process: if the process dies meanwhile, it
was this row. Whoever waits to be alone goes before those who come to share.
"""

import contextlib
import threading
from collections.abc import Iterator


class Gate:
    """A lock that is held shared or exclusively. Not reentrant. For all threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_sharing = 0
        self._num_waiting = 0
        self._is_exclusive = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Compute beside others. Blocks while somebody is alone, or waits to be."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_exclusive or self._num_waiting))
            self._num_sharing += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_sharing -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Compute alone. Blocks until nobody else does."""
        with self._changed:
            self._num_waiting += 1
            try:
                self._changed.wait_for(lambda: not (self._is_exclusive or self._num_sharing))
                self._is_exclusive = True
            finally:
                self._num_waiting -= 1
                # Also those who share may go on if the wait was broken off.
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._is_exclusive = False
                self._changed.notify_all()


class Right:
    """One engine's right to compute: each step beside others, or alone from a sequence's first token to its last.

    For the engine's thread; others may ask whether it `is_awaited`.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._alone = contextlib.ExitStack()
        self.is_exclusive = False
        self.is_awaited = False

    def of_step(self, *, is_alone: bool) -> contextlib.AbstractContextManager[None]:
        """The right to compute one step. One that `is_alone` leaves it held until `leave`, or a step that is not."""
        if not is_alone:
            self.leave()
            return self._shared()
        if not self.is_exclusive:
            self.is_awaited = True
            self._alone.enter_context(self._gate.exclusive())
            self.is_awaited = False
            self.is_exclusive = True
        return contextlib.nullcontext()

    def leave(self) -> None:
        """Let others compute."""
        self._alone.close()
        self.is_exclusive = False

    @contextlib.contextmanager
    def _shared(self) -> Iterator[None]:
        self.is_awaited = True
        with self._gate.shared():
            self.is_awaited = False
            yield
