"""What it means that a worker's child died while it loaded a model.

Whoever dies then need not die of the model: others may be computed meanwhile, and what ends a process from outside is
nobody's. So a model is left out only for what it did, and is tried once more where that is not certain.
"""

from collections import Counter
from dataclasses import dataclass

from batcher.jobdir.attempts import Cause

#: Deaths while a model is loaded, from which it is left out, where any of them could have had another reason.
MAX_UNCERTAIN_DEATHS = 2

_MEMORY_REMEDY = "give the worker more memory, or fewer --slots, a smaller --ctx or --max-loaded"


@dataclass(frozen=True, slots=True)
class LoadDeath:
    """What follows of a death. `cause` is that for the rows that were computed meanwhile; `message` says what happened,
    and `is_left_out` whether the model is not to be loaded again."""

    cause: Cause
    message: str
    is_left_out: bool


class LoadDeaths:
    """The deaths of a worker's children while they loaded models on demand, by model."""

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()

    def judge(self, model: str, cause: Cause, ending: str, *, is_computing: bool) -> LoadDeath:
        """Weigh a death while `model` was loaded. `is_computing`: rows of others were in flight."""
        what = f"its process died while it loaded {model}"
        what += f" and computed others ({ending})" if is_computing else f" ({ending})"
        if cause is Cause.KILLED:
            return LoadDeath(cause, f"{what}, which is not the model's doing; it is loaded again", False)
        if cause is Cause.STALLED:
            return LoadDeath(cause, f"{what}: engines that were loaded before stood still; it is loaded again", False)
        self._numbers[model] += 1
        is_uncertain = is_computing or cause is Cause.MEMORY
        if is_uncertain and self._numbers[model] < MAX_UNCERTAIN_DEATHS:
            # Next time nothing else is in memory at first.
            why = "memory was short" if cause is Cause.MEMORY else "which of them is to blame is not known"
            return LoadDeath(Cause.KILLED, f"{what}; {why}, and the model is tried once more", False)
        remedy = _MEMORY_REMEDY if cause is Cause.MEMORY else "the file may be damaged: download or convert it again"
        left_out = "that model is left out until the worker is started again"
        return LoadDeath(Cause.KILLED, f"{what}; {left_out}: {remedy}", True)


def loading_failure(model: str, cause: Cause, ending: str) -> str:
    """What to say where a worker can't be started as its process dies while it loads `model`."""
    remedy = {
        Cause.MEMORY: _MEMORY_REMEDY,
        Cause.KILLED: "see who ends processes there: a limit of memory or time, an administrator, another program",
    }.get(cause, "the file may be damaged: download or convert it again; or memory was short: try a smaller --ctx")
    return f"{model}: the worker died while loading it ({ending}); {remedy}"
