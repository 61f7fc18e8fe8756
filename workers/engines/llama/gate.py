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
