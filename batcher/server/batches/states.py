"""The state of batches, from files alone. What can't change any more is remembered, so that asking again is cheap.

Of a complete job its summary is read once; of one that runs, by a `StatusReader`, the footers that are new.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from batcher.errors import BatcherError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.heartbeats import Health
from batcher.jobdir.root import list_batches
from batcher.manage.finish import Summary, last_commit_at, read_summary
from batcher.manage.status import Status, StatusReader
from batcher.openai.parameters import COMPLETIONS_URL
from batcher.server.batches.outputs import OutputKind, is_deleted, output_id, virtual_input_id
from batcher.server.batches.records import (
    Batch,
    BatchCounts,
    BatchRecord,
    BatchStatus,
    counts_of,
    read_cancelled_at,
    read_failure,
    read_record,
    unix,
)

logger = logging.getLogger(__name__)

#: What is said of a job of the command line, which was given neither.
_CLI_ENDPOINT = COMPLETIONS_URL
_CLI_WINDOW = "24h"


@dataclass(slots=True)
class _Known:
    """What is remembered of a job, for as long as its manifest is the same."""

    version: str
    job: JobDir
    reader: StatusReader
    summary_version: str | None = None
    summary: Summary | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


class BatchReader:
    """Reads the batches under a jobs root. For all threads; everything here touches the disk."""

    def __init__(self, root: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._clock = clock
        self._known: dict[Path, _Known] = {}
        self._records: dict[Path, BatchRecord] = {}
        self._complained: set[Path] = set()

    def read(self, job: JobDir) -> Batch | None:
        """The batch that `job` is now; None where there is none. Raises JobError and StorageError for a damaged one."""
        record = self.record(job)
        if job.has(job.deleted_path):
            return None
        if not job.exists():
            return None if record is None else self._read_unsubmitted(job, record)
        return self._read_submitted(self._recall(job), record)

    def record(self, job: JobDir) -> BatchRecord | None:
        """What was asked for; None for a job of the command line. Records never change, nor does a name come again."""
        known = self._records.get(job.path)
        if known is not None and job.has(job.batch_path) and not job.has(job.deleted_path):
            return known
        found = read_record(job)
        if found is None:
            self._records.pop(job.path, None)
        else:
            self._records[job.path] = found
        return found

    def status(self, job: JobDir) -> Status:
        """How far a submitted job is."""
        known = self._recall(job)
        with known.lock:
            return known.reader.read()

    def newest_first(self) -> list[tuple[int, JobDir]]:
        """All batches with the time of their creation. One that is damaged is left out, with a warning."""
        found = []
        for job in list_batches(self._root):
            try:
                found.append((self._created_at(job), job))
            except BatcherError as exc:
                if job.path not in self._complained:
                    self._complained.add(job.path)
                    logger.warning("not listed: %s", exc)
        for path in {*list(self._known), *list(self._records)}.difference(job.path for _, job in found):
            self._known.pop(path, None)
            self._records.pop(path, None)
        return sorted(found, key=lambda one: (one[0], one[1].job_id), reverse=True)

    def is_held(self, job: JobDir) -> bool:
        """Whether a worker that is alive holds a shard of the job."""
        return _is_held(self.status(job))

    def is_unread(self, job: JobDir) -> bool:
        """Whether somebody has yet to read the input, or to say that nobody does."""
        batch = None if job.exists() else self.read(job)
        return batch is not None and batch.status in (BatchStatus.VALIDATING, BatchStatus.CANCELLING)

    def _created_at(self, job: JobDir) -> int:
        record = self.record(job)
        return record.created_at if record is not None else unix(self._recall(job).job.manifest.created_at)

    def _recall(self, job: JobDir) -> _Known:
        """What is known of a submitted job. Raises JobError where its manifest can't be read."""
        known = self._known.get(job.path)
        if known is None or known.version != _version(job, job.manifest_path):
            fresh = JobDir.open(job.path, job.store)
            known = _Known(_version(job, job.manifest_path) or "", fresh, StatusReader(fresh, clock=self._clock))
            self._known[job.path] = known
        return known

    # -- the states -------------------------------------------------------------------------------------------------

    def _read_unsubmitted(self, job: JobDir, record: BatchRecord) -> Batch:
        failure = read_failure(job)
        cancellation = job.cancellation
        if failure is not None:
            return _batch(job, record, BatchStatus.FAILED, failed_at=failure.at, errors=failure.errors)
        if cancellation is None:
            return _batch(job, record, BatchStatus.VALIDATING)
        at = unix(cancellation.at)
        if cancellation.is_expiry:
            return _batch(job, record, BatchStatus.EXPIRED, expired_at=at)
        ended_at = read_cancelled_at(job, cancellation)
        status = BatchStatus.CANCELLING if ended_at is None else BatchStatus.CANCELLED
        return _batch(job, record, status, cancelling_at=at, cancelled_at=ended_at)

    def _read_submitted(self, known: _Known, record: BatchRecord | None) -> Batch:
        job = known.job
        with known.lock:
            summary = _summary(known)
            if summary is not None:
                finished_at = unix(summary.finished_at)
                completed_at = max(finished_at, _written_at(job, job.success_path))
                times = {"finalizing_at": finished_at, "completed_at": completed_at}
                return self._with_outputs(job, record, BatchStatus.COMPLETED, times, counts_of(summary))
            status = known.reader.read()
        counts = _counts(status)
        cancellation = job.cancellation
        if cancellation is None:
            if status.num_committed == status.num_shards:
                times = {"finalizing_at": unix(last_commit_at(job))}
                return self._with_outputs(job, record, BatchStatus.FINALIZING, times, counts)
            return self._with_outputs(job, record, BatchStatus.IN_PROGRESS, {}, counts)
        at = unix(cancellation.at)
        if cancellation.is_expiry and _is_held(status):
            # Its workers still save what they have: until they stop, the error file would name rows that are finished.
            return self._with_outputs(job, record, BatchStatus.FINALIZING, {"finalizing_at": at}, counts)
        if cancellation.is_expiry:
            return self._with_outputs(job, record, BatchStatus.EXPIRED, {"expired_at": at}, _without_hope(counts))
        ended_at = read_cancelled_at(job, cancellation)
        if ended_at is None and record is None and not _is_held(status):
            # Nobody keeps a note of when its workers stopped.
            ended_at = at
        times = {"cancelling_at": at}
        if ended_at is None:
            return self._with_outputs(job, record, BatchStatus.CANCELLING, times, counts)
        times["cancelled_at"] = ended_at
        return self._with_outputs(job, record, BatchStatus.CANCELLED, times, _without_hope(counts))

    def _with_outputs(
        self, job: JobDir, record: BatchRecord | None, status: BatchStatus, times: dict[str, int], counts: BatchCounts
    ) -> Batch:
        created_at = record.created_at if record is not None else unix(job.manifest.created_at)
        in_progress_at = max(created_at, _written_at(job, job.manifest_path))
        models = job.manifest.models
        batch = _batch(
            job,
            record,
            status,
            **{name: max(at, in_progress_at) for name, at in times.items()},
            in_progress_at=in_progress_at,
            counts=counts,
            model=models[0] if len(models) == 1 else None,
        )
        if not status.has_outputs or self._are_outputs_over(batch):
            return batch
        has_output = counts.completed and not is_deleted(job, OutputKind.OUTPUT)
        has_errors = counts.failed and not is_deleted(job, OutputKind.ERRORS)
        return replace(
            batch,
            output_file_id=output_id(job.job_id, OutputKind.OUTPUT) if has_output else None,
            error_file_id=output_id(job.job_id, OutputKind.ERRORS) if has_errors else None,
        )

    def _are_outputs_over(self, batch: Batch) -> bool:
        return batch.outputs_expire_at is not None and batch.outputs_expire_at <= self._clock()


