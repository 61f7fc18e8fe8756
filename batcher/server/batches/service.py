"""The batches of a jobs root: what the API asks of them, and what makes them go on. No HTTP here.

A batch is an ordinary job in the jobs root, with a record of what was asked for beside it (`batch_records`). So every
job is one, whoever submitted it, and every command of the command line works on those that the API made. Nothing is
kept in memory that matters: several servers may share a root, and any of them takes up what another left.
"""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from batcher.errors import BatcherError, BrokerError, InputError, JobError, StorageError
from batcher.ids import ID_PATTERN
from batcher.jobdir import store
from batcher.jobdir.folder import JobDir
from batcher.jobdir.root import locate_job
from batcher.manage.finish import finalize
from batcher.openai.parameters import CHAT_URL, COMPLETIONS_URL
from batcher.server.batches.intake import take_up
from batcher.server.batches.outputs import (
    OutputKind,
    delete_output,
    make_outputs,
    output_id,
    parse_output_id,
    read_outputs,
)
from batcher.server.batches.records import (
    Batch,
    BatchRecord,
    BatchStatus,
    check_record,
    create_record,
    note_cancelled,
    note_expired,
)
from batcher.server.batches.states import BatchReader
from batcher.server.batches.uploads import BATCH_PURPOSE, FileStore, check_expires_after

logger = logging.getLogger(__name__)

#: What a request of a batch may be sent to.
ENDPOINTS = (COMPLETIONS_URL, CHAT_URL)

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512
MAX_WINDOW_DAYS = 365

_WINDOW = re.compile(r"^([1-9][0-9]{0,5})([mhd])\Z")
_WINDOW_UNITS_S = {"m": 60, "h": 3600, "d": 86_400}

#: Seconds. Files whose time is over are gone for clients at once; this is how often their space is freed.
_FILE_SWEEP_INTERVAL_S = 3600.0
#: Seconds after which a batch that has ended is looked at again: `retry` and `resume` can open it.
_LOOK_AGAIN_S = 10.0


class BatchRequestError(InputError):
    """What was asked of batches can't be done as it was asked; `param` names what is wrong with it."""

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class NoSuchThingError(BatchRequestError):
    """It names a file or batch that there is none of."""


class BatchEndedError(JobError):
    """A batch that has ended can't be cancelled."""


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


