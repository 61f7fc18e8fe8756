"""Options that several commands share. Each option of the CLI has an environment variable `BATCHER_*`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from batcher.errors import JobError
from batcher.jobdir import JobDir, check_id

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class EnvOption(click.Option):
    """An option that can also be given as `BATCHER_<NAME>`; its help says so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("show_envvar", True)
        kwargs.setdefault("show_default", True)
        super().__init__(*args, **kwargs)
        if self.envvar is None and self.name is not None:
            self.envvar = f"BATCHER_{self.name.upper()}"


def option(*names: str, **kwargs: Any) -> Decorator:
    """`click.option` with an environment variable."""
    return click.option(*names, cls=EnvOption, **kwargs)


jobs_dir_option = option(
    "--jobs-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("batcher-jobs"),
    help="Folder that holds the job directories.",
)

broker_option = option(
    "--broker",
    metavar="URL",
    help="Redis-protocol broker, e.g. redis://host:6379/0. [default: an embedded one where the command can start it]",
)


def find_job(job: str, jobs_dir: Path) -> JobDir:
    """The job that JOB names: the path of a job directory, else an id under the jobs root. Raises JobError."""
    as_path = Path(job)
    if JobDir(as_path).exists():
        return JobDir.open(as_path.resolve())
    if as_path.name != job:
        raise JobError(f"{job}: no job here (no manifest.json); `batcher list` shows the jobs")
    return JobDir.open((jobs_dir / check_id(job, what="job id")).resolve())
