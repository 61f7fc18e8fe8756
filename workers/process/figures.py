"""What a supervisor can tell of its worker in numbers, from its start on, over all its children."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from batcher.jobdir.pulse import WorkerState
from workers.process.events import EngineLoad, Event, EventKind
from workers.process.load import Tokens

#: The outcome of a run that could not go on, beside those of runs that end in order.
FAILED = "failed"


@dataclass(slots=True)
class WorkCounts:
    """What the children have done. Mutable; read by other threads."""

    num_ok: int = 0
    error_codes: Counter[str] = field(default_factory=Counter)
    #: Runs of shards by how they ended.
    outcomes: Counter[str] = field(default_factory=Counter)

    def hear(self, event: Event) -> None:
        """Take what an event says of rows that were saved, and of runs that are over."""
        if event.saved is not None:
            self.num_ok += event.saved.num_ok
            self.error_codes.update(dict(event.saved.error_codes))
        elif event.kind is EventKind.RAN:
            self.outcomes[event.message] += 1


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    """A worker at a moment. `loads` are of the models in memory; `tokens` have all, with what was counted so far."""

    name: str
    state: WorkerState
    stalled_s: float
    num_shards: int
    num_crashes: int
    loads: Mapping[str, EngineLoad]
    tokens: Mapping[str, Tokens]
    work: WorkCounts
