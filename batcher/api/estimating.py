"""What a job will take, before it runs: `estimate`.

The job is made as `run` makes it, some seconds of it are run (`workers.estimating`), and the rest is reckoned. With a
folder for the job all of that stays: `run` of the same goes on with it. Without one it is gone at the end. What it
takes of a fleet is for `fleet_estimate`.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from batcher.api.engines import ModelSpecs, choose_models, model_specs, take_engine_options
from batcher.api.options import EngineOptions, RunOptions, check_options, shows_options, submit_options
from batcher.api.order import Run, begin, prepare_run
from batcher.api.source import Source, inputs_of
from batcher.api.work import is_quiet
from batcher.broker.embedded import own_folder
from batcher.errors import InputError
from batcher.installation import check_installed
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import Manifest, ShardInfo
from batcher.manage.status import read_status
from batcher.models.resolver import served_name
from batcher.paths import expand_home, temp_folder
from batcher.submission.source import Input

if TYPE_CHECKING:
    from workers.estimating.fleet import FleetForecast
    from workers.estimating.trial import TrialReport
    from workers.estimating.whole import ModelForecast

#: Seconds for which each model is measured, unless somebody says.
SECONDS = 10.0
#: Options that say how this machine computes; a time for each row is the job's, too.
OF_THIS_MACHINE = tuple(name for name in EngineOptions.__annotations__ if name != "row_timeout")
#: Shards whose rows are run; more at a time would be only more threads.
_MAX_TRIED_SHARDS = 64
#: Seconds of a `run` before and after all that is measured here: its own start, its broker, the last commits.
_AROUND_S = 1.5


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job takes on this machine, or of a fleet, from start to end. Times are in seconds, memory in bytes.

    `low_s` and `high_s` are a range in which the time probably lies, never below `start_s`, the part of `total_s` until
    the first row is computed. `num_done` rows are done and kept in `job`, "" where nothing is kept. `cost` is in
    the money of the price that was given. Of a fleet, `workers` are those that are alive, of which `num_busy`
    compute something now, `jobs` those by whose `num_measured` completions it is reckoned; memory and start are 0,
    as nobody knows them.
    """

    num_rows: int
    num_refused: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_s: float
    low_s: float
    high_s: float
    start_s: float
    tokens_per_s: float
    peak_memory: int
    num_measured: int
    num_done: int
    job: str
    cost: float | None
    cost_low: float | None
    cost_high: float | None
    setups: tuple[str, ...]
    workers: tuple[str, ...] = ()
    jobs: tuple[str, ...] = ()
    num_busy: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """What computing costs: by the hour of the machine, or by the million tokens of prompts and completions."""

    per_hour: float | None = None
    per_million: float | None = None

    def of(self, *, seconds: float, num_tokens: int) -> float | None:
        """The money for so much."""
        if self.per_hour is not None:
            return self.per_hour * seconds / 3600
        return None if self.per_million is None else self.per_million * num_tokens / 1_000_000


@shows_options(RunOptions)
def estimate(
    source: Source,
    out: str | os.PathLike[str] | None = None,
    *,
    model: ModelSpecs | None = None,
    seconds: float | None = None,
    price_per_hour: float | None = None,
    price_per_million: float | None = None,
    fleet: bool = False,
    jobs_dir: str | os.PathLike[str] | None = None,
    **options: Unpack[RunOptions],
) -> Estimate:
    """Say what `run` of the same would take on this machine, blocking for some `seconds` a model, 10 by default.

        found = batcher.estimate(tickets, "out", model="qwen", template="Summarize: {text}", max_tokens=64)
        print(found.total_s / 3600, "hours,", found.completion_tokens, "tokens")

    The job is made, rows from all over it are run, and the whole is reckoned from these. With `out` all of that is
    kept, and `run` of the same source, folder and options goes on with it; without, it is gone at the end. A price, by
    the hour of this machine or by a million tokens, gives `cost`. Other arguments and errors are as for `run`; a
    `source` that is read only once, such as a generator, is used up. Raises InputError where there is nothing to
    measure.

    With `fleet` nothing is computed: it says what `submit` of the same would take of the workers that are alive in
    `jobs_dir` (as for `submit`), by what jobs of the model have taken there. Options of engines, `out` and `seconds`
    are refused then, and a price by the hour is that of all these workers together.
    """
    checked = check_options("estimate", RunOptions, options)
    price = check_price(per_hour=price_per_hour, per_million=price_per_million)
    if seconds is not None and not 0 < seconds < math.inf:
        raise InputError(f"seconds is {seconds!r}: give a number above 0")
    check_installed("estimate", "worker")
    if fleet:
        mine = {"out": out, "seconds": seconds} | {name: checked.get(name) for name in OF_THIS_MACHINE}
        if given := [name for name, value in mine.items() if value is not None]:
            raise InputError(f"{', '.join(given)}: with fleet=True nothing is computed here; leave it out")
        return _estimate_of_fleet(source, model, jobs_dir, checked, price)
    if jobs_dir is not None:
        raise InputError("jobs_dir is where the workers of a fleet are; give fleet=True as well, or leave it out")
    inputs = inputs_of(source)
    with job_folder(None if out is None else Path(expand_home(out)).resolve()) as job:
        prepared = prepare_run(
            job,
            () if model is None else model_specs(model),
            take_engine_options(dict(checked)),
            partial(submit_options, checked),
            quiet=is_quiet(),
            choose=choose_models,
        )
        return estimate_run(prepared, inputs, seconds=seconds or SECONDS, price=price, is_kept=out is not None)


