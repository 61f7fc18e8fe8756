"""That a worker takes no more shards, and when the last of those that it has is done."""

import threading
from collections.abc import Callable


class Draining:
    """For all threads. `on_drained` is called once, when draining has begun and no shard is in work."""

    def __init__(self, on_drained: Callable[[], None]) -> None:
        self._on_drained = on_drained
        self._lock = threading.Lock()
        self._num_in_work = 0
        self._has_begun = False

    @property
    def has_begun(self) -> bool:
        return self._has_begun

    def begin(self) -> None:
        """Take no more from now on; to do so again changes nothing."""
        with self._lock:
            is_drained = not (self._has_begun or self._num_in_work)
            self._has_begun = True
        if is_drained:
            self._on_drained()

    def enter(self) -> bool:
        """A shard comes to be worked on, until `leave`. Returns False where it must go back: it came too late."""
        with self._lock:
            if self._has_begun:
                return False
            self._num_in_work += 1
            return True

    def leave(self) -> None:
        """The work on a shard is over."""
        with self._lock:
            self._num_in_work -= 1
            is_drained = self._has_begun and not self._num_in_work
        if is_drained:
            self._on_drained()
