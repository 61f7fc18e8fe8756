"""Some seconds of a job, in a process of its own: how fast it goes, and rows that are done for good.

A trial of `workers.process.trials`. Its rows are run by the runner of shards, which keeps them as chunks of attempts
like any other; whoever runs the job goes on from there. It needs no broker: the command holds the job's lock on this
machine, and a lease saves work, it guards nothing.

The end of stdin ends it in good order: what is finished is kept.
"""

import logging
import os
import resource
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from batcher.broker.leases import Lease, Leases, Pace
from batcher.errors import BatcherError, ModelError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo
from batcher.manage.finish import finalize
from batcher.types import Demand, FinishReason
from workers.engines.base import Engine
from workers.estimating.dealing import Dealer, DealtEngine, DealtSequence
from workers.estimating.lengths import Length
from workers.estimating.meter import StepCost, StepMeter, fit_steps
from workers.process import trials
from workers.process.events import WorkerConfig
from workers.shard.context import WorkerContext
from workers.shard.runner import run_shard
from workers.shard.validators import ValidatorRef

logger = logging.getLogger(f"batcher.{__name__}")

_COMMAND = trials.trial_command("workers.estimating.trial")


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """Which shards of a job to take rows from, all of one model, and for how many seconds. Travels as JSON."""

    worker: WorkerConfig
    job: str
    model: str
    shards: tuple[int, ...]
    seconds: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class SeenSequence:
    """A sequence that was computed, or begun: of its prompt the characters, and the tokens and those of them that were
    cached (None: it did not end), and its completion."""

    num_chars: int
    num_prompt_tokens: int | None
    num_cached_tokens: int
    length: Length


@dataclass(frozen=True, slots=True)
class TrialReport:
    """How it went. `start_s` is from the launch of the process to the first step; bytes are its peak, and what the
    model and its slots take by reckoning."""

    cost: StepCost
    seen: tuple[SeenSequence, ...]
    num_slots: int
    setup: str
    start_s: float
    seconds: float
    peak_bytes: int
    model_bytes: int


class SoleLeases(Leases):
    """Leases where nobody else works on the job: everyone gets his."""

    def __init__(self) -> None:
        self.pace = Pace()

    def claim(self, lease: Lease) -> bool:
        return True

    def renew(self, lease: Lease) -> bool:
        return True

    def release(self, lease: Lease) -> bool:
        return True


def run_trial(config: TrialConfig) -> TrialReport:
    """Run it in a process of its own, blocking. Raises ModelError with the reason where that fails.

    Where the caller is interrupted meanwhile, what is finished is kept.
    """
    began_at = time.monotonic()
    report = trials.run_trial(_COMMAND, config, TrialReport, grace_s=config.worker.grace_s, prefix=f"{config.model}: ")
    # The child can't know when it was launched.
    return replace(report, start_s=time.monotonic() - began_at - report.seconds)


def _answer(config: TrialConfig) -> TrialReport:
    is_over = threading.Event()
    threading.Thread(target=_stop_with_parent, args=(is_over, config.worker.grace_s), daemon=True).start()
    return measure(config, is_over)


def measure(config: TrialConfig, is_over: threading.Event) -> TrialReport:
    """Run it in this process until `is_over`, or the time is. Raises BatcherError."""
    from workers.engines.open import EngineLoader

    started_at = time.monotonic()
    job, worker = JobDir.open(Path(config.job)), config.worker
    pending = [info for info in job.pending_shards() if info.model == config.model]
    meter = StepMeter()
    loader = EngineLoader(
        worker.models, worker.engine, _demand(job, pending), adapters=worker.adapters, on_decoded=meter.add
    )
    loaded = loader.load(config.model)
    engine = loaded.engine
    try:
        engine.start()
        start_s = time.monotonic() - started_at
        meter.start()
        dealt = _run(job, config, engine, is_over)
    finally:
        engine.close()
    if not meter.steps:
        raise ModelError(f"{config.model}: nothing was computed, so nothing can be said; give it more --seconds")
    return TrialReport(
        cost=fit_steps(meter.steps),
        seen=tuple(_seen(each, engine.num_steps) for each in dealt if each.start_step is not None),
        num_slots=engine.num_slots,
        setup=loaded.setup,
        start_s=start_s,
        seconds=time.monotonic() - started_at - start_s,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        model_bytes=loaded.num_bytes,
    )


def _demand(job: JobDir, pending: Sequence[ShardInfo]) -> Demand:
    """As the run of the whole job has it, so that the engine is set up alike."""
    return Demand(1, sum(info.num_choices for info in pending), job.manifest.longest_request)


def _run(job: JobDir, config: TrialConfig, engine: Engine, is_over: threading.Event) -> list[DealtSequence]:
    """Run rows of the shards for the time that is given; returns what was given to the engine."""
    dealer = Dealer(engine, len(config.shards), config.seed, is_over=is_over)
    context = _context(config.worker, is_over)
    failures: list[BatcherError] = []

    def run(shard: int) -> None:
        try:
            run_shard(job, shard, DealtEngine(dealer, shard), context)
        except BatcherError as exc:
            failures.append(exc)
            is_over.set()
        finally:
            dealer.note_offer(shard)

    threads = [threading.Thread(target=run, args=(shard,), name=f"shard-{shard}") for shard in config.shards]
    for thread in threads:
        thread.start()
    try:
        dealer.deal(seconds=config.seconds, grace_s=config.seconds)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return dealer.dealt


def _context(worker: WorkerConfig, is_over: threading.Event) -> WorkerContext:
    return WorkerContext(
        worker=worker.name,
        process="estimate",
        leases=SoleLeases(),
        stopping=is_over,
        on_claim=lambda job, shard, attempt: None,
        on_end=lambda job, shard, attempt: None,
        on_progress=lambda: None,
        on_set_aside=lambda: None,
        on_commit=finalize,
        stall_timeout_s=worker.stall_timeout_s,
        row_timeout_s=worker.row_timeout_s,
        validators=tuple(ValidatorRef(name, folder) for name, folder in worker.validators),
    )


def _seen(sequence: DealtSequence, num_steps: int) -> SeenSequence:
    assert sequence.start_step is not None
    num_chars = len(sequence.request.prompt)
    choice = None if sequence.result is None else sequence.result.choice
    if choice is None:
        # One token a step, or an error.
        end_step = num_steps if sequence.end_step is None else sequence.end_step
        return SeenSequence(num_chars, None, 0, Length(max(0, end_step - sequence.start_step), is_whole=False))
    usage = choice.usage
    length = Length(usage.completion_tokens, is_whole=choice.finish_reason is not FinishReason.LENGTH)
    return SeenSequence(num_chars, usage.prompt_tokens, usage.cached_tokens, length)


def _stop_with_parent(is_over: threading.Event, grace_s: float) -> None:
    while os.read(0, 4096):
        pass
    is_over.set()
    time.sleep(grace_s)
    os._exit(1)


if __name__ == "__main__":
    trials.answer_trial(TrialConfig, _answer)
    logging.shutdown()
    os._exit(0)
