"""`batcher query`: the results of jobs by SQL."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from batcher.cli.completing import complete_job
from batcher.cli.options import as_size, check_unicode, find_job, jobs_dir_option, json_option, option
from batcher.cli.results import SAMPLE_ROWS
from batcher.errors import InputError, JobError
from batcher.words import counted

if TYPE_CHECKING:
    from batcher.jobdir.folder import JobDir

#: What the only job is called in a query.
TABLE = "results"


@click.command("query")
@click.argument(
    "arguments", nargs=-1, required=True, metavar="JOB... SQL", callback=check_unicode, shell_complete=complete_job
)
@option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write: .parquet, .jsonl or .csv.",
)
@option("--force", is_flag=True, help="Replace an existing file.")
@option("--limit", type=click.IntRange(min=0), help="Most rows to print. [default: 20; with --json all]")
@option("--memory", callback=as_size, metavar="SIZE", help="Most memory, e.g. 4G. [default: half of what is free]")
@json_option
@jobs_dir_option
def query_command(
    arguments: tuple[str, ...],
    *,
    output: Path | None,
    force: bool,
    limit: int | None,
    memory: int | None,
    as_json: bool,
    jobs_dir: Path,
) -> int:
    """Ask the results of a job by SQL (that of DuckDB), or of several.

    The rows of JOB are the table `results`, with the columns of the input, of a running job those finished so far.
    Several jobs are given as NAME=JOB, each the table NAME. Nothing can be changed by it, and no files be read.

    \b
    Examples:
      batcher query out "select label, count(*) from results group by label"
      batcher query a=out-a b=out-b "select count(*) from a join b using (custom_id) where a.label <> b.label"
    """
    from batcher.cli.row_table import print_shortened
    from batcher.cli.texts import print_rows
    from batcher.manage.export import file_kind, write_tables
    from batcher.manage.query import query

    *names, sql = arguments
    if not names:
        raise click.UsageError('a job and a query are needed: batcher query JOB "select count(*) from results"')
    kind = None if output is None else file_kind(output)
    jobs = dict(_named(argument, jobs_dir) for argument in names)
    # To DuckDB upper and lower case are the same.
    if len({name.lower() for name in jobs}) < len(names):
        raise click.UsageError("two jobs have the same name; give each its own: batcher query a=JOB b=JOB ...")
    with query(jobs, sql, memory=memory) as (schema, tables):
        if output is not None and kind is not None:
            number = write_tables(output, kind, tables, schema=schema, jobs=tuple(jobs.values()), force=force)
            click.echo(f"{output}: {counted(number, 'row')}")
        elif as_json:
            print_rows(tables, limit)
        else:
            print_shortened(tables, SAMPLE_ROWS if limit is None else limit, if_none="No rows.")
    return 0


def _named(argument: str, jobs_dir: Path) -> "tuple[str, JobDir]":
    """The table's name and the job of NAME=JOB, or of a JOB, whose path may have a = in it."""
    name, equals, job = argument.partition("=")
    if equals and name.isidentifier():
        return name, find_job(job, jobs_dir)
    try:
        return TABLE, find_job(argument, jobs_dir)
    except (InputError, JobError) as exc:
        if not equals:
            raise
        raise click.UsageError(
            f"{argument}: there is no such job, and {name!r} is no name for a table: letters, digits and _ make one, "
            "without a digit in front"
        ) from exc
