"""How many tokens the attempts under way have made, which the worker's beat tells.

The runners write and the thread of the beat reads: a number may be a moment old, and nothing rests on it.
"""

import contextlib
from collections.abc import Iterator

from batcher.types import Choice
from workers.engines.base import Ticket
from workers.process.events import AttemptBeat, OpenAttempt


class AttemptTokens:
    """The tokens of one attempt. Its rows may take `max_tokens` in all; `tickets` are those of what the engine has."""

    def __init__(self, attempt: OpenAttempt) -> None:
        self.max_tokens = 0
        self.tickets: list[Ticket] = []
        self._attempt = attempt
        self._num_tokens = self._num_copied = 0

    def add(self, choice: Choice) -> None:
        """Count a choice that has come."""
        self._num_tokens += choice.usage.completion_tokens
        if choice.usage.is_copied:
            self._num_copied += choice.usage.completion_tokens

    def look(self) -> AttemptBeat:
        """What is made by now."""
        in_flight = sum(ticket.num_tokens for ticket in tuple(self.tickets))
        return AttemptBeat(self._attempt, self._num_tokens + in_flight, self._num_copied, self.max_tokens)


class Board:
    """The attempts that a process has under way. For all threads."""

    def __init__(self) -> None:
        self._attempts: dict[OpenAttempt, AttemptTokens] = {}

    @contextlib.contextmanager
    def follow(self, attempt: OpenAttempt) -> Iterator[AttemptTokens]:
        """What is to be told of an attempt, shown within the block."""
        tokens = self._attempts[attempt] = AttemptTokens(attempt)
        try:
            yield tokens
        finally:
            # Another's, where the job was deleted meanwhile, and one of its name has this attempt.
            if self._attempts.get(attempt) is tokens:
                del self._attempts[attempt]

    def look(self) -> tuple[AttemptBeat, ...]:
        """What each attempt has made by now."""
        return tuple(tokens.look() for tokens in tuple(self._attempts.values()))
