"""What carries batches on: one thread, beside the event loop, and those that read inputs (`intakes`). The routes only
write down what is wanted.

Nothing is kept in memory that matters: several servers may share a jobs root, and any of them goes on with what another
left.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from batcher.errors import BatcherError, BrokerError
from batcher.jobdir.folder import Cancellation, JobDir
from batcher.jobdir.sending import Send
from batcher.manage.finish import finalize
from batcher.server.batches.intake import is_large_input, make_job
from batcher.server.batches.intakes import Intakes, Start, start_thread
from batcher.server.batches.records import (
    BatchRecord,
    BatchStatus,
    check_record,
    is_expiry_noted,
    note_cancelled,
    note_expired,
)
from batcher.server.batches.states import BatchReader
from batcher.server.batches.uploads import FileStore
from batcher.submission.readers.bounds import NO_BOUNDS, Bounds

logger = logging.getLogger(__name__)

#: Seconds between two rounds where nobody asks for one.
ROUND_INTERVAL_S = 1.0

#: Seconds. Files whose time is over are gone for clients at once; this is how often their space is freed.
_FILE_SWEEP_INTERVAL_S = 3600.0
#: Seconds after which a batch that has ended is looked at again: `retry` and `resume` can open it.
_ENDED_INTERVAL_S = 10.0


class BatchKeeper:
    """Makes a round over all batches every second, and after each `wake`, while the `with` block lasts.

    `send` has a job worked on, from any thread; where it raises BrokerError, it is called again. `known_models`
    gives the models that rows may name, None: any; `models_reason`: one of them may reason. `bounds` is of inputs; its
    checkpoint is not used. `clock` gives Unix seconds.
    """

    def __init__(
        self,
        reader: BatchReader,
        files: FileStore,
        *,
        send: Send,
        known_models: Callable[[], frozenset[str] | None],
        models_reason: bool = False,
        bounds: Bounds = NO_BOUNDS,
        clock: Callable[[], float] = time.time,
        start: Start = start_thread,
    ) -> None:
        self._reader = reader
        self._files = files
        self._send = send
        self._known_models = known_models
        self._models_reason = models_reason
        self._clock = clock
        self._is_awake = threading.Event()
        self._is_stopping = threading.Event()
        self._bounds = bounds
        self._intakes = Intakes(is_stopping=self._is_stopping.is_set, on_end=self._on_read, start=start)
        self._thread = threading.Thread(target=self._run, name="batches")
        #: Jobs that the broker has yet to take.
        self._unsent: set[Path] = set()
        #: When to look again at a batch that has ended.
        self._next_look: dict[Path, float] = {}
        self._next_file_sweep = clock()
        self._is_first_round = True

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()
        self._intakes.join()

    def wake(self) -> None:
        """Have a round made at once. From any thread."""
        self._is_awake.set()

    def stop(self) -> None:
        """Make no more rounds. An input that is being read is left; another server, or the next start, begins it anew.

        From any thread; does not wait.
        """
        self._is_stopping.set()
        self.wake()

    def _run(self) -> None:
        while not self._is_stopping.is_set():
            try:
                self.make_round()
            except Exception:
                # A bug, but one that must not end the batches of everybody.
                logger.exception("batches: unforeseen error; they are tried again")
            if not self._is_stopping.is_set():
                self._is_awake.wait(ROUND_INTERVAL_S)

    def make_round(self) -> None:
        """End the batches that are over, then begin to read the inputs that wait, the oldest first.

        Never raises BatcherError: what fails for one batch is logged and tried again in the next round.
        """
        self._is_awake.clear()
        try:
            self._sweep_files()
            jobs = [job for _, job in reversed(self._reader.newest_first()) if not self._is_at_rest(job)]
        except BatcherError as exc:
            logger.warning("the batches are not looked at: %s", exc)
            return
        self._do(self._advance, jobs)
        self._is_first_round = False
        self._do(self._begin_input, jobs)

    def _do(self, step: Callable[[JobDir], object], jobs: list[JobDir]) -> None:
        for job in jobs:
            if self._is_stopping.is_set():
                return
            try:
                step(job)
            except (BatcherError, OSError) as exc:
                logger.warning("batch %s: %s", job.job_id, exc)

    def _advance(self, job: JobDir) -> None:
        """Do what is due for a batch: finish it, expire it, note that its workers have stopped, send it."""
        now = self._clock()
        record = self._reader.record(job)
        if record is None:
            return
        is_expired = now >= record.expires_at and not is_expiry_noted(job)
        if job.exists() and finalize(job) is not None:
            if is_expired:
                # So that a retry after this has all the time it needs.
                note_expired(job, int(now))
            self._rest(job)
            return
        cancellation = job.cancellation
        guard = partial(check_record, job)
        if cancellation is None and is_expired:
            batch = self._reader.read(job)
            if batch is None or batch.status.is_final:
                return
            # The mark before the note: a note alone would keep the batch from ever ending.
            job.cancel(is_expiry=True, guard=guard)
            cancellation = job.cancellation
        if cancellation is not None and cancellation.is_expiry:
            note_expired(job, int(now))
            self._rest(job)
        elif not job.exists():
            self._rest_if_over(job)
        elif cancellation is not None:
            self._end_cancelled(job, cancellation, is_expired=is_expired)
        elif self._is_unsent(job) and not job.is_paused:
            self._send_job(job)

    def _begin_input(self, job: JobDir) -> None:
        """Have the input of a batch read, where there is room for it."""
        if not self._intakes.has_room:
            return
        record = self._reader.record(job)
        if record is None or self._intakes.is_reading(job) or not self._reader.is_unread(job):
            return
        read = partial(self._do, partial(self._read_input, record), [job])
        # One that was cancelled has nothing to read any more.
        is_large = self._intakes.has_grown(job) or is_large_input(self._files, record)
        self._intakes.begin(job, read, is_large=is_large and not job.is_cancelled)

    def _read_input(self, record: BatchRecord, job: JobDir) -> None:
        with self._intakes.turn(job) as checkpoint:
            is_new = make_job(
                job,
                record,
                files=self._files,
                known_models=self._known_models(),
                bounds=replace(self._bounds, checkpoint=checkpoint),
                clock=self._clock,
                models_reason=self._models_reason,
            )
        # Not in its turn: the broker may be away.
        if is_new and finalize(job) is None and not job.is_halted:
            self._send_job(job)

    def _on_read(self, job: JobDir) -> None:
        """Have another input read in place of this one. One that is not done waits for the next round."""

        def wake_if_done(job: JobDir) -> None:
            if not self._reader.is_unread(job):
                self.wake()

        self._do(wake_if_done, [job])

    def _send_job(self, job: JobDir) -> None:
        self._unsent.add(job.path)
        try:
            self._send(job, job.pending_shards())
        except BrokerError as exc:
            logger.warning("batch %s waits for the broker: %s", job.job_id, exc)
            return
        self._unsent.discard(job.path)

    def _rest(self, job: JobDir) -> None:
        """Look at a batch that has ended only now and then."""
        self._unsent.discard(job.path)
        self._next_look[job.path] = self._clock() + _ENDED_INTERVAL_S

    def _end_cancelled(self, job: JobDir, cancellation: Cancellation, *, is_expired: bool) -> None:
        """Note that nobody works on a cancelled job any more, once it is so."""
        now = int(self._clock())
        batch = self._reader.read(job)
        if batch is not None and batch.status is BatchStatus.CANCELLING and not self._reader.is_held(job):
            note_cancelled(job, cancellation, now)
        elif batch is None or batch.status.is_final:
            if batch is not None and is_expired:
                note_expired(job, now)
            self._rest(job)

    def _is_unsent(self, job: JobDir) -> bool:
        # In the first round also one that a killed server may have left unsent: a second message does no harm.
        return job.path in self._unsent or (self._is_first_round and job.first_claim_at() is None)

    def _rest_if_over(self, job: JobDir) -> None:
        """Look only now and then at a batch that became no job."""
        batch = self._reader.read(job)
        if batch is None or batch.status.is_final:
            self._rest(job)

    def _is_at_rest(self, job: JobDir) -> bool:
        """Whether it is not yet time to look at a batch that has ended: a round must not cost what all batches do."""
        return self._next_look.get(job.path, 0.0) > self._clock()

    def _sweep_files(self) -> None:
        if self._clock() >= self._next_file_sweep:
            self._next_file_sweep = self._clock() + _FILE_SWEEP_INTERVAL_S
            self._files.sweep()
