"""What waits is handed out by rounds: one thing of each client after the other, so that nobody waits behind all of
another's."""

from collections import deque
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Rounds(Generic[_T]):
    """Things that wait, each of a client. What one client has stays in its order. For one thread at a time."""

    def __init__(self) -> None:
        # In the order of their turns; none is empty.
        self._queues: dict[str, deque[_T]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def put(self, client: str, thing: _T) -> None:
        """Put a thing behind the others of its client."""
        self._queues.setdefault(client, deque()).append(thing)

    def pop(self) -> _T:
        """Take out the next thing, whose client then waits for another round. There must be one."""
        client = next(iter(self._queues))
        queue = self._queues.pop(client)
        thing = queue.popleft()
        if queue:
            self._queues[client] = queue
        return thing
