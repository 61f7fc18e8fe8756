"""The Celery task: a thin view. Checks the message, runs the shard, tells Celery what becomes of the message."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from celery import Celery
from celery.exceptions import Reject

from batcher.errors import BatcherError, EngineError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.root import locate_job
from workers.engines.base import Engine
from workers.queue.app import RUN_SHARD
from workers.queue.messages import MessageError, ShardMessage
from workers.shard.runner import RunOutcome, WorkerContext, run_shard

logger = logging.getLogger(f"batcher.{__name__}")

#: Told of a shard that could not be run: job id, shard, what went wrong.
OnFailure = Callable[[str, int, BatcherError], None]


def register(
    app: Celery,
    *,
    jobs_root: Path,
    engines: Mapping[str, Engine],
    context: WorkerContext,
    on_failure: OnFailure,
    on_engine_failure: Callable[[EngineError], None],
) -> None:
    """Give `app` the task. `engines` are by model name; `on_engine_failure` is to end the process."""

    @app.task(name=RUN_SHARD)  # type: ignore[untyped-decorator]
    def run_shard_task(job_id: object = None, shard: object = None) -> None:
        found = _resolve(job_id, shard, jobs_root=jobs_root, engines=engines)
        if found is None:
            return
        job, number, engine = found
        try:
            outcome = run_shard(job, number, engine, context)
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
        logger.info("shard %d of %s: %s", number, job.job_id, outcome.value)
        if outcome is RunOutcome.STOPPED:
            raise Reject("the worker stops", requeue=True)


def _resolve(
    job_id: object, shard: object, *, jobs_root: Path, engines: Mapping[str, Engine]
) -> tuple[JobDir, int, Engine] | None:
    """The job, shard and engine a message means; None, with a line in the log, where it means none of ours."""
    try:
        message = ShardMessage.from_values(job_id, shard)
        job = JobDir.open(locate_job(jobs_root, message.job_id))
    except (MessageError, BatcherError) as exc:
        logger.warning("a message is dropped: %s", exc)
        return None
    models = {info.shard: info.model for info in job.manifest.shards}
    engine = engines.get(models.get(message.shard) or "")
    if engine is None:
        logger.warning("a message is dropped: %s has no shard %d for the models here", job.path, message.shard)
        return None
    return job, message.shard, engine
