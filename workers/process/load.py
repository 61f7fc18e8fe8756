"""How loaded a worker's engines are, by the beats of its child: slots, tokens, and their rate."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from workers.process.events import EngineLoad

#: Seconds over which the rate is taken: some steps even of a slow engine.
RATE_WINDOW_S = 15.0


@dataclass(slots=True)
class Tokens:
    """Tokens of one model since the supervisor started. Mutable."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


class LoadMeter:
    """Adds up what a child and its successors say of their engines, one for each of `models`.

    An engine counts from its own start: one that has counted further than before went on, any other is new.
    """

    def __init__(self, models: Sequence[str]) -> None:
        self.tokens = {name: Tokens() for name in models}
        #: By model, of those that are in memory.
        self.loads: dict[str, EngineLoad] = {}
        self._models = tuple(models)
        self._history: deque[tuple[float, int]] = deque()

    @property
    def num_slots(self) -> int:
        """Sequences that the engines in memory compute at a time."""
        return sum(load.num_slots for load in self.loads.values())

    @property
    def num_running(self) -> int:
        """Slots that hold a sequence."""
        return sum(load.num_running for load in self.loads.values())

    def hear(self, loads: Sequence[EngineLoad | None], *, now: float) -> None:
        """Take a beat; `loads` are in the order of the models, None where one is not in memory."""
        before = self.loads
        self.loads = {name: load for name, load in zip(self._models, loads, strict=False) if load is not None}
        is_moving = self.num_running > 0
        for name, load in self.loads.items():
            last = before.get(name)
            known = last is not None and last.num_completion_tokens <= load.num_completion_tokens
            base = last if known and last is not None else EngineLoad()
            tokens = self.tokens[name]
            tokens.prompt += max(0, load.num_prompt_tokens - base.num_prompt_tokens)
            tokens.cached += max(0, load.num_cached_tokens - base.num_cached_tokens)
            tokens.completion += load.num_completion_tokens - base.num_completion_tokens
        total = sum(tokens.completion for tokens in self.tokens.values())
        total += sum(load.num_tokens_in_flight for load in self.loads.values())
        if not is_moving and (not self._history or self._history[-1][1] == total):
            # Nothing is computed: the rate of what comes next begins here.
            self._history.clear()
        self._history.append((now, total))
        while len(self._history) > 2 and self._history[1][0] <= now - RATE_WINDOW_S:
            self._history.popleft()

    def forget(self) -> None:
        """The child is gone, and its engines with it."""
        self.loads = {}
        self._history.clear()

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens a second over the last seconds; 0 where nothing is computed."""
        if len(self._history) < 2:
            return 0.0
        (began_at, first), (ended_at, last) = self._history[0], self._history[-1]
        # Less than before where rows were dropped that were not finished.
        return max(0.0, (last - first) / (ended_at - began_at)) if ended_at > began_at else 0.0
