"""The Celery task: a thin view. Checks the message, runs the shard, tells Celery what becomes of the message."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from celery import Celery
from celery.exceptions import Reject

from batcher.broker.messages import RUN_SHARD
from batcher.broker.sender import Sender
from batcher.errors import BatcherError, EngineError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import Counts
from batcher.jobdir.root import locate_job
from workers.engines.pool import EnginePool, NotLoadedError
from workers.process.logs import about
from workers.queue.draining import Draining
from workers.queue.messages import MessageError, ShardMessage
from workers.shard.context import AnyOf, WorkerContext
from workers.shard.runner import RunOutcome, run_shard
from workers.shard.tally import ShardTally

logger = logging.getLogger(f"batcher.{__name__}")

#: Open at a time.
_KEPT_JOBS = 8

#: Told of a shard that could not be run: job id, shard, what went wrong.
OnFailure = Callable[[str, int, BatcherError], None]


class OpenJobs:
    """The jobs that messages mean, each opened once for many messages: a large manifest takes long to read."""

    def __init__(self, jobs_root: Path) -> None:
        self._root = jobs_root
        self._jobs: dict[str, JobDir] = {}

    def open(self, job_id: str) -> JobDir:
        """The job of that id. Raises BatcherError where there is none, or where it can't be read."""
        job = self._jobs.get(job_id)
        if job is None or not job.is_here():
            job = JobDir.open(locate_job(self._root, job_id))
            if len(self._jobs) >= _KEPT_JOBS:
                self._jobs.clear()
            self._jobs[job_id] = job
        return job


@dataclass(frozen=True, slots=True)
class ShardWork:
    """What is done for a message.

    `on_engine_failure` is to end the process; `on_outcome` hears how each run ended. Whatever became of a shard, its
    job's next one is sent by `sender`, unless the message itself goes back.
    """

    jobs: OpenJobs
    engines: EnginePool
    context: WorkerContext
    draining: Draining
    sender: Sender
    on_failure: OnFailure
    on_engine_failure: Callable[[EngineError], None]
    on_outcome: Callable[[RunOutcome], None]

    def do(self, job_id: object, shard: object) -> None:
        """Run the shard that a message means. Raises Reject where the message is to go back to its queue."""
        if not self.draining.enter():
            raise Reject("the worker drains", requeue=True)
        try:
            found = _resolve(job_id, shard, jobs=self.jobs, models=self.engines.names)
            if found is not None:
                with about(job=found[0].job_id, shard=found[1]):
                    _note_taken(self.sender, *found)
                    self._run(*found)
                    _send_next(self.sender, *found)
        finally:
            self.draining.leave()

    def _run(self, job: JobDir, number: int, model: str) -> None:
        stopping = AnyOf(self.context.stopping.is_set, partial(self.engines.must_give_back, model))
        try:
            with self.engines.using(model) as engine:
                # From here, as the model may have had to be loaded.
                tally = ShardTally()

                def on_rows(rows: Counts) -> None:
                    tally.add(rows)
                    self.context.on_rows(rows)

                outcome = run_shard(job, number, engine, replace(self.context, stopping=stopping, on_rows=on_rows))
        except NotLoadedError as exc:
            # It was taken from the queue at the moment when its model left.
            raise Reject(str(exc), requeue=True) from exc
        except EngineError as exc:
            self.on_engine_failure(exc)
            raise Reject(str(exc), requeue=True) from exc
        except BatcherError as exc:
            # The message is dropped: the idle sweep brings the shard back, at its own pace.
            self.on_failure(job.job_id, number, exc)
            return
        except Exception as exc:
            logger.exception("shard %d of %s", number, job.job_id)
            self.on_failure(job.job_id, number, BatcherError(f"{exc!r}: a bug of Batcher; the traceback is in the log"))
            return
        logger.info("shard %d of %s: %s%s", number, job.job_id, outcome.value, tally.text, extra=tally.fields)
        self.on_outcome(outcome)
        if outcome is RunOutcome.STOPPED:
            raise Reject("the worker stops, or its model leaves", requeue=True)


def register(app: Celery, work: ShardWork) -> None:
    """Give `app` the task."""

    @app.task(name=RUN_SHARD)  # type: ignore[untyped-decorator]
    def run_shard_task(job_id: object = None, shard: object = None) -> None:
        work.do(job_id, shard)


def _resolve(
    job_id: object, shard: object, *, jobs: OpenJobs, models: Collection[str]
) -> tuple[JobDir, int, str] | None:
    """The job, shard and model a message means; None, with a line in the log, where it means none of ours."""
    try:
        message = ShardMessage.from_values(job_id, shard)
        job = jobs.open(message.job_id)
    except (MessageError, BatcherError) as exc:
        logger.warning("a message is dropped: %s", exc)
        return None
    shards = job.manifest.shards
    model = shards[message.shard].model if message.shard < len(shards) else None
    if model is None or model not in models:
        logger.warning("a message is dropped: %s has no shard %d for the models here", job.path, message.shard)
        return None
    return job, message.shard, model


def _note_taken(sender: Sender, job: JobDir, shard: int, model: str) -> None:
    try:
        sender.turns(job).taken(job, model, shard)
    except BatcherError as exc:
        # The sweep finds out.
        logger.debug("%s", exc)


def _send_next(sender: Sender, job: JobDir, shard: int, model: str) -> None:
    try:
        sender.refill(job, model)
    except BatcherError as exc:
        logger.warning("after shard %d of %s no more is sent, until the sweep does: %s", shard, job.job_id, exc)
