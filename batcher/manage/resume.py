"""A job is taken up again: after a stop, a crash, a pause, a cancellation, a lost broker, or by what made it.

Each step leaves what the next resume begins with, so it may be interrupted between any two:

1. Parts that went bad are moved aside, and their shards are pending again.
2. Lost parts of refused rows are written, as no worker writes them.
3. A job without pending shards is finished, and nothing else changes. Not before 1 and 2, which open and close shards.
4. The mark of a cancellation or a pause goes, and what made workers give up shards is forgotten.
5. The pending shards are sent. Not before 4: a worker drops the message of a job that is cancelled or paused.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from batcher.jobdir.attempts import forgive
from batcher.jobdir.folder import JobDir
from batcher.jobdir.refused import commit_refused
from batcher.jobdir.sending import Send
from batcher.manage.finish import Summary, finalize
from batcher.manage.repair import Damage, repair

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a resume did. `summary` is that of a job that is complete, None: it goes on."""

    summary: Summary | None
    num_sent: int


def _log_damage(damage: Damage) -> None:
    logger.warning("%s", damage)


def resume(job: JobDir, *, send: Send | None = None, on_damage: Callable[[Damage], None] | None = None) -> Resumed:
    """Take `job` up again; what is finished is kept. Blocks for as long as it takes to read the results.

    `send` has its shards worked on; None: the caller does (`workers.local.complete`). `on_damage` gets each part that
    was moved aside; None: they are logged. Raises JobError where the manifest is wrong, StorageError where the disk
    says no, BrokerError of `send`.
    """
    for damage in repair(job):
        (on_damage or _log_damage)(damage)
    commit_refused(job)
    summary = finalize(job)
    if summary is not None:
        return Resumed(summary, num_sent=0)
    job.unhalt()
    for info in job.pending_shards():
        forgive(job, info.shard)
    return Resumed(None, num_sent=0 if send is None else send(job, job.pending_shards()))


def needed_models(job: JobDir) -> set[str]:
    """The models that the pending shards of `job` wait for."""
    return {info.model for info in job.pending_shards() if info.model is not None}
