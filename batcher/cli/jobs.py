"""Commands on jobs that exist: status, list, results, export, retry, cancel, delete."""

import shlex
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batcher.cli.options import broker_option, find_job, jobs_dir_option, json_option, option

if TYPE_CHECKING:
    from batcher.jobdir.folder import JobDir
    from batcher.jobdir.sending import Send
    from batcher.manage.retry import Selection

#: Seconds between two looks at a watched job.
WATCH_INTERVAL_S = 1.0

#: Result rows shown to a person who gives no --limit.
SAMPLE_ROWS = 20

job_argument = click.argument("job", metavar="JOB")


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
    reader = StatusReader(found)
    status = reader.read()
    if watch:
        with Progress() as progress:
            progress.update(status)
            while status.state not in (JobState.COMPLETE, JobState.CANCELLED):
                time.sleep(WATCH_INTERVAL_S)
                status = reader.read()
                progress.update(status)
    click.echo(status_json(status) if as_json else status_text(found, status))
    return 0


@click.command("list")
@json_option
@jobs_dir_option
def list_command(*, as_json: bool, jobs_dir: Path) -> int:
    """List the jobs under --jobs-dir, oldest first.

    \b
    Example:
      batcher list --jobs-dir /data/jobs
    """
    from batcher.api.progress import status_json
    from batcher.cli.texts import table_text, utc_text
    from batcher.manage.status import read_all

    statuses = read_all(jobs_dir, on_damaged=lambda exc: click.echo(f"Warning: {exc}", err=True))
    if as_json:
        for status in statuses:
            click.echo(status_json(status))
    elif statuses:
        rows = [
            (s.job_id, s.state.value, f"{s.num_rows:,}", f"{s.num_done:,}", f"{s.num_errors:,}", utc_text(s.created_at))
            for s in statuses
        ]
        click.echo(table_text(("JOB", "STATE", "ROWS", "DONE", "ERRORS", "CREATED"), rows))
    else:
        click.echo(f"No jobs under {jobs_dir}.", err=True)
    return 0


@click.command("results")
@job_argument
@option("--errors", is_flag=True, help="Only rows that failed.")
@option("--limit", type=click.IntRange(min=0), help="Most rows to print. [default: 20; with --json all]")
@json_option
@jobs_dir_option
def results_command(job: str, *, errors: bool, limit: int | None, as_json: bool, jobs_dir: Path) -> int:
    """Print result rows of JOB: of a running job those finished so far, each once.

    Legibly and shortened, or with --json whole, a JSON line a choice.

    \b
    Example:
      batcher results out --errors --json
    """
    from batcher.cli.texts import print_rows, print_sample

    found = find_job(job, jobs_dir)
    if as_json:
        print_rows(found, limit, errors_only=errors)
    else:
        print_sample(found, SAMPLE_ROWS if limit is None else limit, errors_only=errors)
    return 0


@click.command("export")
@job_argument
@option(
    "--output",
    "-o",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write: .parquet, .jsonl or .csv.",
)
@option(
    "--format",
    "layout",
    envvar="BATCHER_FORMAT",
    type=click.Choice(["rows", "openai"]),
    default="rows",
    help="What a JSONL line holds: a response object with the row's own columns, or an OpenAI batch output line.",
)
@option("--partial", is_flag=True, help="Export the finished rows of a job that is not complete.")
@option("--force", is_flag=True, help="Replace an existing file.")
@jobs_dir_option
def export_command(job: str, *, output: Path, layout: str, partial: bool, force: bool, jobs_dir: Path) -> int:
    """Write the results of JOB as one file; its name says how.

    Parquet and CSV have a row a choice (nested columns as JSON text in CSV), JSONL a line a request.

    \b
    Example:
      batcher export out -o answers.jsonl --format openai
    """
    from batcher.manage.export import SUFFIXES, ExportFormat, export

    if output.suffix not in SUFFIXES:
        raise click.UsageError(f"-o {output}: the name must end in one of {', '.join(SUFFIXES)}")
    if layout == ExportFormat.OPENAI and output.suffix != ".jsonl":
        raise click.UsageError(
            f"--format openai: OpenAI batch output is JSONL; name the file .jsonl, not {output.name}"
        )
    found = find_job(job, jobs_dir)
    number = export(found, output, layout=ExportFormat(layout), force=force, partial=partial)
    click.echo(f"{output}: {number:,} {'lines' if output.suffix == '.jsonl' else 'rows'}")
    return 0


@click.command("retry")
@job_argument
@option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only failed rows with this error_code, custom_id or row; given several times, all must hold.",
)
@broker_option
@jobs_dir_option
def retry_command(job: str, *, where: tuple[str, ...], broker: str | None, jobs_dir: Path) -> int:
    """Run the failed rows of JOB again; rows that succeeded are kept.

    With --broker the reopened shards go to the workers there. Without, who works on the job takes them up, or
    `batcher resume` does.

    \b
    Example:
      batcher retry out --where error_code=timeout
    """
    from batcher.manage.retry import parse_where, retry

    conditions = parse_where(where)
    found = find_job(job, jobs_dir)
    # Before anything is reopened: a mistyped URL should change nothing.
    with _sending(broker) as send:
        retried = retry(found, where=conditions, send=send)
    selection = retried.selection
    _print_left_out(selection)
    if not selection.shards:
        click.echo("Nothing to retry.")
        return 0
    click.echo(f"Reopened {selection.num_rows:,} rows in {len(selection.shards):,} shards.")
    if broker is not None:
        click.echo(f"Enqueued {retried.num_sent:,} shards.")
        return 0
    if_needed = (
        "Go on with" if retried.was_complete else "Who works on the job takes them up; if nobody does, go on with"
    )
    click.echo(f"{if_needed}: batcher resume {_typed(found)}")
    return 0


def _sending(broker: str | None) -> "AbstractContextManager[Send | None]":
    if broker is None:
        return nullcontext()
    from workers.queue.app import sending

    return sending(broker)


@click.command("cancel")
@job_argument
@jobs_dir_option
def cancel_command(job: str, *, jobs_dir: Path) -> int:
    """Cancel JOB: its workers stop at their next row. What is finished stays; `batcher resume` takes it up again.

    \b
    Example:
      batcher cancel out
    """
    from batcher.manage.cancel import CancelResult, cancel

    found = find_job(job, jobs_dir)
    result = cancel(found)
    if result is CancelResult.TOO_LATE:
        click.echo("The job is complete; there is nothing to cancel.")
    elif result is CancelResult.CANCELLED:
        click.echo(f"Cancelled. Finished rows are kept; take it up again with: batcher resume {_typed(found)}")
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


def _print_left_out(selection: "Selection") -> None:
    """Say which failed rows another attempt can't help."""
    if selection.num_refused:
        click.echo(
            f"{selection.num_refused:,} rows were refused at submit and are left out: mend them in the input and "
            "submit it as a new job."
        )
    if selection.num_not_retriable:
        click.echo(f"{selection.num_not_retriable:,} rows are left out: their error does not go away by retrying.")


def _typed(job: "JobDir") -> str:
    """The job as one would type it on a command line."""
    from batcher.cli.texts import shown_path

    return shlex.quote(shown_path(job.path))
