"""Command `priority`: another place among the jobs on the same workers."""

from pathlib import Path

import click

from batcher.cli.completing import complete_priority
from batcher.cli.options import find_job, job_argument, jobs_dir_option, option


@click.command("priority")
@job_argument
@click.argument("level", metavar="[0-9]", required=False, shell_complete=complete_priority)
@option("--finish-by", metavar="TIME", help="When it has to be finished, as for `submit`; none takes that back.")
@jobs_dir_option
def priority_command(job: str, *, level: str | None, finish_by: str | None, jobs_dir: Path) -> int:
    """Give JOB another priority, 0 to 9 or low, normal or urgent, while it waits or runs; without one, show it.

    Shards in work are finished first; those that wait in the queue are moved within seconds.

    \b
    Example:
      batcher priority nightly urgent --jobs-dir /mnt/jobs
    """
    from batcher.cli.texts import standing_text
    from batcher.jobdir.standing import Standing, parse_finish_by, parse_priority, read_standing
    from batcher.manage.prioritize import prioritize

    found = find_job(job, jobs_dir)
    if level is None and finish_by is None:
        click.echo(standing_text(read_standing(found)))
        return 0
    forgets_time = finish_by is not None and finish_by.strip().lower() == "none"
    wish = Standing(
        None if level is None else parse_priority(level),
        None if finish_by is None or forgets_time else parse_finish_by(finish_by),
    )
    standing = prioritize(found, wish, forgets_time=forgets_time)
    if standing is None:
        click.echo("The job is complete; it needs no priority any more.")
    else:
        click.echo(standing_text(standing))
    return 0
