"""How fast a job goes, and when it will be done: rates over the last seconds, and an ETA that settles.

Of rows in flight is known how many tokens they have made, by the signs of life of workers, a few seconds late; of
finished ones, what their files say. So work comes in steps, and rates are taken from step to step.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

#: Seconds over which the rate of tokens is taken. A few flushes of a chunk and signs of life, so that their rhythm
#: does not show.
RATE_WINDOW_S = 15.0
#: Seconds over which that of the work is, by which the ETA goes: rows differ in length.
ETA_WINDOW_S = 60.0
#: Seconds without a step after which the rate falls: two signs of life at the longest.
STILL_AFTER_S = 10.0
#: Seconds that must be seen before there is a rate, and steps before there is an ETA.
LEAST_SPAN_S, LEAST_STEPS = 5.0, 3
#: Seconds in which an ETA comes by two thirds to what is found anew.
SETTLING_S = 10.0


@dataclass(frozen=True, slots=True)
class Step:
    """What was done at a moment (Unix seconds): `work` in rows, and the completion tokens that were computed."""

    at: float
    work: float
    tokens: int


class Speedometer:
    """Looks at a job again and again. Not for several threads at once."""

    def __init__(self) -> None:
        self._steps: deque[Step] = deque()
        self._num_steps = 0
        self._began_at: float | None = None
        self._now = 0.0
        self._end_at: float | None = None
        self._settled_at = 0.0
        self._num_etas = 0

    def look(self, step: Step) -> None:
        """Take in how far the job is now."""
        before, self._now = self._now, step.at
        self._began_at = step.at if self._began_at is None else self._began_at
        last = self._steps[-1] if self._steps else None
        if last is None or (step.work, step.tokens) != (last.work, last.tokens):
            if last is not None and before - last.at >= STILL_AFTER_S:
                # It stood still for long, and how fast it went before says nothing of now.
                self._steps.clear()
                self._steps.append(replace(last, at=before))
            self._steps.append(step)
            self._num_steps += 1
        # The oldest is the last one before the window, or further back where nothing has moved since: then the rate
        # falls towards 0 instead of jumping there between two chunks.
        while len(self._steps) > 2 and self._steps[1].at <= step.at - ETA_WINDOW_S:
            self._steps.popleft()

    @property
    def is_new(self) -> bool:
        """Whether it has looked for a moment only."""
        return self._began_at is None or self._now - self._began_at < LEAST_SPAN_S

    @property
    def has_settled(self) -> bool:
        """Whether an ETA means something."""
        return self._num_steps > LEAST_STEPS

    @property
    def tokens_per_s(self) -> float | None:
        """Completion tokens a second over the last seconds; None where too few were seen."""
        return self._rate(RATE_WINDOW_S, lambda step: step.tokens)

    @property
    def work_per_s(self) -> float | None:
        """Rows a second; None likewise."""
        return self._rate(ETA_WINDOW_S, lambda step: step.work)

    def eta_s(self, left: float, *, work_per_s: float | None) -> float | None:
        """Seconds until `left` rows are done at a rate, as it settles over several looks; None where nothing moves."""
        if not work_per_s:
            self._end_at, self._num_etas = None, 0
            return None
        end_at = self._now + left / work_per_s
        if self._end_at is not None:
            self._num_etas += 1
            elapsed_s = max(0.0, self._now - self._settled_at)
            share = max(1 - math.exp(-elapsed_s / SETTLING_S), 1 / self._num_etas)
            end_at = self._end_at + share * (end_at - self._end_at)
        self._end_at, self._settled_at = end_at, self._now
        return max(0.0, end_at - self._now)

    def _rate(self, window_s: float, amount: Callable[[Step], float]) -> float | None:
        if len(self._steps) < 2:
            return None
        base, last = self._steps[0], self._steps[-1]
        for step in itertools.islice(self._steps, len(self._steps) - 1):
            if step.at <= self._now - window_s:
                base = step
        end_at = last.at if self._now - last.at < STILL_AFTER_S else self._now
        if end_at - base.at < LEAST_SPAN_S:
            return None
        return max(0.0, (amount(last) - amount(base)) / (end_at - base.at))


def late_s(finish_by: datetime | None, ends_at: float | None, *, now: float) -> float | None:
    """Seconds by which a job is late that ends at `ends_at` (Unix seconds); None where nobody knows, or need know.

    One whose end nobody knows is as late as it is by now.
    """
    if finish_by is None:
        return None
    if ends_at is None and now > finish_by.timestamp():
        ends_at = now
    return None if ends_at is None else round(ends_at - finish_by.timestamp(), 1)
