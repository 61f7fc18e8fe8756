"""The thread that carries batches on, beside the event loop: the routes only write down what is wanted."""

import logging
import threading
from types import TracebackType
from typing import Protocol, Self

logger = logging.getLogger(__name__)

#: Seconds between two rounds where nobody asks for one.
TICK_S = 1.0


class Ticking(Protocol):
    """What of `batcher.server.batches.service.Batches` is needed here."""

    woken: threading.Event

    def tick(self) -> None: ...

    def stop(self) -> None: ...


class BatchKeeper:
    """Has a round made every second, and as soon as something is new, while the `with` block lasts."""

    def __init__(self, batches: Ticking) -> None:
        self._batches = batches
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="batches")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._is_stopping = True
        self._batches.stop()
        self._batches.woken.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_stopping:
            try:
                self._batches.tick()
            except Exception:
                # A bug, but one that must not end the batches of everybody.
                logger.exception("batches: unforeseen error; they are tried again")
            if not self._is_stopping:
                self._batches.woken.wait(TICK_S)
