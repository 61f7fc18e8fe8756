"""A clock that stands still between the moves of a test."""

from dataclasses import dataclass

from tests.support.waiting import wait_for


@dataclass
class Clock:
    """Seconds; each look moves it on by `step_s`. `num_readings` counts the looks."""

    now: float = 0.0
    step_s: float = 0.0
    num_readings: int = 0

    def __call__(self) -> float:
        self.num_readings += 1
        self.now += self.step_s
        return self.now

    def wait_for_readings(self, number: int) -> None:
        """Block until another thread has looked `number` times more."""
        target = self.num_readings + number
        wait_for(lambda: self.num_readings >= target, what=f"{number} looks at the clock")
