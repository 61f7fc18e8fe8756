"""Commands on the results of jobs: results, export, retry."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batcher.cli.options import (
    broker_option,
    find_job,
    job_argument,
    jobs_dir_option,
    json_option,
    option,
    where_option,
)
from batcher.cli.unserved import resume_line
from batcher.words import counted

if TYPE_CHECKING:
    from batcher.jobdir.folder import JobDir
    from batcher.jobdir.sending import Send
    from batcher.manage.retry import Selection

#: Result rows shown to a person who gives no --limit.
SAMPLE_ROWS = 20


@click.command("results")
@job_argument
@option("--errors", is_flag=True, help="Only rows that failed.")
@where_option
@option(
    "--columns",
    metavar="NAMES",
    help="Show these columns as a table: custom_id,output.name,completion_tokens.",
)
@option("--limit", type=click.IntRange(min=0), help="Most rows to print. [default: 20; with --json all]")
@json_option
@jobs_dir_option
def results_command(
    job: str,
    *,
    errors: bool,
    where: str | None,
    columns: str | None,
    limit: int | None,
    as_json: bool,
    jobs_dir: Path,
) -> int:
    """Print result rows of JOB: of a running job those finished so far, each once.

    Legibly and shortened, or with --json whole, a JSON line a choice. --columns makes a table of them, which fits the
    terminal; in a pipe it is whole, with tabs between the cells.

    \b
    Examples:
      batcher results out --errors --json
      batcher results out --where "finish_reason = 'length' and completion_tokens > 40" --columns custom_id,text
    """
    from batcher.arrow.conditions import parse_columns, parse_conditions
    from batcher.cli.row_table import print_shortened
    from batcher.cli.texts import print_rows, print_sample
    from batcher.jobdir.results import job_schema
    from batcher.manage.finished import finished_tables
    from batcher.manage.joined import renamed_columns

    found = find_job(job, jobs_dir)
    schema, renamed = job_schema(found.manifest), renamed_columns(found.manifest)
    wanted = [*([where] if where is not None else []), *(["status = 'error'"] if errors else [])]
    condition = parse_conditions(wanted, schema, renamed=renamed)
    chosen = None if columns is None else parse_columns([columns], schema, what="--columns", renamed=renamed)
    tables = finished_tables(found, columns=chosen, where=condition)
    at_most = SAMPLE_ROWS if limit is None else limit
    if_none = "No such rows." if where is not None else "No error rows." if errors else "No finished rows yet."
    if as_json:
        print_rows(tables, limit)
    elif chosen is not None:
        print_shortened(tables, at_most, if_none=if_none)
    else:
        print_sample(tables, at_most, if_none=if_none)
    return 0


@click.command("export")
@job_argument
@option(
    "--output",
    "-o",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
    help="File to write: .parquet, .jsonl or .csv; - is standard output.",
)
@option(
    "--type",
    "kind",
    envvar="BATCHER_TYPE",
    type=click.Choice(["parquet", "jsonl", "csv"]),
    help="What to write, whatever the file is called. [default: by the name; jsonl for -]",
)
@option(
    "--format",
    "layout",
    envvar="BATCHER_FORMAT",
    type=click.Choice(["rows", "openai"]),
    default="rows",
    help="What a JSONL line holds: a response object with the row's own columns, or an OpenAI batch output line.",
)
@option(
    "--columns",
    metavar="NAMES",
    help="Write the columns of the input, under their own names, then these of the results: finish_reason,output.name.",
)
@option(
    "--output-column",
    metavar="NAME",
    help="Likewise, and the answer as the last column: the text, or what the job has of output and label.",
)
@option("--partial", is_flag=True, help="Export the finished rows of a job that is not complete.")
@option("--force", is_flag=True, help="Replace an existing file.")
@jobs_dir_option
def export_command(
    job: str,
    *,
    output: Path,
    kind: str | None,
    layout: str,
    columns: str | None,
    output_column: str | None,
    partial: bool,
    force: bool,
    jobs_dir: Path,
) -> int:
    """Write the results of JOB as one file; its name says how.

    Parquet and CSV have a row a choice (nested columns as JSON text in CSV), JSONL a line a request. With --columns or
    --output-column rows are in the order of the input, and have its columns first, so that a CSV file comes out as it
    went in, with a column more.

    \b
    Examples:
      batcher export out -o answers.jsonl --format openai
      batcher export out -o tickets-with-label.csv --output-column label
    """
    from batcher.manage.export import ExportFormat, FileKind, export, file_kind

    is_stdout = str(output) == "-"
    chosen = FileKind(kind) if kind else FileKind.JSONL if is_stdout else file_kind(output)
    if is_stdout and chosen is FileKind.PARQUET and sys.stdout.isatty():
        raise click.UsageError("-o -: Parquet is nothing for a terminal; name a file, or use --type csv or jsonl")
    found = find_job(job, jobs_dir)
    number = export(
        found,
        sys.stdout.buffer if is_stdout else output,
        kind=chosen,
        layout=ExportFormat(layout),
        columns=columns,
        output_column=output_column,
        force=force,
        partial=partial,
    )
    if is_stdout:
        sys.stdout.flush()  # Before it is said that all is there.
    noun = "line" if chosen is FileKind.JSONL else "row"
    click.echo(f"{'standard output' if is_stdout else output}: {counted(number, noun)}", err=is_stdout)
    return 0


@click.command("retry")
@job_argument
@option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help="Rows of which this is true, as in SQL, over the columns of the results; given several times, all must hold. "
    "[default: rows that failed]",
)
@option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    envvar="BATCHER_SET",
    help="A sampling parameter that they get, as in a request, such as max_tokens=256; can be given several times.",
)
@option("--dry-run", is_flag=True, help="Say which rows would run again, and stop.")
@broker_option
@jobs_dir_option
def retry_command(
    job: str, *, where: tuple[str, ...], settings: tuple[str, ...], dry_run: bool, broker: str | None, jobs_dir: Path
) -> int:
    """Run rows of JOB again: those that failed, or those of which --where is true. The others are kept.

    Answers that there are stay in the results until the new ones are there, and then in JOB/earlier. With --broker the
    reopened shards go to the workers there. Without, who works on the job takes them up, or `batcher resume` does.

    \b
    Examples:
      batcher retry out
      batcher retry out --where "finish_reason = 'length'" --set max_tokens=256
    """
    from batcher.cli.texts import shown_path
    from batcher.manage.retry import parse_where, retry, select
    from batcher.openai.overrides import parse_settings

    found = find_job(job, jobs_dir)
    condition, given = parse_where(found, where), parse_settings(settings)
    if dry_run:
        selection = select(found, where=condition, settings=given)
        _print_left_out(selection, found)
        click.echo(f"{_selected(selection)} would run again.")
        return 0
    # Before anything is reopened: a mistyped URL should change nothing.
    with _sending(broker) as send:
        retried = retry(found, where=condition, settings=given, send=send)
    selection = retried.selection
    _print_left_out(selection, found)
    if not selection.shards:
        click.echo("Nothing to retry.")
        return 0
    click.echo(f"Reopened {_selected(selection)}.")
    line = resume_line(found, path=shown_path(found.path))
    if found.is_paused:
        click.echo(f"The job is paused; have it go on with: {line}")
        return 0
    if broker is not None:
        click.echo(f"Enqueued {counted(retried.num_sent, 'shard')}.")
        return 0
    if_needed = (
        "Go on with" if retried.was_complete else "Who works on the job takes them up; if nobody does, go on with"
    )
    click.echo(f"{if_needed}: {line}")
    return 0


def _selected(selection: "Selection") -> str:
    """How many rows there are of a selection, in how many shards."""
    answered = f", {selection.num_ok:,} of them answered," if selection.num_ok else ""
    rows, shards = counted(selection.num_rows, "row"), counted(len(selection.shards), "shard")
    return f"{rows}{answered} in {shards}"


def _sending(broker: str | None) -> "AbstractContextManager[Send | None]":
    if broker is None:
        return nullcontext()
    from batcher.broker.sender import sending

    return sending(broker)


def _print_left_out(selection: "Selection", job: "JobDir") -> None:
    """Say which of the rows that were asked for do not run again, and why."""
    from batcher.cli.texts import shown_path

    if selection.num_refused:
        were, them = (
            ("was refused at submit and is", "it")
            if selection.num_refused == 1
            else ("were refused at submit and are", "them")
        )
        click.echo(
            f"{counted(selection.num_refused, 'row')} {were} left out: mend {them} in the input and submit it as a new "
            "job."
        )
    if selection.num_not_retriable:
        left = "is left out: its" if selection.num_not_retriable == 1 else "are left out: their"
        click.echo(f"{counted(selection.num_not_retriable, 'row')} {left} error does not go away by retrying.")
    if selection.num_reopened:
        are, where = ("is", "a shard") if selection.num_reopened == 1 else ("are", "shards")
        click.echo(
            f"{counted(selection.num_reopened, 'row')} {are} in {where} that an earlier retry has open and {are} left "
            f"alone until that is done; it goes on with: {resume_line(job, path=shown_path(job.path))}"
        )
    if selection.num_open:
        are = "is" if selection.num_open == 1 else "are"
        click.echo(f"{counted(selection.num_open, 'row')} of shards that are not finished {are} left alone.")
