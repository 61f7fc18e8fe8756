"""What the runs of a worker's shards have in common, and who tells them to stop."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from batcher.broker.leases import Leases
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import Counts
from workers.shard.progress import Board
from workers.shard.validators import ValidatorRef


class Stopping(Protocol):
    """Says that the worker is to stop, as an event does."""

    def is_set(self) -> bool: ...


class AnyOf:
    """A `Stopping` for several reasons."""

    def __init__(self, *reasons: Callable[[], bool]) -> None:
        self._reasons = reasons

    def is_set(self) -> bool:
        return any(reason() for reason in self._reasons)


def ignore_rows(_rows: Counts) -> None:
    """For those who count nothing."""


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What all shards of a worker share.

    `stopping` is set when the worker is to stop. In the runner's thread are called: `on_claim` and `on_end` (job,
    shard, attempt) around all that could take the process down, `on_rows` with the rows of each durable write, and
    `on_progress` after it, `on_set_aside` after that of rows that crash the process, and `on_commit` after a part
    exists. `stall_timeout_s` None: by the engine's pace; `row_timeout_s` None: the job's own. `validators` are those
    that jobs may have called. The `board` shows how far the attempts are.
    """

    worker: str
    process: str
    leases: Leases
    stopping: Stopping
    on_claim: Callable[[JobDir, int, int], None]
    on_end: Callable[[JobDir, int, int], None]
    on_progress: Callable[[], None]
    on_set_aside: Callable[[], None]
    on_commit: Callable[[JobDir], object]
    on_rows: Callable[[Counts], object] = ignore_rows
    stall_timeout_s: float | None = None
    row_timeout_s: float | None = None
    validators: tuple[ValidatorRef, ...] = ()
    board: Board = field(default_factory=Board)
    clock: Callable[[], float] = time.monotonic
