"""The search of `batcher tune`: which settings make the most tokens/s on this machine, measured one by one.

Coordinate by coordinate, from the default: threads, then slots, then batch sizes. A candidate takes the lead only by
more than what chance makes of two equal ones, and what leads at the end is measured again beside the default, in turns,
since a machine's speed changes within minutes. `run_trial` does the measuring (`trial`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from batcher.errors import ModelError
from batcher.machine import Cores, read_cores
from batcher.types import EngineConfig
from workers.engines.llama.settings import MAX_SLOTS, EngineValues, with_values
from workers.engines.profile import Profile, machine_key, model_key
from workers.tuning.trial import TrialConfig, TrialPrompt, TrialResult, run_trial

#: How much faster than another a candidate must be to count as faster.
MIN_GAIN = 1.03

#: The fewest slots worth a try.
FEWEST_SLOTS = 4

#: Tokens of a batch and of a micro-batch.
BATCH_SIZES = ((512, 512), (2048, 512), (2048, 2048))

#: Most prompts that are taken from a file.
MAX_PROMPTS = 512

RunTrial = Callable[[TrialConfig], TrialResult]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the search. `ratio` is to the default's speed; where it could not be measured, `error` says why."""

    what: str
    tokens_per_s: float | None
    ratio: float | None
    error: str = ""


def tune(
    name: str,
    path: Path,
    *,
    prompts: Sequence[TrialPrompt],
    workload: str,
    config: EngineConfig,
    seconds: float,
    on_measured: Callable[[Measurement], None],
    trial: RunTrial = run_trial,
    cores: Cores | None = None,
) -> Profile:
    """Find the best settings for the model at `path`, blocking for a minute or more; not yet saved.

    `config` holds what stays as it is. `on_measured` hears of each measurement as soon as it is made. Raises ModelError
    where not even the default can be measured.
    """
    key = model_key(path)
    base = TrialConfig(str(path), config, tuple(prompts), seconds)
    search = _Search(base, cores or read_cores(), on_measured, trial)
    values, reason = search.run()
    return Profile(
        model_name=name,
        model=key,
        machine=machine_key(uses_gpu=search.default.uses_gpu),
        measured_at=datetime.now(UTC).replace(microsecond=0),
        workload=workload,
        values=values,
        tokens_per_s=round(search.best_rate, 1),
        default_tokens_per_s=round(search.default_rate, 1),
        reason=reason,
    )


class _Search:
    """Holds the default, and what leads. The rates of both are replaced by those of the last measurement."""

    def __init__(
        self, base: TrialConfig, cores: Cores, on_measured: Callable[[Measurement], None], trial: RunTrial
    ) -> None:
        self._base = base
        self._cores = cores
        self._on_measured = on_measured
        self._trial = trial

    def run(self) -> tuple[EngineValues, str]:
        """The choice, and its reason."""
        self.default = self._trial(self._base)
        self.default_rate = self.best_rate = self.default.tokens_per_s
        self._best = self.default.values
        self._report(f"default: {self._best}", self.default_rate)
        self._try_threads()
        self._try_slots()
        self._try_batch_sizes()
        return self._verify()

    def _try_threads(self) -> None:
        cores, default = self._cores, self.default.values.num_threads
        for number in sorted({cores.num_logical, cores.num_physical, default - 1, default // 2} - {0, default}):
            self._challenge(f"{number} threads" if number > 1 else "1 thread", replace(self._best, num_threads=number))

    def _try_slots(self) -> None:
        """Double them while that wins; where it never does, halve them while that does."""
        start = self._best.num_slots
        most = min(MAX_SLOTS, self.default.max_slots)
        while self._best.num_slots * 2 <= most and self._try_number_of_slots(self._best.num_slots * 2):
            pass
        if self._best.num_slots == start:
            while self._best.num_slots // 2 >= FEWEST_SLOTS and self._try_number_of_slots(self._best.num_slots // 2):
                pass

    def _try_number_of_slots(self, number: int) -> bool:
        batch = max(self._best.max_batch_tokens, number)
        return self._challenge(f"{number} slots", replace(self._best, num_slots=number, max_batch_tokens=batch))

    def _try_batch_sizes(self) -> None:
        current = (self._best.max_batch_tokens, self._best.max_micro_batch_tokens)
        for batch, micro in BATCH_SIZES:
            if (batch, micro) != current and batch >= self._best.num_slots:
                values = replace(self._best, max_batch_tokens=batch, max_micro_batch_tokens=micro)
                self._challenge(f"batch {batch}/{micro}", values)

    def _challenge(self, what: str, values: EngineValues) -> bool:
        """Measure `values`; whether they take the lead."""
        rate = self._measure(what, values)
        if rate is None or rate <= self.best_rate * MIN_GAIN:
            return False
        self._best, self.best_rate = values, rate
        return True

    def _verify(self) -> tuple[EngineValues, str]:
        """Measure what leads again beside the default: default, candidate, candidate, default."""
        default, found = self.default.values, self._best
        if found == default:
            self.best_rate = self.default_rate
            return default, f"nothing was more than {MIN_GAIN - 1:.0%} faster than the default"
        rates: dict[EngineValues, list[float]] = {default: [], found: []}
        for values in (default, found, found, default):
            rate = self._measure(f"again: {'default' if values == default else found}", values)
            if rate is None:
                self.best_rate = self.default_rate
                return default, f"{found} could not be measured again, so the default stays"
            rates[values].append(rate)
        self.default_rate, self.best_rate = (sum(rates[values]) / 2 for values in (default, found))
        ratio = self.best_rate / self.default_rate
        if ratio > MIN_GAIN and min(rates[found]) > max(rates[default]):
            return found, f"{ratio:.2f} times the default's speed, side by side"
        self.best_rate = self.default_rate
        return default, f"{found} was not clearly faster side by side ({ratio:.2f} times), so the default stays"

    def _measure(self, what: str, values: EngineValues) -> float | None:
        try:
            rate = self._trial(replace(self._base, engine=with_values(self._base.engine, values))).tokens_per_s
        except ModelError as exc:
            self._on_measured(Measurement(what, None, None, str(exc)))
            return None
        self._report(what, rate)
        return rate

    def _report(self, what: str, rate: float) -> None:
        self._on_measured(Measurement(what, rate, rate / self.default_rate))
