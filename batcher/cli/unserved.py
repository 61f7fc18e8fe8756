"""What a person is told of models that rows wait for and no worker has, and of how a job goes on."""

import os
import shlex
from typing import TYPE_CHECKING

import click

from batcher.words import one_line

if TYPE_CHECKING:
    from batcher.jobdir.folder import JobDir
    from batcher.manage.status import Status

#: Models that are named; more are counted.
MAX_NAMED = 3
#: Models of workers, and workers, that are named.
MAX_SERVED = 10


def is_at_rest(status: "Status") -> bool:
    """Whether somebody has worked on the job, rows are left, and nobody is alive that works on it or could go on."""
    is_left = status.started_at is not None and bool(status.unserved_models) and not status.served_models
    return is_left and not _alive_names(status)


def _alive_names(status: "Status") -> list[str]:
    """The workers that are alive and have shards of the job, by name."""
    from batcher.jobdir.heartbeats import Health

    return [one_line(each.name[:256]) for each in status.workers if each.shards and each.health is not Health.GONE]


def unserved_text(status: "Status", *, jobs_dir: str) -> str:
    """For each model what waits for it, and the line that starts a worker; "" where every row can be served."""
    lines = []
    # The job may be that of a `run`, whose broker is gone with it.
    start = "if the job was submitted to a broker, start one with" if is_at_rest(status) else "start one with"
    for problem, model in _problems(status):
        lines += [f"{problem}; {start}:", f"  {worker_line(model, broker='URL', jobs_dir=jobs_dir)}"]
    if len(status.unserved_models) > MAX_NAMED:
        lines.append(f"... and {len(status.unserved_models) - MAX_NAMED:,} more models; --json shows them")
    return "\n".join(lines)


def warn_of_unserved(job: "JobDir", broker: str) -> None:
    """Say on stderr which rows of a job wait for a model that no worker has, and the line that starts one."""
    from batcher.api.fleet import find_elsewhere_with
    from batcher.broker.url import has_secret
    from batcher.cli.workers import where_text
    from batcher.manage.status import read_status

    status = read_status(job)
    root = str(job.path.absolute().parent)
    for problem, model in _problems(status):
        # A password may not stand on a command line: it comes from the environment or a file there, too.
        line = worker_line(model, broker=None if has_secret(broker) else broker, jobs_dir=root)
        click.echo(f"Warning: {problem}; start one with:\n  {line}", err=True)
        for worker in find_elsewhere_with(model, job.path.absolute().parent, broker)[:MAX_NAMED]:
            click.echo(f"In another jobs folder, and so of no use to it, is {where_text(worker)}", err=True)
    if len(status.unserved_models) > MAX_NAMED:
        click.echo(
            f"... and {len(status.unserved_models) - MAX_NAMED:,} more models; `batcher status --json` shows them.",
            err=True,
        )


def _problems(status: "Status") -> list[tuple[str, str]]:
    """What waits for a model, and its name, of the first models."""
    # What stands in a sign of life could be anything.
    served = [one_line(name[:256]) for name in status.served_models]
    they = _named(served)
    alive = _alive_names(status)
    if they:
        why = f"which no worker has that is alive (they have {they})"
    elif alive:
        why = f"and nobody takes more shards ({_named(alive)} {'is' if len(alive) == 1 else 'are'} about to end)"
    else:
        why = "and no worker is alive"
    found = []
    for model, num_rows in list(status.unserved_models.items())[:MAX_NAMED]:
        rows = "1 row waits" if num_rows == 1 else f"{num_rows:,} rows wait"
        found.append((f"{rows} for the model {model}, {why}", model))
    return found


def _named(names: list[str]) -> str:
    return ", ".join(names[:MAX_SERVED]) + (", ..." if len(names) > MAX_SERVED else "")


def worker_line(model: str, *, broker: str | None, jobs_dir: str) -> str:
    """The command that starts a worker for a model; without a broker it takes that of its environment."""
    from batcher.models.resolver import spec_for

    words = ["batcher", "worker", "--model", spec_for(model)]
    words += ["--broker", broker] if broker is not None else []
    return shlex.join([*words, "--jobs-dir", jobs_dir])


def here_line(line: str) -> str:
    """A command that is to compute here, also where the environment names a broker, whose workers would get it."""
    names = [name for name in ("BATCHER_BROKER", "BATCHER_BROKER_FILE") if os.environ.get(name)]
    return " ".join(["env", *(f"-u {name}" for name in names), line]) if names else line


def resume_line(job: "JobDir", *, path: str) -> str:
    """The command that goes on with a job: with the models that are not here by name, and its validator."""
    from batcher.manage.resume import needed_models
    from batcher.models.resolver import spec_for

    words = ["batcher", "resume", path]
    specs = {name: spec_for(name) for name in sorted(needed_models(job))}
    words += [word for name, spec in specs.items() if spec != name for word in ("--model", spec)]
    if validator := job.manifest.answers.validator:
        words += ["--allow-validator", validator]
    return shlex.join(words)