def _batch(job: JobDir, record: BatchRecord | None, status: BatchStatus, **values: Any) -> Batch:
    if record is None:
        return Batch(
            id=job.job_id,
            status=status,
            input_file_id=virtual_input_id(job.job_id),
            endpoint=_CLI_ENDPOINT,
            completion_window=_CLI_WINDOW,
            created_at=unix(job.manifest.created_at),
            **values,
        )
    return Batch(
        id=record.batch_id,
        status=status,
        input_file_id=record.input_file_id,
        endpoint=record.endpoint,
        completion_window=record.completion_window,
        created_at=record.created_at,
        expires_at=record.expires_at,
        metadata=record.metadata,
        output_expires_s=record.output_expires_s,
        **values,
    )


def _summary(known: _Known) -> Summary | None:
    """The summary of a complete job; None while it is not complete."""
    job = known.job
    version = _version(job, job.summary_path) if job.is_complete else None
    if version is None:
        return None
    if version != known.summary_version:
        known.summary = read_summary(job)
        known.summary_version = version
    return known.summary


def _counts(status: Status) -> BatchCounts:
    return BatchCounts(
        total=status.num_rows,
        completed=status.num_ok,
        failed=status.num_errors,
        input_tokens=status.prompt_tokens,
        cached_tokens=status.cached_tokens,
        output_tokens=status.completion_tokens,
    )


def _without_hope(counts: BatchCounts) -> BatchCounts:
    """The counts once nothing runs any more: what never ran has failed, and is in the error file."""
    return replace(counts, failed=counts.total - counts.completed)


def _is_held(status: Status) -> bool:
    return any(worker.shards and worker.health is not Health.GONE for worker in status.workers)


def _version(job: JobDir, path: Path) -> str | None:
    head = job.store.head(path)
    return None if head is None else head.version


def _written_at(job: JobDir, path: Path) -> int:
    """When a file was last written, in Unix seconds; 0 where it is gone."""
    head = job.store.head(path)
    return 0 if head is None else int(head.modified_s)
