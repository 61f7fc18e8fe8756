"""The command `workers`: a line for each worker of a jobs folder, and those of its broker that work elsewhere."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batcher.api.fleet import IN_A_COPY
from batcher.api.widths import shortened
from batcher.cli.options import broker_option, jobs_dir_option, json_option
from batcher.words import counted, duration_text, one_line

if TYPE_CHECKING:
    from batcher.api.fleet import Worker

_HEADER = ("NAME", "HOST", "MODELS", "STATE", "SHARDS", "SLOTS", "TOKENS/S", "UPTIME", "CRASHES", "VERSION")
#: Characters of a job's id, and models and shards of a worker, that the table shows.
_ID_CHARS, _MAX_MODELS, _MAX_SHARDS = 20, 3, 6
#: Characters of a text from a sign of life.
_MAX_CHARS = 200


@click.command("workers")
@broker_option
@json_option
@jobs_dir_option
def workers_command(*, broker: str | None, as_json: bool, jobs_dir: Path) -> int:
    """List the workers of --jobs-dir: what each is doing, its slots, its tokens a second, and how often it crashed.

    A worker is alive, loading its model, stalled (it has work, and its engine makes no step), restarting, stopping, or
    gone when it gives no sign of life. With --broker those are named, too, that work there in another jobs folder.

    \b
    Example:
      batcher workers --jobs-dir /data/jobs --broker redis://host:6379/0
    """
    from batcher.api.fleet import workers

    found = workers(jobs_dir=jobs_dir, broker=broker)
    if as_json:
        for worker in found:
            click.echo(json.dumps(asdict(worker), ensure_ascii=False))
        return 0
    here = [worker for worker in found if not worker.is_elsewhere]
    elsewhere = [worker for worker in found if worker.is_elsewhere]
    if here:
        click.echo(fleet_text(here))
    else:
        click.echo(f"No workers under {jobs_dir}.", err=True)
    if elsewhere:
        click.echo(elsewhere_text(elsewhere, jobs_dir))
    return 0


def fleet_text(workers: "Sequence[Worker]") -> str:
    """The table, and below it how those ended that crashed."""
    from batcher.cli.texts import table_text

    lines = [table_text(_HEADER, [_row(worker) for worker in workers])]
    for worker in workers:
        if worker.last_crash:
            lines.append(f"{_clean(worker.name)} crashed last by: {_clean(worker.last_crash)}")
    return "\n".join(lines)


def elsewhere_text(workers: "Sequence[Worker]", jobs_dir: Path) -> str:
    """Who works at the broker in other folders, where, and what to do if that is not meant."""
    they = f"{counted(len(workers), 'worker')} {'works' if len(workers) == 1 else 'work'}"
    lines = [f"{they} at the broker and not in {jobs_dir}:", *(f"  {where_text(worker)}" for worker in workers)]
    return "\n".join([*lines, f"Where that is not meant, {remedy_text(workers, jobs_dir)}."])


def where_text(worker: "Worker") -> str:
    """A worker that is elsewhere, in a line: `w2 on host-b: in /data/wrong (qwen)`."""
    why = ", a copy by its .scope, so it takes messages of jobs that it has not" if worker.state == IN_A_COPY else ""
    return f"{_clean(worker.name)} on {_clean(worker.host)}: in {_clean(worker.folder)} ({_models_text(worker)}){why}"


def remedy_text(workers: "Sequence[Worker]", jobs_dir: Path) -> str:
    """What brings workers that are elsewhere into this folder, or away from its messages."""
    start = f"start it again with the --jobs-dir that leads, on its machine, to the folder {jobs_dir.absolute()}"
    is_copy = any(worker.state == IN_A_COPY for worker in workers)
    return f"{start}; of a copy of this folder delete the file .scope before" if is_copy else start


def _row(worker: "Worker") -> tuple[str, ...]:
    return (
        _clean(worker.name),
        _clean(worker.host),
        _models_text(worker),
        worker.state if worker.state != "gone" else f"gone {duration_text(worker.age_s)}",
        _shards_text(worker),
        f"{worker.num_running}/{worker.num_slots}" if worker.num_slots else "-",
        f"{worker.tokens_per_s:,.1f}",
        duration_text(worker.uptime_s),
        f"{worker.num_crashes:,}",
        _clean(worker.version),
    )


def _models_text(worker: "Worker") -> str:
    models = [_clean(model) for model in worker.models]
    more = f" and {len(models) - _MAX_MODELS:,} more" if len(models) > _MAX_MODELS else ""
    return ", ".join(models[:_MAX_MODELS]) + more


def _shards_text(worker: "Worker") -> str:
    """The shards that it holds, by job: `tickets:3,4`; "-" for none."""
    by_job: dict[str, list[int]] = defaultdict(list)
    for held in worker.shards[:_MAX_SHARDS]:
        by_job[held.job_id].append(held.shard)
    jobs = [
        f"{shortened(_clean(job), _ID_CHARS)}:{','.join(map(str, sorted(shards)))}" for job, shards in by_job.items()
    ]
    more = [f"and {len(worker.shards) - _MAX_SHARDS:,} more"] if len(worker.shards) > _MAX_SHARDS else []
    return " ".join(jobs + more) or "-"


def _clean(text: str) -> str:
    """What stands in a sign of life could be anything."""
    return one_line(text[:_MAX_CHARS])
