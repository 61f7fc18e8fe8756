"""The batches of a jobs root, as the API asks for them. No HTTP here.

A batch is an ordinary job in the jobs root, with a record of what was asked for beside it (`records`). So every job is
one, whoever submitted it, and every command of the command line works on those that the API made. `keeper` carries them
on.
"""

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from batcher.errors import BatcherError, JobError, StorageError
from batcher.ids import ID_PATTERN
from batcher.jobdir.folder import JobDir
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.root import locate_job
from batcher.manage.cancel import CancelResult, cancel
from batcher.server.batches.outputs import (
    OutputKind,
    delete_output,
    make_outputs,
    output_id,
    output_path,
    parse_output_id,
    read_outputs,
)
from batcher.server.batches.records import (
    Batch,
    BatchRecord,
    BatchStatus,
    check_record,
    create_record,
)
from batcher.server.batches.requests import (
    BatchEndedError,
    BatchRequestError,
    NoSuchThingError,
    check_endpoint,
    check_metadata,
    standing_of,
    window_s,
)
from batcher.server.batches.states import BatchReader
from batcher.server.batches.uploads import BATCH_PURPOSE, FileStore, check_expires_after

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchPage:
    """Some batches, the newest first, and whether older ones follow."""

    batches: tuple[Batch, ...]
    has_more: bool


@dataclass(frozen=True, slots=True)
class OutputFile:
    """An output file of a batch, made. Times are in Unix seconds."""

    id: str
    num_bytes: int
    created_at: int
    filename: str
    path: Path
    expires_at: int | None


