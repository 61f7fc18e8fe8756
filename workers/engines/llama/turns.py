"""Whose turn it is among live sequences: slots go round by client, so that nobody waits behind all of another's.

The next slot goes to the client that has fewest of them, of several to the one that has waited longest since its last.
What one client sends stays in the order of its coming.
"""

import heapq
from collections import Counter, deque
from collections.abc import Iterator
from itertools import chain

from workers.engines.llama.sequence import Sequence


class Turns:
    """The live sequences that wait. For the engine's thread, but for `len`."""

    def __init__(self) -> None:
        # In the order of their turns; none is empty.
        self._queues: dict[str, deque[Sequence]] = {}
        self._num_waiting = 0

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Sequence]:
        return chain.from_iterable(self._queues.values())

    def add(self, sequence: Sequence) -> None:
        """Put a sequence behind the others of its client."""
        self._queues.setdefault(sequence.request.client, deque()).append(sequence)
        self._num_waiting += 1

    def put_back(self, sequence: Sequence) -> None:
        """Put a sequence before the others of its client."""
        self._queues.setdefault(sequence.request.client, deque()).appendleft(sequence)
        self._num_waiting += 1

    def take(self, sequence: Sequence) -> None:
        """Take a sequence out, which is its client's turn."""
        queue = self._queues.pop(sequence.request.client)
        queue.remove(sequence)
        if queue:
            self._queues[sequence.request.client] = queue
        self._num_waiting -= 1

    def in_turn(self, num_running: Counter[str]) -> Iterator[Sequence]:
        """The sequences in the order of the turns, where each client holds `num_running` slots at the first of them.

        Whoever asks may `take` each before the next; then it counts as running. One that is left has had its turn.
        """
        heap = [(num_running[client], turn, client, 0) for turn, client in enumerate(self._queues)]
        turn = len(heap)
        heapq.heapify(heap)
        while heap:
            num_slots, _, client, at = heapq.heappop(heap)
            sequence = self._queues[client][at]
            yield sequence
            queue = self._queues.get(client, ())
            at += at < len(queue) and queue[at] is sequence
            if at < len(queue):
                heapq.heappush(heap, (num_slots + 1, turn, client, at))
            turn += 1

    def drop(self, dropped: set[Sequence]) -> None:
        """Forget sequences."""
        kept = ((client, deque(s for s in queue if s not in dropped)) for client, queue in self._queues.items())
        self._queues = {client: queue for client, queue in kept if queue}
        self._num_waiting = sum(map(len, self._queues.values()))

    def clear(self) -> None:
        """Forget all."""
        self._queues.clear()
        self._num_waiting = 0
