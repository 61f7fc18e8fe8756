"""Completes a submitted job in this process, without a broker and without a model."""

import threading

from batcher.jobdir.folder import JobDir
from batcher.manage.finish import Summary, finalize
from tests.support.manual_engine import ManualEngine
from workers.estimating.trial import SoleLeases
from workers.shard.context import WorkerContext
from workers.shard.runner import RunOutcome, run_shard


def complete(job: JobDir, engine: ManualEngine) -> Summary:
    """Run every shard of `job` that waits for a worker, as a worker does. Returns the job's summary."""
    context = WorkerContext(
        worker="w1",
        process="p1",
        leases=SoleLeases(),
        stopping=threading.Event(),
        on_claim=lambda job, shard, attempt: None,
        on_end=lambda job, shard, attempt: None,
        on_progress=lambda: None,
        on_set_aside=lambda: None,
        on_commit=lambda job: None,
    )
    for info in job.manifest.shards:
        if info.model is not None:
            assert run_shard(job, info.shard, engine, context) is RunOutcome.COMMITTED
    summary = finalize(job)
    assert summary is not None
    return summary
