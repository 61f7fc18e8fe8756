"""Commands on jobs that exist: status, list, pause, cancel, delete."""

import sys
import time
from pathlib import Path

import click

from batcher.cli.options import find_job, job_argument, jobs_dir_option, json_option, option
from batcher.cli.unserved import resume_line

#: Seconds between two looks at a watched job.
WATCH_INTERVAL_S = 1.0


@click.command("status")
@job_argument
@option("--watch", is_flag=True, help="Stay until the job is complete or cancelled; a live bar on a terminal.")
@json_option
@jobs_dir_option
def status_command(job: str, *, watch: bool, as_json: bool, jobs_dir: Path) -> int:
    """Show how far JOB is: rows, tokens, rate, ETA, shards, attempts and crashes, and how its workers are.

    JOB is an id under --jobs-dir or the path of a job directory. Everything shown comes from files there. A worker is
    alive; stalled when it has work and its engine makes no step; gone when it gives no sign of life. Ends with 0 also
    where rows have failed: their number is in the output.

    \b
    Example:
      batcher status out --watch
    """
    from batcher.api.progress import Progress, status_json
    from batcher.cli.texts import status_text
    from batcher.manage.status import JobState, StatusReader

    found = find_job(job, jobs_dir)
    reader = StatusReader(found, reads_reasons=True)
    status = reader.read()
    if watch:
        with Progress(transient=True, as_json=as_json) as progress:
            progress.update(status)
            while status.state not in (JobState.COMPLETE, JobState.CANCELLED):
                time.sleep(WATCH_INTERVAL_S)
                status = reader.read()
                progress.update(status)
        if as_json:
            return 0  # The last status is among the lines.
    click.echo(status_json(status) if as_json else status_text(found, status))
    return 0


@click.command("list")
@json_option
@jobs_dir_option
def list_command(*, as_json: bool, jobs_dir: Path) -> int:
    """List the jobs under --jobs-dir, oldest first: state, how much is done, errors, tokens/s, ETA, models.

    A terminal has as much of it as fits; elsewhere, nothing is shortened.

    \b
    Example:
      batcher list --jobs-dir /data/jobs
    """
    from batcher.api.progress import status_json
    from batcher.cli.job_table import find_screen, jobs_text
    from batcher.manage.status import read_all

    statuses = read_all(jobs_dir, on_damaged=lambda exc: click.echo(f"Warning: {exc}", err=True))
    if as_json:
        for status in statuses:
            click.echo(status_json(status))
    elif statuses:
        click.echo(jobs_text(statuses, find_screen()))
    else:
        click.echo(f"No jobs under {jobs_dir}.", err=True)
    return 0


@click.command("pause")
@job_argument
@jobs_dir_option
def pause_command(job: str, *, jobs_dir: Path) -> int:
    """Pause JOB: its workers stop at their next row and take other work. `batcher resume` has it go on.

    What is finished stays, and who waits for the job (`submit --wait`) waits on. A `run` of it ends, with exit code 3.

    \b
    Example:
      batcher pause nightly --jobs-dir /mnt/jobs
    """
    from batcher.cli.texts import typed_job
    from batcher.manage.pause import PauseResult, pause

    found = find_job(job, jobs_dir)
    again = f"batcher resume {typed_job(found)}"
    match pause(found):
        case PauseResult.PAUSED:
            click.echo(f"Paused. Finished rows are kept; have it go on with: {again}")
        case PauseResult.ALREADY_PAUSED:
            click.echo(f"The job is paused already; have it go on with: {again}")
        case PauseResult.CANCELLED:
            click.echo(f"The job is cancelled: nobody works on it; take it up again with: {again}")
        case PauseResult.TOO_LATE:
            click.echo("The job is complete; there is nothing to pause.")
    return 0


@click.command("cancel")
@job_argument
@jobs_dir_option
def cancel_command(job: str, *, jobs_dir: Path) -> int:
    """Cancel JOB: its workers stop at their next row. What is finished stays; `batcher resume` takes it up again.

    \b
    Example:
      batcher cancel out
    """
    from batcher.cli.texts import shown_path
    from batcher.manage.cancel import CancelResult, cancel

    found = find_job(job, jobs_dir)
    result = cancel(found)
    if result is CancelResult.TOO_LATE:
        click.echo("The job is complete; there is nothing to cancel.")
    elif result is CancelResult.CANCELLED:
        line = resume_line(found, path=shown_path(found.path))
        click.echo(f"Cancelled. Finished rows are kept; take it up again with: {line}")
    else:
        click.echo("The job was cancelled already.")
    return 0


@click.command("delete")
@job_argument
@option("--yes", "-y", is_flag=True, help="Don't ask.")
@jobs_dir_option
def delete_command(job: str, *, yes: bool, jobs_dir: Path) -> int:
    """Delete JOB, with all that lies in its results/ and other folders. Files of others beside these stay.

    \b
    Example:
      batcher delete out --yes
    """
    from batcher.manage.delete import delete_job, find_deletable
    from batcher.manage.status import read_status

    found = find_deletable(job, jobs_dir)
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"delete {job}: give --yes, as there is no terminal to ask on")
        status = read_status(found) if found.exists() else None
        what = f"{status.state.value}, {status.num_done:,} finished rows" if status else "without rows"
        click.confirm(f"Delete {found.path} ({what})?", abort=True)
    left = delete_job(found)
    click.echo(f"Deleted {found.path}" + (f"; not the job's own and left there: {', '.join(left)}" if left else ""))
    return 0
