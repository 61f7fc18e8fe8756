"""The command that ends workers without haste: drain."""

from pathlib import Path

import click

from batcher.cli.completing import complete_worker
from batcher.cli.options import jobs_dir_option, option

#: Of a worker that did not end in good order.
EXIT_NOT_DRAINED = 3


@click.command("drain")
@click.argument("workers", nargs=-1, required=True, metavar="WORKER...", shell_complete=complete_worker)
@option("--wait", "is_waiting", is_flag=True, help="Stay until they have ended.")
@jobs_dir_option
def drain_command(workers: tuple[str, ...], *, is_waiting: bool, jobs_dir: Path) -> int:
    """Have each WORKER finish the shards that it has, take no more, and end with exit code 0.

    WORKER is the name of a worker, NAME~INSTANCE where several have that name, or a host: all workers there. They hear
    of it by the jobs folder within seconds. SIGTERM ends a worker at once, as ever. With --wait, ends with 3 where one
    was gone before it had ended.

    \b
    Example:
      batcher drain gpu-7 --jobs-dir /mnt/jobs --wait
    """
    from batcher.manage.drain import drain, wait_until_ended
    from batcher.words import counted

    drains = drain(jobs_dir, *workers)
    for each in drains:
        beat = each.beat
        has = counted(len(beat.shards), "shard")
        again = "" if each.is_new else " already"
        click.echo(f"Draining{again}: {beat.name} (on {beat.host}, pid {beat.pid}), which has {has}.")
    if not is_waiting:
        return 0
    exit_code = 0
    for beat, is_orderly in wait_until_ended(jobs_dir, [each.beat for each in drains]):
        if is_orderly:
            click.echo(f"Ended: {beat.name}.")
        else:
            click.echo(f"Gone: {beat.name} gives no sign of life any more; its shards go to others.", err=True)
            exit_code = EXIT_NOT_DRAINED
    return exit_code
