"""What a batch of the API is on disk, beside the files of the job that it is, and what these files say of its state.

    JOB/batch.json              what was asked for, written before there is a job: its presence is the batch's existence
    JOB/batch/reading-1         that the input is being read; left by a server that died over it, for the next to count
    JOB/batch/failed.json       why the input became no job
    JOB/batch/expired.json      that the time was over, once: a job that is resumed or retried after that may end
    JOB/batch/cancelled.json    when nobody worked on the cancelled job any more

A batch without a manifest is `validating`: some server reads its input, or will. From then on it is an ordinary job,
whose state its own files tell. A job of the command line has no batch.json and is shown as a batch all the same.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from batcher.errors import JobError, StorageError
from batcher.jobdir.folder import Cancellation, JobDir
from batcher.jobdir.standing import USUAL, Standing
from batcher.manage.finish import Summary

_T = TypeVar("_T")


class BatchStatus(StrEnum):
    """The documented states."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself (`batcher retry` and `resume` can still open the job again)."""
        return self in _FINAL

    @property
    def has_outputs(self) -> bool:
        return self in _FINAL and self is not BatchStatus.FAILED


_FINAL = (BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED, BatchStatus.FAILED)


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch as it was asked for. Times are in Unix seconds; output files live for `output_expires_s` (None: ever).

    `standing` is the place of its job among others.
    """

    batch_id: str
    input_file_id: str
    filename: str
    endpoint: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: dict[str, str] | None = None
    output_expires_s: int | None = None
    standing: Standing = USUAL


@dataclass(frozen=True, slots=True)
class BatchError:
    """What is wrong with an input as a whole. `line` counts from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class BatchFailure:
    """That an input became no job, when, and why."""

    at: int
    errors: tuple[BatchError, ...]


@dataclass(frozen=True, slots=True)
class Note:
    """That something happened to a batch at a time (Unix seconds). `mark` is of the cancellation that it belongs to."""

    at: int
    mark: str = ""


@dataclass(frozen=True, slots=True)
class BatchCounts:
    """The rows of a batch and their tokens, so far."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch at a moment, with the fields of the API's object. Times are in Unix seconds, None: it did not happen."""

    id: str
    status: BatchStatus
    input_file_id: str
    endpoint: str
    completion_window: str
    created_at: int
    expires_at: int | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    counts: BatchCounts = field(default_factory=BatchCounts)
    errors: tuple[BatchError, ...] = ()
    metadata: dict[str, str] | None = None
    model: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    output_expires_s: int | None = None

    @property
    def ended_at(self) -> int | None:
        """When it came to its end."""
        return self.completed_at or self.expired_at or self.cancelled_at or self.failed_at

    @property
    def outputs_expire_at(self) -> int | None:
        """When its output files are gone; None: they stay."""
        ended_at = self.ended_at
        return None if ended_at is None or self.output_expires_s is None else ended_at + self.output_expires_s


#: Times that an input is begun, if each time the server dies.
MAX_READINGS = 5

_RECORD = TypeAdapter(BatchRecord)
_FAILURE = TypeAdapter(BatchFailure)
_NOTE = TypeAdapter(Note)


def failure_path(job: JobDir) -> Path:
    """Of why the input became no job."""
    return job.batch_dir / "failed.json"


def expired_path(job: JobDir) -> Path:
    """Of the note that the time was over once."""
    return job.batch_dir / "expired.json"


def cancelled_path(job: JobDir) -> Path:
    """Of the note that nobody works on the cancelled job any more."""
    return job.batch_dir / "cancelled.json"


def create_record(job: JobDir, record: BatchRecord) -> bool:
    """Make the batch exist. Returns False where its name is taken."""
    return job.store.create(job.batch_path, _RECORD.dump_json(record, indent=1))


def read_record(job: JobDir) -> BatchRecord | None:
    """What was asked for; None for a job that is of the command line, and for one that is being deleted."""
    return None if job.has(job.deleted_path) else _read(job, job.batch_path, _RECORD)


def check_record(job: JobDir) -> None:
    """Raise StorageError if the batch is not here any more: the guard of what is written for one that is no job."""
    if not job.has(job.batch_path) or job.has(job.deleted_path):
        raise StorageError(f"{job.path}: the batch was deleted; nothing is written")


def record_failure(job: JobDir, failure: BatchFailure) -> None:
    """Say why the input became no job. The first to say it wins."""
    job.store.create(failure_path(job), _FAILURE.dump_json(failure), guard=partial(check_record, job))


def read_failure(job: JobDir) -> BatchFailure | None:
    """Why the input became no job; None where it did, or where that is not known yet."""
    return _read(job, failure_path(job), _FAILURE)


def begin_reading(job: JobDir) -> bool:
    """Note that the input is being read. Returns False where `MAX_READINGS` servers have died over it."""
    return any(job.store.create(path, b"", guard=partial(check_record, job)) for path in _reading_paths(job))


def end_reading(job: JobDir) -> None:
    """Note that the reading has come to an end, be it a good one or not."""
    job.store.discard(_reading_paths(job))


def _reading_paths(job: JobDir) -> list[Path]:
    return [job.batch_dir / f"reading-{number}" for number in range(1, MAX_READINGS + 1)]


def note_expired(job: JobDir, at: int) -> None:
    """Remember that the time of a batch was over once."""
    job.store.create(expired_path(job), _NOTE.dump_json(Note(at)), guard=partial(check_record, job))


def is_expiry_noted(job: JobDir) -> bool:
    """Whether the time of a batch was over once."""
    return job.has(expired_path(job))


def note_cancelled(job: JobDir, cancellation: Cancellation, at: int) -> None:
    """Remember that nobody works on a cancelled job any more."""
    note = _NOTE.dump_json(Note(at, cancellation.at.isoformat()))
    job.store.replace(cancelled_path(job), note, guard=partial(check_record, job))


def read_cancelled_at(job: JobDir, cancellation: Cancellation) -> int | None:
    """When nobody worked any more on the job of this cancellation. One before a `resume` counts for nothing."""
    note = _read(job, cancelled_path(job), _NOTE)
    if note is None or note.mark != cancellation.at.isoformat():
        return None
    # Another machine's clock may be behind.
    return max(note.at, unix(cancellation.at))


def unix(at: datetime) -> int:
    """Whole Unix seconds, as the API gives times."""
    return int(at.timestamp())


def counts_of(summary: Summary) -> BatchCounts:
    """The counts of a complete job."""
    return BatchCounts(
        total=summary.num_rows,
        completed=summary.num_ok,
        failed=summary.num_errors,
        input_tokens=summary.prompt_tokens,
        cached_tokens=summary.cached_tokens,
        output_tokens=summary.completion_tokens,
    )


def _read(job: JobDir, path: Path, adapter: TypeAdapter[_T]) -> _T | None:
    try:
        return adapter.validate_json(job.store.read(path))
    except FileNotFoundError:
        return None
    except ValidationError as exc:
        raise JobError(f"{path}: damaged ({exc.errors()[0]['msg']}); restore it, or delete the batch") from exc
