"""The Celery task: a thin view. Checks the message, runs the shard, tells Celery what becomes of the message."""

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from celery import Celery
from celery.exceptions import Reject

from batcher.errors import BatcherError, EngineError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import Counts
from batcher.jobdir.root import locate_job
from workers.engines.pool import EnginePool, NotLoadedError
from workers.process.logs import about
from workers.queue.app import RUN_SHARD
from workers.queue.draining import Draining
from workers.queue.messages import MessageError, ShardMessage
from workers.shard.context import AnyOf, WorkerContext
from workers.shard.runner import RunOutcome, run_shard
from workers.shard.tally import ShardTally

logger = logging.getLogger(f"batcher.{__name__}")

#: Told of a shard that could not be run: job id, shard, what went wrong.
OnFailure = Callable[[str, int, BatcherError], None]


def register(
    app: Celery,
    *,
    jobs_root: Path,
    engines: EnginePool,
    context: WorkerContext,
    draining: Draining,
    on_failure: OnFailure,
    on_engine_failure: Callable[[EngineError], None],
    on_outcome: Callable[[RunOutcome], None],
) -> None:
    """Give `app` the task. `on_engine_failure` is to end the process; `on_outcome` hears how each run ended."""

    @app.task(name=RUN_SHARD)  # type: ignore[untyped-decorator]
    def run_shard_task(job_id: object = None, shard: object = None) -> None:
        if not draining.enter():
            raise Reject("the worker drains", requeue=True)
        try:
            work_on(job_id, shard)
        finally:
            draining.leave()

    def work_on(job_id: object, shard: object) -> None:
        found = _resolve(job_id, shard, jobs_root=jobs_root, models=engines.names)
        if found is None:
            return
        job, number, model = found
        with about(job=job.job_id, shard=number):
            run_found(job, number, model)

    def run_found(job: JobDir, number: int, model: str) -> None:
        stopping = AnyOf(context.stopping.is_set, partial(engines.must_give_back, model))
        tally = ShardTally()

        def on_rows(rows: Counts) -> None:
            tally.add(rows)
            context.on_rows(rows)

        try:
            with engines.using(model) as engine:
                outcome = run_shard(job, number, engine, replace(context, stopping=stopping, on_rows=on_rows))
        except NotLoadedError as exc:
            # It was taken from the queue at the moment when its model left.
            raise Reject(str(exc), requeue=True) from exc
        except EngineError as exc:
            on_engine_failure(exc)
            raise Reject(str(exc), requeue=True) from exc
        except BatcherError as exc:
            # The message is dropped: the idle sweep brings the shard back, at its own pace.
            on_failure(job.job_id, number, exc)
            return
        except Exception as exc:
            logger.exception("shard %d of %s", number, job.job_id)
            on_failure(job.job_id, number, BatcherError(f"{exc!r}: a bug of Batcher; the traceback is in the log"))
            return
        logger.info("shard %d of %s: %s%s", number, job.job_id, outcome.value, tally.text, extra=tally.fields)
        on_outcome(outcome)
        if outcome is RunOutcome.STOPPED:
            raise Reject("the worker stops, or its model leaves", requeue=True)


def _resolve(
    job_id: object, shard: object, *, jobs_root: Path, models: Collection[str]
) -> tuple[JobDir, int, str] | None:
    """The job, shard and model a message means; None, with a line in the log, where it means none of ours."""
    try:
        message = ShardMessage.from_values(job_id, shard)
        job = JobDir.open(locate_job(jobs_root, message.job_id))
    except (MessageError, BatcherError) as exc:
        logger.warning("a message is dropped: %s", exc)
        return None
    model = {info.shard: info.model for info in job.manifest.shards}.get(message.shard)
    if model is None or model not in models:
        logger.warning("a message is dropped: %s has no shard %d for the models here", job.path, message.shard)
        return None
    return job, message.shard, model