def _estimate_of_fleet(
    source: Source,
    model: ModelSpecs | None,
    jobs_dir: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
    price: Price,
) -> Estimate:
    from batcher.api.fleet_estimate import estimate_fleet
    from batcher.api.jobs import jobs_folder

    default_model = fleet_model(() if model is None else model_specs(model))
    submission = submit_options(options, default_model=default_model, known_models=None, context_lengths={})
    return estimate_fleet(jobs_folder(jobs_dir), inputs_of(source), submission, price=price)


def fleet_model(specs: Sequence[str]) -> str | None:
    """The name by which workers have the model of rows that name none. Raises InputError for two."""
    if len(specs) > 1:
        raise InputError(f"{', '.join(specs)}: of a fleet give one model, that of rows which name none")
    return served_name(specs[0]) if specs else None


def check_price(*, per_hour: float | None, per_million: float | None) -> Price:
    """The price that was given. Raises InputError for two, and for one below 0."""
    if per_hour is not None and per_million is not None:
        raise InputError("price_per_hour and price_per_million contradict each other; give one of them")
    for name, value in (("price_per_hour", per_hour), ("price_per_million", per_million)):
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"{name} is {value!r}: give a number from 0")
    return Price(per_hour, per_million)


@contextlib.contextmanager
def job_folder(out: Path | None) -> Iterator[JobDir]:
    """The job directory that was named; one that is gone afterwards where none was."""
    if out is not None:
        yield JobDir(out)
        return
    with tempfile.TemporaryDirectory(prefix="batcher-estimate-", dir=temp_folder()) as folder:
        yield JobDir(Path(folder).resolve() / "estimate")


def check_rows(job: JobDir) -> None:
    """Raise InputError where a job has no row that can be computed."""
    if job.manifest.num_refused == job.manifest.num_rows:
        raise InputError("no row of the input can be computed; `batcher validate` says what is wrong with them")


def estimate_run(
    prepared: Run,
    inputs: Sequence[Input],
    *,
    seconds: float = SECONDS,
    price: Price = Price(),
    is_kept: bool,
    on_trial: Callable[[str], None] | None = None,
) -> Estimate:
    """Make the job that was prepared, or find it there, run some of it, and say what all of it takes. Blocks.

    `on_trial` hears of each model before its rows are run.
    Raises as `batcher.api.jobs.run` does, and InputError where there is nothing to measure.
    """
    from workers.estimating.whole import forecast_model

    job = prepared.job
    if prepared.config.engine.servers is not None:
        raise InputError("estimate measures models in this machine's memory, and --engine has a server compute")
    with own_folder(job.path):
        summary = begin(job, inputs, prepared.submission).summary
        job = JobDir.open(job.path)
        check_rows(job)
        if summary is not None:
            raise InputError(f"{job.path}: this job is complete, so there is nothing to estimate; its summary says all")
        pending = [info for info in job.pending_shards() if info.model is not None]
        forecasts, reports = [], []
        for model in dict.fromkeys(info.model for info in pending if info.model is not None):
            if on_trial is not None:
                on_trial(model)
            report = _try_model(prepared, job, model, pending, seconds)
            reports.append(report)
            forecasts.append(
                forecast_model(job, model, report, max_batch_tokens=prepared.config.engine.max_batch_tokens)
            )
        num_done = read_status(job).num_done
    return replace(
        _reckon(job, forecasts, reports, price=price), num_done=num_done, job=str(job.path) if is_kept else ""
    )


def _reckon(
    job: JobDir, forecasts: "Sequence[ModelForecast]", reports: "Sequence[TrialReport]", *, price: Price
) -> Estimate:
    """What all of a job takes, by what was forecast of each model; without what is done of it."""
    work_s = sum(each.seconds for each in forecasts)
    start_s = max(each.start_s for each in forecasts) + _AROUND_S
    spread_s = 2 * math.hypot(*(each.spread * each.seconds for each in forecasts)) + 0.2 * start_s
    total_s = start_s + work_s
    return estimate_of(
        job.manifest,
        forecasts,
        price=price,
        times=(total_s, max(start_s, total_s - spread_s), total_s + spread_s),
        start_s=start_s,
        peak_memory=sum(max(each.peak_bytes, each.model_bytes) for each in reports),
        num_measured=sum(each.num_measured for each in forecasts),
        setups=tuple(each.setup for each in reports),
    )


def estimate_of(
    manifest: Manifest,
    forecasts: "Sequence[ModelForecast | FleetForecast]",
    *,
    price: Price,
    times: tuple[float, float, float],
    **facts: Any,
) -> Estimate:
    """The estimate of a job of which nothing is done yet, by the forecasts of its models.

    `times` are the total and its range, in seconds, `facts` the other fields.
    """
    total_s, low_s, high_s = times
    prompt, cached, completion = (
        round(sum(getattr(each, name) for each in forecasts))
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
    )
    cost, cost_low, cost_high = (price.of(seconds=each, num_tokens=prompt + completion) for each in times)
    return Estimate(
        num_rows=manifest.num_rows,
        num_refused=manifest.num_refused,
        prompt_tokens=prompt,
        cached_tokens=cached,
        completion_tokens=completion,
        total_s=total_s,
        low_s=low_s,
        high_s=high_s,
        tokens_per_s=completion / total_s,
        num_done=0,
        job="",
        cost=cost,
        cost_low=cost_low,
        cost_high=cost_high,
        **facts,
    )


def _try_model(prepared: Run, job: JobDir, model: str, pending: Sequence[ShardInfo], seconds: float) -> "TrialReport":
    from workers.estimating.trial import TrialConfig, run_trial
    from workers.estimating.whole import some_shards

    shards = some_shards([info for info in pending if info.model == model], _MAX_TRIED_SHARDS)
    return run_trial(
        TrialConfig(
            worker=prepared.config,
            job=str(job.path),
            model=model,
            shards=tuple(info.shard for info in shards),
            seconds=seconds,
        )
    )