class Batches:
    """The batches under `root`. For all threads; everything here touches the disk.

    `wake` is called when there is something new to carry on. `clock` gives Unix seconds.
    """

    def __init__(
        self,
        root: Path,
        files: FileStore,
        *,
        reader: BatchReader,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._root = root
        self._files = files
        self._reader = reader
        self._wake = wake
        self._clock = clock

    # -- what clients ask -------------------------------------------------------------------------------------------

    def create(
        self,
        *,
        input_file_id: str,
        endpoint: str,
        completion_window: str,
        metadata: Mapping[str, str] | None = None,
        output_expires_s: int | None = None,
        priority: int | str | None = None,
        finish_by: str | None = None,
    ) -> Batch:
        """Make a batch, which is `validating`. Raises BatchRequestError, InputError and StorageError."""
        seconds = window_s(completion_window)
        check_expires_after(output_expires_s)
        check_metadata(metadata or {})
        check_endpoint(endpoint)
        standing = standing_of(priority, finish_by, metadata or {})
        stored = self._files.get(input_file_id)
        if stored is None:
            raise NoSuchThingError(f"No such file: {input_file_id[:80]!r}; upload it first", param="input_file_id")
        if stored.purpose != BATCH_PURPOSE:
            raise BatchRequestError(
                f"file {stored.id} has the purpose {stored.purpose!r}; upload it with {BATCH_PURPOSE!r}",
                param="input_file_id",
            )
        now = int(self._clock())
        job = JobDir(self._root / f"batch_{secrets.token_hex(12)}")
        job.store.make_folder(job.path)
        created = create_record(
            job,
            BatchRecord(
                batch_id=job.job_id,
                input_file_id=stored.id,
                filename=stored.filename,
                endpoint=endpoint,
                completion_window=completion_window,
                created_at=now,
                expires_at=now + seconds,
                metadata=dict(metadata) if metadata is not None else None,
                output_expires_s=output_expires_s,
                standing=standing,
            ),
        )
        assert created, "ids are drawn at random"
        self._wake()
        batch = self._reader.read(job)
        if batch is None:
            raise StorageError(f"{job.path}: the batch was deleted at this moment")
        return batch

    def get(self, batch_id: str) -> Batch | None:
        """The batch with this id; None where there is none. Raises JobError and StorageError for a damaged one."""
        job = self._find(batch_id)
        return None if job is None else self._reader.read(job)

    def list_page(self, *, after: str | None = None, limit: int = 20) -> BatchPage:
        """At most `limit` batches, the newest first, of those behind `after`. Raises BatchRequestError.

        One that is damaged is left out.
        """
        jobs = [job for _, job in self._reader.newest_first()]
        if after is not None:
            ids = [job.job_id for job in jobs]
            if after not in ids:
                raise NoSuchThingError(f"No such batch: {after[:80]!r}; use the id of one", param="after")
            jobs = jobs[ids.index(after) + 1 :]
        found = [batch for job in jobs[:limit] if (batch := self._read_if_sound(job)) is not None]
        return BatchPage(tuple(found), len(jobs) > limit)

    def cancel(self, batch_id: str) -> Batch | None:
        """Cancel a batch: its workers stop at their next row. Returns it as it is then; None where there is none.

        Raises BatchEndedError where it has ended, BatcherError for a damaged one.
        """
        job = self._find(batch_id)
        batch = None if job is None else self._reader.read(job)
        if job is None or batch is None:
            return None
        if batch.status is BatchStatus.CANCELLING:
            return batch
        if batch.status.is_final:
            raise BatchEndedError(f"batch {batch_id} is {batch.status.value} already; it can't be cancelled any more")
        if job.exists():
            if cancel(job) is CancelResult.TOO_LATE:
                raise BatchEndedError(f"batch {batch_id} is completed already; it can't be cancelled any more")
        else:
            # It may become a job at this moment. That is cancelled from its beginning.
            try:
                job.cancel(guard=partial(check_record, job))
            except StorageError:
                # A submit begins with clearing the temporary files that a killed one left. This one it did not leave.
                job.cancel(guard=partial(check_record, job))
        self._wake()
        return self._reader.read(job)

    # -- its files ----------------------------------------------------------------------------------------------------

    def is_input_needed(self, file_id: str) -> bool:
        """Whether a batch that is not read yet needs this file."""
        return any(
            record.input_file_id == file_id and self._reader.is_unread(job)
            for _, job in self._reader.newest_first()
            if (record := self._reader.record(job)) is not None
        )

    def output_file(self, file_id: str) -> OutputFile | None:
        """The output file with this id. None where there is none (yet).

        The first call after a change of the results makes the files of the job, which reads all of these; two calls at
        once may both do so.
        """
        found = self._find_output(file_id)
        if found is None:
            return None
        job, kind, batch = found
        if file_id not in (batch.output_file_id, batch.error_file_id):
            return None
        outputs = make_outputs(job)
        num_bytes = outputs.num_bytes(kind)
        return None if num_bytes is None else _output_file(job, kind, batch, outputs.stamp, num_bytes)

    def output_files(self) -> list[OutputFile]:
        """The output files that somebody has asked for, as they were made then."""
        found = []
        for _, job in self._reader.newest_first():
            outputs = read_outputs(job)
            batch = self._read_if_sound(job) if outputs is not None else None
            if outputs is None or batch is None:
                continue
            for kind, shown in ((OutputKind.OUTPUT, batch.output_file_id), (OutputKind.ERRORS, batch.error_file_id)):
                num_bytes = outputs.num_bytes(kind)
                if shown is not None and num_bytes is not None:
                    found.append(_output_file(job, kind, batch, outputs.stamp, num_bytes))
        return found

    def open_output(self, file_id: str) -> tuple[OutputFile, BinaryIO] | None:
        """An output file and its content, to be closed by the caller; None where there is none."""
        for _ in range(3):
            file = self.output_file(file_id)
            if file is None:
                return None
            try:
                return file, LOCAL.open(file.path)
            except FileNotFoundError:
                continue  # Another server has made a newer one at this moment.
        raise StorageError(f"{file_id}: its batch changes all the time; try again when it is at rest")

    def delete_output(self, file_id: str) -> bool:
        """Delete an output file; the results of the job stay. Returns False where there is none."""
        found = self._find_output(file_id)
        if found is None or file_id not in (found[2].output_file_id, found[2].error_file_id):
            return False
        delete_output(found[0], found[1])
        return True

    def _find(self, job_id: str) -> JobDir | None:
        if not ID_PATTERN.match(job_id):
            return None
        try:
            return JobDir(locate_job(self._root, job_id))
        except JobError:
            return None  # A link that leads out of the root.

    def _find_output(self, file_id: str) -> tuple[JobDir, OutputKind, Batch] | None:
        parsed = parse_output_id(file_id)
        job = self._find(parsed[0]) if parsed is not None else None
        batch = self._reader.read(job) if job is not None else None
        return None if parsed is None or job is None or batch is None else (job, parsed[1], batch)

    def _read_if_sound(self, job: JobDir) -> Batch | None:
        try:
            return self._reader.read(job)
        except BatcherError as exc:
            logger.warning("batch %s is left out: %s", job.job_id, exc)
            return None


def _output_file(job: JobDir, kind: OutputKind, batch: Batch, stamp: str, num_bytes: int) -> OutputFile:
    return OutputFile(
        id=output_id(job.job_id, kind),
        num_bytes=num_bytes,
        created_at=batch.ended_at or batch.created_at,
        filename=f"{job.job_id}_{kind.value}.jsonl",
        path=output_path(job, kind, stamp=stamp),
        expires_at=batch.outputs_expire_at,
    )
