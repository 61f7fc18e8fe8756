"""A whole job, from what some seconds of it took: its steps are counted as the engine would make them.

Sequences enter as slots become free, every one that runs is in every step, and what a step has room for goes to
prompts. So the beginning, when all slots read their prompts, and the end, when they become empty, take what they take.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from workers.estimating.meter import StepCost


@dataclass(frozen=True, slots=True)
class Work:
    """A sequence: tokens of its prompt that must be computed, and those that are generated."""

    num_prompt_tokens: int
    num_drawn: int


@dataclass(slots=True)
class _Running:
    prompt_left: int
    drawn_left: int


def forecast_s(work: Sequence[Work], cost: StepCost, *, num_work: int, num_slots: int, max_batch_tokens: int) -> float:
    """Seconds that an engine takes for `num_work` sequences, of which `work` are some, in their order.

    The others take as long, each, as the second half of those do.
    """
    seconds, middle, last = _count(work, cost, num_slots=num_slots, max_batch_tokens=max_batch_tokens)
    return seconds + (num_work - len(work)) * (last - middle) / max(1, len(work) // 2)


def _count(
    work: Sequence[Work], cost: StepCost, *, num_slots: int, max_batch_tokens: int
) -> tuple[float, float, float]:
    """The seconds, and those at which the middle one entered, and the last."""
    waiting = deque(work)
    running: list[_Running] = []
    now = middle = last = 0.0
    while waiting or running:
        while waiting and len(running) < num_slots:
            entering = waiting.popleft()
            running.append(_Running(entering.num_prompt_tokens, max(1, entering.num_drawn)))
            last = now
            if len(waiting) == len(work) // 2:
                middle = now
        reading = [each for each in running if each.prompt_left]
        if reading:
            room = budget = max(1, max_batch_tokens - (len(running) - len(reading)))
            for each in reading:
                taken = min(room, each.prompt_left)
                each.prompt_left -= taken
                room -= taken
            num_steps, num_read = 1, budget - room
        else:
            num_steps, num_read = min(each.drawn_left for each in running), 0
        drawing = [each for each in running if not each.prompt_left]
        for each in drawing:
            each.drawn_left -= num_steps
        now += num_steps * cost.of(num_prompt_tokens=num_read, num_drawn=len(drawing))
        running = [each for each in running if each.drawn_left]
    return now, middle, last
