"""The parts of refused rows: error rows alone, for which no worker is needed."""

from collections.abc import Iterable

from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import Manifest, ShardInfo
from batcher.jobdir.results import build_table, write_file
from batcher.jobdir.shards import read_shard
from batcher.jobdir.store import Guard
from batcher.types import Completion


def commit_refused(job: JobDir) -> int:
    """Write the missing parts of the shards of refused rows, from their shard files. Returns how many it wrote."""
    return commit_parts(job, job.manifest, job.pending_shards(), guard=job.check_exists)


def commit_parts(job: JobDir, manifest: Manifest, shards: Iterable[ShardInfo], *, guard: Guard | None = None) -> int:
    """Write the parts of those of `shards` that hold refused rows; `manifest` need not be on disk yet.

    Returns how many it wrote: a part that is there already stays. `guard` is asked before each, as by the store.
    """
    num_written = 0
    for info in shards:
        if info.model is not None:
            continue
        shard = read_shard(job.shard_path(info.shard), carried=manifest.carried, store=job.store)
        created = int(manifest.created_at.timestamp())
        completions = [Completion(row.request, id="", created=created, error=row.error) for row in shard.rows]
        table = build_table(completions, carried=shard.carried, attempt=None, worker=None, optional=manifest.optional)
        num_written += write_file(job.part_path(info.shard), table, guard=guard, store=job.store)
    return num_written
