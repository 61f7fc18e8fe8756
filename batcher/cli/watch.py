"""Seeing a job through: the commands that wait for one to be completed, and how they tell of its end."""

import shlex
import sys
from typing import TYPE_CHECKING

import click

from batcher.cli import EXIT_ERROR_ROWS, EXIT_INTERRUPTED
from batcher.cli.logs import with_log
from batcher.errors import BatcherError, JobPausedError
from batcher.words import counted

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from batcher.jobdir.folder import JobDir
    from batcher.manage.finish import Summary
    from workers.local import JobBroker
    from workers.process.events import WorkerConfig


def how_far(job: "JobDir") -> str:
    """How many rows are done, of how many: `1 of 400 rows done`."""
    from batcher.manage.status import StatusReader

    status = StatusReader(job).read()
    return f"{status.num_done:,} of {counted(status.num_rows, 'row')} done"


def complete_job(
    job: "JobDir",
    config: "WorkerConfig",
    *,
    num_workers: int,
    broker: "JobBroker",
    spares: "list[subprocess.Popen[bytes]]",
    log: int | None,
    quiet: bool,
    again: str,
    say: "Callable[[JobDir, Summary], int] | None" = None,
) -> int:
    """Complete the job with local workers and report, by `say` where that is given. Returns the exit code.

    `log` is the descriptor of the workers' stderr; None: that of this process.
    """
    from batcher.api.progress import showing
    from workers.local import StoppedError, complete

    try:
        with showing(not quiet, transient=True) as on_status:
            summary = complete(
                *(job, with_log(config)),
                num_workers=num_workers,
                broker=broker,
                spares=spares,
                on_status=on_status,
                on_engines=_ignore if quiet else _show_engines,
                log=log,
            )
    except StoppedError:
        click.echo(f"Stopped: {how_far(job)} and kept. Resume with:\n  {again}", err=True)
        return EXIT_INTERRUPTED
    except JobPausedError as exc:
        click.echo(f"Paused: {how_far(job)} and kept. Go on with:\n  {again}", err=True)
        return exc.exit_code
    except BatcherError as exc:
        click.echo(f"Error: {exc}", err=True)
        if job.exists():
            click.echo(f"{how_far(job)} and kept. Go on with:\n  {again}", err=True)
        return exc.exit_code
    return (say or report)(job, summary)


def _show_engines(text: str) -> None:
    for line in text.splitlines():
        click.echo(f"Engine     {line}", err=True)


def _ignore(text: str) -> None:
    pass


def wait_for_job(job: "JobDir", broker: str, *, quiet: bool) -> int:
    """Wait for workers elsewhere and report. Returns the exit code."""
    from batcher.api.progress import showing
    from batcher.cli.texts import typed_job
    from workers.local import StoppedError, wait

    try:
        with showing(not quiet, transient=True) as on_status:
            summary = wait(job, broker, on_status=on_status)
    except StoppedError:
        click.echo(f"The job goes on without us; look at it with:\n  batcher status {typed_job(job)} --watch", err=True)
        return EXIT_INTERRUPTED
    return report(job, summary)


def report_complete(job: "JobDir", summary: "Summary") -> int:
    click.echo("The job is complete; nothing is left to do.", err=True)
    return report(job, summary)


def report(job: "JobDir", summary: "Summary") -> int:
    """Print the summary. Returns the exit code."""
    from batcher.cli.texts import print_summary

    print_summary(job, summary)
    return EXIT_ERROR_ROWS if summary.num_errors else 0


def typed_command() -> str:
    """The command line as it was given."""
    return shlex.join(["batcher", *sys.argv[1:]])
