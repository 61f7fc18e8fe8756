"""When an engine that makes no step is given up: after longer than any step of it should take."""

#: Seconds. Even a fast engine's machine may be busy with something else for a while.
MIN_LIMIT_S = 120.0
#: Times the longest step known: the longest so far, or what the largest is expected to take.
STEP_FACTOR = 3.0


def stall_limit_s(longest_step_s: float, chosen_s: float | None) -> float:
    """Seconds without a step after which an engine counts as stalled; `chosen_s` is the user's `--stall-timeout`."""
    return chosen_s if chosen_s is not None else max(MIN_LIMIT_S, STEP_FACTOR * longest_step_s)


class StallMeter:
    """Adds up the seconds in which an engine that has work made no step, as the supervisor hears of it.

    A child that says nothing counts as stalled. Time in which the supervisor itself did not run (frozen together with
    its child, or on a machine at its limit) counts for at most `MAX_GAP_S` a look: it could not have heard anything.
    """

    MAX_GAP_S = 1.0

    def __init__(self, *, now: float) -> None:
        self.stalled_s = 0.0
        self._steps: tuple[int, ...] = ()
        self._looked_at = now

    def hear(self, *, steps: tuple[int, ...], is_busy: tuple[bool, ...]) -> None:
        """Take what the child says of its engines: how often each has moved, and whether it has something to do."""
        before = self._steps or (-1,) * len(steps)
        self._steps = steps
        if not any(busy and now == then for busy, now, then in zip(is_busy, steps, before, strict=True)):
            self.stalled_s = 0.0

    def look(self, *, now: float) -> float:
        """Let the time pass. Returns the seconds that the child has been stalled, 0 while it moves."""
        self.stalled_s += min(now - self._looked_at, self.MAX_GAP_S)
        self._looked_at = now
        return self.stalled_s