def window_s(completion_window: str) -> int:
    """The seconds of a completion window: `24h`, or another number of minutes, hours or days. Raises BatchRequestError.

    OpenAI documents `24h` alone.
    """
    match = _WINDOW.match(completion_window)
    seconds = int(match[1]) * _WINDOW_UNITS_S[match[2]] if match else 0
    if not 0 < seconds <= MAX_WINDOW_DAYS * 86_400:
        raise BatchRequestError(
            f"completion_window is {completion_window[:60]!r}; use '24h', or minutes, hours or days as in '90m', '2h', "
            f"'7d', at most {MAX_WINDOW_DAYS} days",
            param="completion_window",
        )
    return seconds


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raise BatchRequestError for metadata outside the documented bounds."""
    if len(metadata) > MAX_METADATA_PAIRS:
        raise BatchRequestError(f"metadata has {len(metadata)} pairs; at most {MAX_METADATA_PAIRS}", param="metadata")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY_CHARS:
            message = f"metadata key {key[:20]!r}... has {len(key)} characters; at most {MAX_METADATA_KEY_CHARS}"
            raise BatchRequestError(message, param="metadata")
        if len(value) > MAX_METADATA_VALUE_CHARS:
            message = f"metadata.{key} has {len(value)} characters; at most {MAX_METADATA_VALUE_CHARS}"
            raise BatchRequestError(message, param="metadata")


class Batches:
    """The batches under `root`. For all threads; everything here touches the disk.

    `send` has a job worked on (it enqueues its shards; may raise BrokerError, then it is called again). `known_models`
    gives the models that rows may name, None: any. `clock` gives Unix seconds. `tick` is to be called about once a
    second by one thread, and as soon as `woken` is set; `stop` makes it return soon.
    """

    def __init__(
        self,
        root: Path,
        files: FileStore,
        *,
        send: Callable[[JobDir], None],
        known_models: Callable[[], frozenset[str] | None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.woken = threading.Event()
        self._root = root
        self._files = files
        self._send = send
        self._known_models = known_models
        self._clock = clock
        self._reader = BatchReader(root, clock=clock)
        self._unsent: dict[Path, JobDir] = {}
        #: When to look again at a batch that has ended.
        self._settled: dict[Path, float] = {}
        self._next_file_sweep = clock()
        self._is_first_round = True
        self._is_stopping = threading.Event()
        #: One thread makes the files of a job; the others wait for it.
        self._making: dict[Path, threading.Lock] = {}

    # -- what clients ask -------------------------------------------------------------------------------------------

    def create(
        self,
        *,
        input_file_id: str,
        endpoint: str,
        completion_window: str,
        metadata: Mapping[str, str] | None = None,
        output_expires_s: int | None = None,
    ) -> Batch:
        """Make a batch, which is `validating`. Raises BatchRequestError, InputError and StorageError."""
        seconds = window_s(completion_window)
        check_expires_after(output_expires_s)
        check_metadata(metadata or {})
        if endpoint not in ENDPOINTS:
            raise BatchRequestError(
                f"endpoint is {endpoint[:60]!r}; use one of: {', '.join(ENDPOINTS)}", param="endpoint"
            )
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
            ),
        )
        assert created, "ids are drawn at random"
        store.flush_folder(self._root)
        self.woken.set()
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
            # As `batcher cancel` does: workers may complete it at this moment, and that takes the mark back.
            is_complete = finalize(job) is not None
            if not is_complete:
                job.cancel()
                is_complete = finalize(job) is not None
            if is_complete:
                raise BatchEndedError(f"batch {batch_id} is completed already; it can't be cancelled any more")
        else:
            # It may become a job at this moment. That is cancelled from its beginning.
            try:
                job.cancel(guard=partial(check_record, job))
            except StorageError:
                # A submit begins with clearing the temporary files that a killed one left. This one it did not leave.
                job.cancel(guard=partial(check_record, job))
        self.woken.set()
        return self._reader.read(job)

    # -- its files ----------------------------------------------------------------------------------------------------

    def is_input_needed(self, file_id: str) -> bool:
        """Whether a batch that is not read yet needs this file."""
        return any(
            record is not None and record.input_file_id == file_id and self._is_unread(job)
            for _, job in self._reader.newest_first()
            if (record := self._reader.record(job)) is not None
        )

    def output_file(self, file_id: str) -> OutputFile | None:
        """The output file with this id, made if need be, which reads all results. None where there is none (yet)."""
        found = self._find_output(file_id)
        if found is None:
            return None
        job, kind, batch = found
        if file_id not in (batch.output_file_id, batch.error_file_id):
            return None
        with self._making.setdefault(job.path, threading.Lock()):
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
                return file, file.path.open("rb")
            except FileNotFoundError:
                continue  # Another server has made a newer one at this moment.
            except OSError as exc:
                raise StorageError(f"{file.path}: cannot read: {store.reason(exc)}") from exc
        raise StorageError(f"{file_id}: its batch changes all the time; try again when it is at rest")

    def delete_output(self, file_id: str) -> bool:
        """Delete an output file; the results of the job stay. Returns False where there is none."""
        found = self._find_output(file_id)
        if found is None or file_id not in (found[2].output_file_id, found[2].error_file_id):
            return False
        delete_output(found[0], found[1])
        return True

    # -- what makes them go on ----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Make a `tick` that reads an input leave it; another server, or the next start, begins it anew."""
        self._is_stopping.set()
        self.woken.set()

    def tick(self) -> None:
        """One round: end what is over, then read the inputs that wait, the oldest first. May take as long as these.

        Never raises BatcherError: what fails for one batch is logged and tried again in the next round.
        """
        self.woken.clear()
        try:
            self._sweep_files()
            jobs = [job for _, job in reversed(self._reader.newest_first())]
        except BatcherError as exc:
            logger.warning("the batches are not looked at: %s", exc)
            return
        for action in (self._look, self._take_up):
            for job in jobs:
                if self._is_stopping.is_set():
                    return
                try:
                    action(job)
                except (BatcherError, OSError) as exc:
                    logger.warning("batch %s: %s", job.job_id, exc)
            self._is_first_round = False

    def _look(self, job: JobDir) -> None:
        """Do what is due for a batch: finish it, expire it, note that its workers have stopped, send it."""
        now = self._clock()
        record = self._reader.record(job)
        if record is None or self._settled.get(job.path, 0.0) > now:
            return
        is_over = now >= record.expires_at and not job.batch_expired_path.exists()
        if job.exists() and finalize(job) is not None:
            if is_over:
                # So that a retry after this has all the time it needs.
                note_expired(job, int(now))
            self._settle(job)
            return
        cancellation = job.cancellation
        guard = partial(check_record, job)
        if cancellation is None and is_over:
            batch = self._reader.read(job)
            if batch is None or batch.status.is_final:
                return
            # The mark before the note: a note alone would keep the batch from ever ending.
            job.cancel(is_expiry=True, guard=guard)
            cancellation = job.cancellation
        if cancellation is not None and cancellation.is_expiry:
            note_expired(job, int(now))
            self._settle(job)
        elif cancellation is not None and job.exists():
            batch = self._reader.read(job)
            if batch is not None and batch.status is BatchStatus.CANCELLING and not self._reader.is_held(job):
                note_cancelled(job, cancellation, int(now))
            elif batch is None or batch.status.is_final:
                if batch is not None and is_over:
                    note_expired(job, int(now))
                self._settle(job)
        elif job.path in self._unsent or (self._is_first_round and job.exists() and job.first_claim_at() is None):
            # In the first round also one that a killed server may have left unsent: a second message does no harm.
            self._send_job(job)

    def _take_up(self, job: JobDir) -> None:
        record = self._reader.record(job)
        if record is None or not self._is_unread(job):
            return
        is_new = take_up(
            job,
            record,
            files=self._files,
            known_models=self._known_models(),
            is_stopping=self._is_stopping.is_set,
            clock=self._clock,
        )
        if is_new and finalize(job) is None and not job.is_cancelled:
            self._send_job(job)

    def _send_job(self, job: JobDir) -> None:
        self._unsent[job.path] = job
        try:
            self._send(job)
        except BrokerError as exc:
            logger.warning("batch %s waits for the broker: %s", job.job_id, exc)
            return
        self._unsent.pop(job.path, None)

    def _is_unread(self, job: JobDir) -> bool:
        """Whether somebody has yet to read the input, or to say that nobody does."""
        batch = None if job.exists() else self._reader.read(job)
        return batch is not None and batch.status in (BatchStatus.VALIDATING, BatchStatus.CANCELLING)

    def _settle(self, job: JobDir) -> None:
        self._unsent.pop(job.path, None)
        self._settled[job.path] = self._clock() + _LOOK_AGAIN_S

    def _sweep_files(self) -> None:
        if self._clock() >= self._next_file_sweep:
            self._next_file_sweep = self._clock() + _FILE_SWEEP_INTERVAL_S
            self._files.sweep()

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
        path=job.batch_file_path(kind.value, stamp=stamp),
        expires_at=batch.outputs_expire_at,
    )
