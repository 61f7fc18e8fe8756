"""What a job will take of the workers of a jobs folder, by what they have done there: `estimate` of a fleet.

Nothing is computed and nothing kept: the input is made a job in a folder that is gone at the end, and its tokens and
time are reckoned by results of the same model that lie under the jobs folder.
"""

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from batcher.api.estimating import Estimate, Price, check_rows, estimate_of, job_folder
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import WorkerReport, read_heartbeats
from batcher.submission.planner import submit
from batcher.submission.source import Input, SubmitOptions

if TYPE_CHECKING:
    from workers.estimating.fleet import Record


def estimate_fleet(root: Path, inputs: Sequence[Input], options: SubmitOptions, *, price: Price) -> Estimate:
    """Say what all workers of `root` that have the models of a job would take for it, with nothing else to do.

    Raises InputError for the input, and where a model has no worker that is alive, or no job has been run with it.
    """
    from workers.estimating.fleet import forecast_fleet

    with job_folder(None) as job:
        submit(job, inputs, options)
        job = JobDir.open(job.path)
        check_rows(job)
        manifest = job.manifest
        reports = read_heartbeats(root)
        workers = {model: find_workers(root, model, reports) for model in manifest.models}
        records = {model: _read_record(root, model, options) for model in manifest.models}
        forecasts = [
            forecast_fleet(job, model, records[model], [report.beat.name for report in workers[model]])
            for model in manifest.models
        ]
    fleet = {
        (report.beat.name, report.beat.host, report.beat.pid): report for found in workers.values() for report in found
    }
    # Models that no worker shares are computed side by side.
    is_shared = len(fleet) < sum(map(len, workers.values()))
    total_s, low_s, high_s = (
        sum(times) if is_shared else max(times)
        for times in zip(*((each.seconds, each.low_s, each.high_s) for each in forecasts), strict=True)
    )
    return estimate_of(
        manifest,
        forecasts,
        price=price,
        times=(total_s, low_s, high_s),
        start_s=0.0,
        peak_memory=0,
        num_measured=sum(len(record.seen) for record in records.values()),
        setups=(),
        workers=tuple(sorted(report.beat.name for report in fleet.values())),
        jobs=tuple(dict.fromkeys(name for record in records.values() for name in record.jobs)),
        num_busy=sum(bool(report.beat.num_running) for report in fleet.values()),
    )


def find_workers(root: Path, model: str, reports: Sequence[WorkerReport]) -> list[WorkerReport]:
    """The workers that are alive, stay, and have a model. Raises InputError where there is none."""
    alive = [each for each in reports if each.takes_shards]
    found = [report for report in alive if model in report.beat.models]
    if not found:
        others = sorted({name for report in alive for name in report.beat.models})
        instead = f"; those that are have {', '.join(others)}" if others else ""
        raise InputError(
            f"{root}: no worker with the model {model} is alive there{instead}. Start one (`batcher worker --model "
            f"{quote(model)} --jobs-dir {quote(str(root))}`, with the fleet's broker), or estimate for this "
            "machine, without --fleet"
        )
    return found


def _read_record(root: Path, model: str, options: SubmitOptions) -> "Record":
    from workers.estimating.fleet import read_record

    record = read_record(root, model, defaults=options.params)
    if not record.shifts:
        raise InputError(
            f"{root}: no job there has answers of the model {model}, by which its speed would be known. Submit a "
            f"sample first (`batcher submit FILE --sample 100 --model {quote(model)} --jobs-dir {quote(str(root))}`, "
            "with the fleet's broker), or estimate for this machine, without --fleet"
        )
    return record
