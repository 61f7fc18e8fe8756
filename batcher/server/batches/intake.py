"""The input of a batch becomes a job: read, validated and split by the planner, or refused as a whole.

A bad line becomes an error row, which comes out in the error file. A bad file fails the batch: no line of it is JSON,
an id is used twice, it is gone.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import BinaryIO

from pydantic_core import from_json

from batcher.errors import InputError, JobBusyError, JobError, RepeatedIdError, StorageError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.lock import exclusive
from batcher.openai.bodies import has_too_many_containers
from batcher.server.batches.records import (
    MAX_READINGS,
    BatchError,
    BatchFailure,
    BatchRecord,
    begin_reading,
    end_reading,
    note_cancelled,
    read_failure,
    record_failure,
)
from batcher.server.batches.uploads import FileStore
from batcher.submission.planner import submit
from batcher.submission.readers.bounds import Bounds
from batcher.submission.readers.files import LineBatch, NamedStream, read_batches
from batcher.submission.readers.streams import is_zstd
from batcher.submission.source import SubmitOptions
from batcher.types import SamplingParams

logger = logging.getLogger(__name__)

#: An input of more bytes, as it was uploaded, is large.
SMALL_BYTES = 4 << 20

#: How many lines that are no JSON the failure of a file that has no other lists.
_NUM_LISTED = 10

_BUSY = "another server reads the input of this batch"


class ReadingInterruptedError(Exception):
    """The reading ends without a job: the batch was cancelled, the server stops, or others go first."""


def make_job(
    job: JobDir,
    record: BatchRecord,
    *,
    files: FileStore,
    known_models: frozenset[str] | None,
    bounds: Bounds,
    clock: Callable[[], float],
    models_reason: bool = False,
) -> bool:
    """Read the input of a batch that has no job yet. Returns whether this call made one.

    Of several servers at once one does it. A batch that can't become a job has its failure recorded; a cancelled one,
    that nobody reads it any more. Nothing changes where `bounds.checkpoint` raises `ReadingInterruptedError`, as it may
    before each block of the input; the cancellation is looked for there, too. Raises StorageError where a later call
    may do better, and for a batch that was deleted. `models_reason` as in `SubmitOptions`: an answer in a batch is what
    it would be live.
    """
    try:
        job.store.make_folder(job.batch_dir, parents=False)
        with exclusive(JobDir(job.batch_dir, job.store), patience_s=0, busy=_BUSY):
            if job.exists() or read_failure(job) is not None:
                return False
            if not job.is_cancelled:
                failure = _read(job, record, files, known_models, bounds, clock, models_reason)
                if failure is not None and not job.exists():
                    record_failure(job, failure)
            if not job.exists() and (cancellation := job.cancellation) is not None and not cancellation.is_expiry:
                note_cancelled(job, cancellation, int(clock()))
            return job.exists()
    except JobBusyError:
        return False


def is_large_input(files: FileStore, record: BatchRecord) -> bool:
    """Whether the input of a batch takes long to read, or may take much memory."""
    stored = files.get(record.input_file_id)
    if stored is None or stored.num_bytes > SMALL_BYTES:
        return stored is not None
    with _open(files, stored.id) as file:
        return is_zstd(file.read(4))


def _read(
    job: JobDir,
    record: BatchRecord,
    files: FileStore,
    known_models: frozenset[str] | None,
    bounds: Bounds,
    clock: Callable[[], float],
    models_reason: bool,
) -> BatchFailure | None:
    """Make the job, unless servers have died over its input again and again.

    Returns why it can't be made; None where it was, or where the reading was interrupted.
    """

    def checkpoint() -> None:
        bounds.checkpoint()
        if job.is_cancelled:
            raise ReadingInterruptedError

    options = SubmitOptions(
        default_model=None,
        params=SamplingParams(),
        known_models=known_models,
        models_reason=models_reason,
        endpoint=record.endpoint,
        unpack_limits=bounds.limits,
        max_line_bytes=bounds.max_line_bytes,
        standing=record.standing,
    )
    if not begin_reading(job):
        said = f"the server died {MAX_READINGS} times while it read this input; split it, and make batches of the parts"
        return BatchFailure(int(clock()), (BatchError("internal_error", said),))
    try:
        errors = _find_no_json(files, record, replace(bounds, checkpoint=checkpoint))
        if not errors:
            with _open(files, record.input_file_id) as file:
                submit(job, [NamedStream(file, record.filename)], options, checkpoint=checkpoint)
            return None
    except ReadingInterruptedError:
        return None
    except RepeatedIdError as exc:
        errors = [BatchError("duplicate_custom_id", str(exc), line=exc.number, param="custom_id")]
    except _InputGoneError as exc:
        errors = [BatchError("invalid_input_file", str(exc), param="input_file_id")]
    except InputError as exc:
        errors = [BatchError("invalid_input_file", str(exc))]
    except (JobBusyError, StorageError):
        raise
    except JobError as exc:
        # It names folders of this machine, which are nothing for a client.
        logger.warning("batch %s: %s", job.job_id, exc)
        errors = [BatchError("internal_error", "the server could not make a job of the input; its log says why")]
    except Exception:
        # One such file must not keep all others waiting.
        logger.exception("batch %s", job.job_id)
        errors = [BatchError("internal_error", "a bug of Batcher; the traceback is in the server's log")]
    finally:
        end_reading(job)
    return BatchFailure(int(clock()), tuple(errors))


class _InputGoneError(InputError):
    """The input file was deleted, or its time was over, before it was read."""


def _open(files: FileStore, file_id: str) -> BinaryIO:
    file = files.open(file_id)
    if file is None:
        raise _InputGoneError(f"input file {file_id} is gone; upload it again")
    return file


def _find_no_json(files: FileStore, record: BatchRecord, bounds: Bounds) -> list[BatchError]:
    """The first lines of a file whose beginning has not one JSON object: it is something else, not bad in some lines.

    Looks at as many lines as are read at once. Raises InputError for a file without lines, or with none to read.
    """
    with _open(files, record.input_file_id) as file:
        if not file.read(1):
            return [BatchError("empty_file", f"{record.filename}: is empty; write a request on each line")]
        file.seek(0)
        batch = next(read_batches([NamedStream(file, record.filename)], bounds=bounds))
    assert isinstance(batch, LineBatch), "Parquet is refused as a stream"
    if any(line is None or _is_object(line) for line in batch.lines):
        return []
    return [
        BatchError(
            "invalid_json_line",
            f"{batch.origin.source(position)}: not a JSON object; write one on each line",
            line=batch.origin.numbers[position],
        )
        for position in range(min(_NUM_LISTED, len(batch.lines)))
    ]


def _is_object(line: bytes) -> bool:
    if has_too_many_containers(line):
        return True  # As far as one looks.
    try:
        return isinstance(from_json(line), dict)
    except ValueError:
        return False
