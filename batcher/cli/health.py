"""The command that asks whether a worker is well: health. Imports little, as it runs beside a worker all the time."""

import socket
import time
from pathlib import Path

import click

from batcher.cli.options import broker_option, jobs_dir_option, option

#: Seconds that the broker gets for each of its answers.
_BROKER_TIMEOUT_S = 5.0


@click.command("health")
@option("--name", help="The worker to ask for. [default: all of this machine]")
@option(
    "--alive", "only_alive", is_flag=True, envvar="BATCHER_ALIVE", help="Ask only whether the worker's process lives."
)
@broker_option
@jobs_dir_option
def health_command(*, name: str | None, only_alive: bool, broker: str | None, jobs_dir: Path) -> int:
    """Say whether the worker of this machine or container is well: 0 if it is, 1 if not, and why in a line.

    It is well if it gave its sign of life in time, has its model loaded and moves, and the broker answers, if one is
    given. With --alive the first is enough, which is the question of whoever restarts workers: a new one would not
    bring back the broker. Takes a tenth of a second and 20 MB; `batcher doctor` looks at everything.

    \b
    Example:
      batcher health --broker redis://queue:6379/0 --jobs-dir /mnt/jobs
    """
    from batcher.broker.ping import ping
    from batcher.cli import EXIT_CHECK_FAILED
    from batcher.errors import BrokerError, StorageError
    from batcher.jobdir.pulse import read_pulses

    host = socket.gethostname()
    try:
        found = read_pulses(jobs_dir, host=host, now=time.time())
        alive = [pulse for pulse in found if not pulse.is_gone and name in (None, pulse.name)]
    except StorageError as exc:
        click.echo(f"ill: {exc}")
        return EXIT_CHECK_FAILED
    if not alive:
        who = f"worker {name}" if name else "a worker"
        click.echo(f"ill: no sign of life of {who} on {host} under {jobs_dir}")
        return EXIT_CHECK_FAILED
    states = ", ".join(f"{pulse.name} {pulse.state}" for pulse in alive)
    if only_alive:
        click.echo(f"well: {states}")
        return 0
    if not all(pulse.is_ready for pulse in alive):
        click.echo(f"ill: {states}")
        return EXIT_CHECK_FAILED
    try:
        if broker is not None:
            ping(broker, timeout_s=_BROKER_TIMEOUT_S)
    except BrokerError as exc:
        click.echo(f"ill: {states}; {exc}")
        return EXIT_CHECK_FAILED
    click.echo(f"well: {states}{'; the broker answers' if broker else ''}")
    return 0
