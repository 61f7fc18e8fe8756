"""Live requests: what the HTTP server and the engines it asks say to each other.

The server has engines in a process of their own (`workers.child`), so that a crash in one takes no connection along
and writing to a thousand clients takes no time from decoding. Here is what passes between, and `LiveEngine`, which is
all that the routes of the server know of it.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from batcher.errors import BatcherError
from batcher.types import Choice, Delta, EngineStats, Request, RowError


class LiveRequestError(BatcherError):
    """A live request failed, for a reason of the taxonomy. Its engine goes on."""

    def __init__(self, error: RowError) -> None:
        super().__init__(error.message)
        self.error = error


class EngineAwayError(BatcherError):
    """The engine's process is loading, died, or is stopping: the request can be sent again in a while."""

    is_retriable = True


class LiveEngine(Protocol):
    """Engines, one for each model. For the event loop's thread."""

    @property
    def models(self) -> tuple[str, ...]:
        """The names it answers for."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether its process has loaded the models."""
        ...

    def system_fingerprint(self, model: str) -> str | None:
        """What computes for one of `models`, in a few characters; None while its process is away."""
        ...

    def complete(
        self, request: Request, *, is_streaming: bool, timeout_s: float | None = None, client: str = ""
    ) -> AsyncIterator[Delta | Choice]:
        """The choices of `request`, each as soon as it is finished; before that its deltas, if `is_streaming`.

        `request.model` must be one of `models`. `timeout_s` bounds the time of each choice, from its first prefill.
        Requests of different `client`s take turns.
        Closing the iterator, or cancelling the task that waits for it, frees what the request holds. Raises
        LiveRequestError and EngineAwayError.
        """
        ...

    async def stats(self) -> Mapping[str, EngineStats]:
        """Each engine as it is now, by model. Empty where the process is away."""
        ...
