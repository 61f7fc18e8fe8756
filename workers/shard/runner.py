"""One shard, from claim to commit.

Step by step: claim the lease and an attempt number, read what earlier attempts left in chunks, have the engine complete
the other rows, save finished rows as a chunk every few seconds, and in the end create the part. Whatever happens in
between, finished rows are saved; only the creation of the part makes them the shard's result, and it happens once.

Rows that were in flight when a worker crashed come last, each alone; those that crashed it alone are not computed
again (see `jobdir.verdict`).

The runner is one thread that waits on a queue. The engine's thread fills it; all else (saving, renewing the lease,
noticing a stop) happens between two results.
"""

import itertools
import logging
import queue
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.tables import take_rows
from batcher.broker.leases import Lease, new_lease
from batcher.errors import (
    BatcherError,
    BrokerError,
    EngineError,
    JobError,
    ShardGivenUpError,
    StorageError,
)
from batcher.ids import completion_id
from batcher.jobdir import attempts
from batcher.jobdir.attempts import Cause, Journal
from batcher.jobdir.folder import Claim, JobDir
from batcher.jobdir.listing import ChunkFile
from batcher.jobdir.results import Counts, build_table, write_file
from batcher.jobdir.verdict import Verdict, judge
from batcher.jobdir.workload import Workload
from batcher.types import Choice, Completion, Request, RowError
from workers.engines.base import Engine, SequenceRequest, SequenceResult, Ticket
from workers.process.events import OpenAttempt
from workers.process.stall import stall_limit_s
from workers.shard.choices import Gathering, sequence_requests
from workers.shard.context import WorkerContext
from workers.shard.progress import AttemptTokens
from workers.shard.tries import Tries
from workers.shard.validators import load_allowed

logger = logging.getLogger(f"batcher.{__name__}")

#: Rows, seconds: what a crash may cost, against one small file (two fsyncs) each time.
FLUSH_ROWS = 256
FLUSH_INTERVAL_S = 2.0

#: Seconds. How soon a stop is noticed while the engine has nothing to hand over.
POLL_INTERVAL_S = 0.25


class RunOutcome(StrEnum):
    """How a run of a shard ended. Only `STOPPED` leaves work that this worker should have done."""

    COMMITTED = "committed"
    ALREADY_COMMITTED = "already committed"
    LEASED_ELSEWHERE = "leased elsewhere"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    STOPPED = "stopped"


def run_shard(job: JobDir, shard: int, engine: Engine, context: WorkerContext) -> RunOutcome:
    """Run one shard to its end, blocking. `shard` must be in the manifest, with the engine's model.

    Raises EngineError when the engine died (finished rows are saved), CorruptFileError or JobError where the job
    directory is damaged, StorageError where it can't be written, ShardGivenUpError where that was so too often.
    """
    outcome = _run_leased(job, shard, engine, context)
    if outcome in (RunOutcome.CANCELLED, RunOutcome.PAUSED) and not job.is_halted:
        # The job was taken up again meanwhile, when its message could not claim what was still leased here.
        return RunOutcome.STOPPED
    return outcome


def _run_leased(job: JobDir, shard: int, engine: Engine, context: WorkerContext) -> RunOutcome:
    """Run one shard under its lease, if that can be had."""
    if job.is_committed(shard):
        return RunOutcome.ALREADY_COMMITTED
    if (halted := _halted(job)) is not None:
        return halted
    lease = new_lease(
        job.manifest.identity, shard, worker=context.worker, process=context.process, pace=context.leases.pace
    )
    try:
        if not context.leases.claim(lease):
            return RunOutcome.LEASED_ELSEWHERE
    except BrokerError as exc:
        # The first renewal after the broker is back claims it.
        logger.warning("shard %d of %s runs without a lease: %s", shard, job.job_id, exc)
    try:
        if job.is_committed(shard):
            # A process that was frozen while it waited for the broker: another had the lease since, and committed.
            return RunOutcome.ALREADY_COMMITTED
        claim = job.claim(shard, worker=context.worker, system_fingerprint=engine.system_fingerprint)
        context.on_claim(job, shard, claim.attempt)
        try:
            return _run_attempt(job, shard, engine, context, lease=lease, claim=claim)
        finally:
            context.on_end(job, shard, claim.attempt)
    finally:
        try:
            context.leases.release(lease)
        except BrokerError as exc:
            logger.warning("the lease of shard %d of %s is left to expire: %s", shard, job.job_id, exc)


def _halted(job: JobDir) -> RunOutcome | None:
    """Why nobody is to work on the job now, if so."""
    if job.is_cancelled:
        return RunOutcome.CANCELLED
    return RunOutcome.PAUSED if job.is_paused else None


def _run_attempt(
    job: JobDir, shard: int, engine: Engine, context: WorkerContext, *, lease: Lease, claim: Claim
) -> RunOutcome:
    """Run the attempt under its journal, and say how it ended where that was not in good order."""
    attempt = claim.attempt
    verdict = judge(job, shard, attempt=attempt, listed=claim.earlier)
    if verdict.why_hopeless:
        given_up = ShardGivenUpError(f"given up, as {verdict.why_hopeless}; `batcher resume {job.path}` tries it again")
        _record_end(job, shard, attempt, context, given_up, attempts.Outcome.FAILED)
        raise given_up
    journal = Journal(job.journal_path(shard, attempt=attempt), store=job.store)
    is_orderly = True
    work: Workload | None = None
    try:
        work = Workload(job, shard, claim=claim)
        if work.finish_commit():
            context.on_commit(job)
            return RunOutcome.ALREADY_COMMITTED
        with context.board.follow(OpenAttempt(str(job.path), shard, attempt)) as tokens:
            run = _ShardRun(
                *(job, shard, engine, context),
                lease=lease,
                claim=claim,
                work=work,
                journal=journal,
                verdict=verdict,
                tokens=tokens,
            )
            return run.run()
    except EngineError as exc:
        is_orderly = False
        _record_end(job, shard, attempt, context, exc, attempts.Outcome.CRASHED)
        raise
    except BatcherError as exc:
        if job.is_committed(shard):
            # By this attempt or another: what could not be written then is of no consequence to the shard.
            logger.warning("shard %d of %s is committed, but: %s", shard, job.job_id, exc)
            return RunOutcome.ALREADY_COMMITTED
        if job.exists():
            _record_end(job, shard, attempt, context, exc, attempts.Outcome.FAILED)
        raise
    finally:
        journal.close(is_orderly=is_orderly)
        if work is not None and work.chunks and job.is_committed(shard):
            # By another. What was saved since its commit is of no use; chunks of later attempts can be of a `retry`.
            job.delete_chunks(shard, work.chunks)


def _record_end(
    job: JobDir, shard: int, attempt: int, context: WorkerContext, exc: BatcherError, outcome: attempts.Outcome
) -> None:
    cause = Cause.ENGINE if outcome is attempts.Outcome.CRASHED else None
    try:
        attempts.record_end(
            job,
            shard,
            attempt,
            worker=context.worker,
            outcome=outcome,
            cause=cause,
            detail=str(exc),
            is_retriable=exc.is_retriable,
        )
    except StorageError as storage_exc:
        # On a full disk, say. The error itself is on its way to the log.
        logger.warning("%s", storage_exc)


class _ShardRun:
    """One attempt. Lives in one thread but for `_inbox`, which the engine fills."""

    def __init__(
        self,
        job: JobDir,
        shard: int,
        engine: Engine,
        context: WorkerContext,
        *,
        lease: Lease,
        claim: Claim,
        work: Workload,
        journal: Journal,
        verdict: Verdict,
        tokens: AttemptTokens,
    ) -> None:
        self._job = job
        self._number = shard
        self._engine = engine
        self._context = context
        self._lease = lease
        self._attempt = claim.attempt
        self._earlier = claim.earlier
        self._work = work
        self._journal = journal
        self._verdict = verdict
        self._tokens = tokens
        self._row_timeout_s = context.row_timeout_s or job.manifest.row_timeout_s
        self._uid = uuid.uuid4().hex[:8]
        self._tries = Tries(job.manifest, load_allowed(job.manifest.answers.validator, context.validators))
        self._num_flushes = 0
        self._inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
        self._failure: EngineError | None = None
        self._open: dict[int, Gathering] = {}
        #: Rows that are to be computed once more, by position.
        self._again: dict[int, Request] = {}
        self._finished: dict[int, Completion] = {}
        self._renewal_interval_s = context.leases.pace.renewal_interval_s
        now = context.clock()
        self._next_flush = now + FLUSH_INTERVAL_S
        self._next_renewal = now + self._renewal_interval_s
        self._last_step = (engine.num_steps, now)
        #: Why the engine was given no more rows.
        self._stopped: RunOutcome | None = None

    def run(self) -> RunOutcome:
        done = {row for table in self._work.saved for row in table["row"].to_pylist()}
        missing = {
            row.request.row: position for position, row in enumerate(self._work.rows) if row.request.row not in done
        }
        self._answer_without_engine(missing)
        requests = [self._work.rows[position].request for position in missing.values()]
        self._tokens.max_tokens = sum(request.params.max_tokens * request.num_sequences for request in requests)
        suspects = [missing.pop(row) for row in self._verdict.suspects if row in missing]
        outcome = self._complete(list(missing.values()))
        for position in suspects:
            if outcome is not None:
                break
            # A crash to come must not lose what is finished.
            self._flush()
            outcome = self._complete([position], is_alone=True)
        return outcome or self._commit()

    def _answer_without_engine(self, missing: dict[int, int]) -> None:
        """Take rows that were refused, and rows that crash their worker, from `missing`, and finish them as errors."""
        set_aside = {row: error for row, error in self._verdict.set_aside.items() if row in missing}
        refused = {row: error for row, at in missing.items() if (error := self._work.rows[at].error) is not None}
        for row, error in (set_aside | refused).items():
            self._finish(missing.pop(row), error=error)
        self._note_finished(0)
        for row, error in set_aside.items():
            logger.warning("row %d of %s is set aside: %s", row, self._job.job_id, error.message)
        if set_aside:
            # At once, so that no crash to come takes the verdict back.
            self._save()
            self._context.on_set_aside()

    def _complete(self, positions: Sequence[int], *, is_alone: bool = False) -> RunOutcome | None:
        """Have the engine complete these rows. Returns why it stopped before, if it did."""
        if not positions:
            return None
        tickets = self._tokens.tickets = []
        self._again = {position: self._work.rows[position].request for position in positions}
        try:
            while self._again or self._open:
                if self._again:
                    tickets.append(self._submit(is_alone=is_alone))
                    if self._stopped is not None:
                        return self._stopped
                self._receive(timeout_s=POLL_INTERVAL_S)
                # Whoever has all his rows commits them, also where he is to stop.
                outcome = self._tick() if self._open or self._again else None
                if outcome is not None:
                    return outcome
        finally:
            if tickets and (self._open or self._again):
                # The engine is to drop the rest; what it has handed over until now is kept.
                for ticket in tickets:
                    ticket.cancel()
                self._receive(timeout_s=0)
                self._flush()
        return None

    def _submit(self, *, is_alone: bool) -> Ticket:
        """Give the engine the rows that are to be computed."""
        rows, self._again = self._again, {}
        for position, request in rows.items():
            self._open[position] = Gathering(request)
        return self._engine.submit(
            self._requests(rows, is_alone=is_alone),
            self._take_alone if is_alone else self._inbox.put,
            on_start=self._note_start,
            is_alone=is_alone,
        )

    def _requests(self, rows: Mapping[int, Request], *, is_alone: bool) -> Iterator[SequenceRequest]:
        """The prompts of `rows`, by position, each noted in the journal when the engine takes it.

        In between is done what is due: the engine may take seconds for the prompt of a chat. Where the run is to stop
        there are no more.
        """
        for position, request in rows.items():
            # To take a row is a move, too.
            self._last_step = (self._engine.num_steps, self._context.clock())
            self._stopped = self._tick()
            if self._stopped is not None:
                break
            assert request.prompts, f"row {request.row} has no prompt"
            note = self._journal.alone if is_alone else self._journal.tokenizing
            note(request.row)
            yield from sequence_requests(
                request,
                position=position,
                job_seed=self._job.manifest.seed,
                timeout_s=self._row_timeout_s,
                is_alone=is_alone,
            )
        self._journal.no_suspect()

    def _note_start(self, request: SequenceRequest) -> None:
        row = self._work.rows[request.key[0]].request.row
        (self._journal.alone if request.is_alone else self._journal.admitted)(row)

    def _take_alone(self, item: SequenceResult | EngineError) -> None:
        """Note in the engine's thread that a row is alone no more: its next step may be another row's, and its last."""
        if isinstance(item, SequenceResult):
            self._journal.no_suspect()
        self._inbox.put(item)

    def _receive(self, *, timeout_s: float) -> None:
        """Wait for a result, then take all there are."""
        num_before = len(self._finished)
        try:
            item = self._inbox.get(timeout=timeout_s) if timeout_s else self._inbox.get_nowait()
            while True:
                self._accept(item)
                item = self._inbox.get_nowait()
        except queue.Empty:
            pass
        self._note_finished(num_before)

    def _accept(self, item: SequenceResult | EngineError) -> None:
        if isinstance(item, EngineError):
            self._failure = item
            return
        if item.choice is not None:
            self._tokens.add(item.choice)
        position, _ = item.key
        row = self._open[position]
        if row.add(item):
            del self._open[position]
            self._settle(position, error=row.error, choices=row.choices())

    def _settle(self, position: int, *, error: RowError | None, choices: tuple[Choice, ...]) -> None:
        """Finish a row whose results are in, unless the job does not take its answers."""
        request = self._work.rows[position].request
        if error is not None and (kept := self._tries.kept(request)):
            error, choices = None, kept
        elif error is None:
            verdict = self._tries.judge(request, choices)
            if isinstance(verdict, Request):
                self._again[position] = verdict
                return
            error = verdict
        self._finish(position, error=error, choices=() if error else choices)

    def _finish(self, position: int, *, error: RowError | None, choices: tuple[Choice, ...] = ()) -> None:
        request = self._work.rows[position].request
        digits = self._job.manifest.response_digits(request.row)
        response_id = completion_id(digits, is_chat=request.is_chat)
        self._finished[position] = Completion(request, response_id, int(time.time()), choices, error)

    def _note_finished(self, num_noted: int) -> None:
        """Note the finished rows but for the first `num_noted` in the journal, all in one write."""
        if len(self._finished) > num_noted:
            added = itertools.islice(self._finished.values(), num_noted, None)
            self._journal.finished(completion.request.row for completion in added)

    def _tick(self) -> RunOutcome | None:
        """Do what is due. Returns why to stop, if so. Raises EngineError when the engine died."""
        if self._failure is not None:
            raise self._failure
        if self._context.stopping.is_set():
            return RunOutcome.STOPPED
        now = self._context.clock()
        if now >= self._next_flush or len(self._finished) >= FLUSH_ROWS:
            self._next_flush = now + FLUSH_INTERVAL_S
            self._flush()
            if (halted := _halted(self._job)) is not None:
                return halted
            if self._work.is_decided():
                return RunOutcome.ALREADY_COMMITTED
        if now >= self._next_renewal:
            self._next_renewal = now + self._renewal_interval_s
            if not self._renew(now):
                return RunOutcome.LEASED_ELSEWHERE
        return None

    def _renew(self, now: float) -> bool:
        """Keep the lease while the engine moves. False: another worker has it."""
        steps, since = self._last_step
        if self._engine.num_steps != steps:
            self._last_step = (self._engine.num_steps, now)
        elif now - since > stall_limit_s(self._engine.longest_step_s, self._context.stall_timeout_s):
            return True
        try:
            return self._context.leases.renew(self._lease)
        except BrokerError as exc:
            logger.warning("shard %d of %s goes on without the broker: %s", self._number, self._job.job_id, exc)
            return True

    def _flush(self) -> None:
        """Save the finished rows as a chunk, and say that there is progress. Durable when it returns."""
        if self._finished:
            self._save()
            self._context.on_progress()

    def _save(self) -> None:
        table = self._finished_table()
        self._num_flushes += 1
        path = self._job.chunk_path(self._number, attempt=self._attempt, uid=self._uid, sequence=self._num_flushes)
        write_file(path, table, guard=self._job.check_exists, store=self._job.store)
        self._work.chunks.append(ChunkFile(self._attempt, self._num_flushes, path))
        self._work.saved.append(table)
        self._finished.clear()
        self._context.on_rows(Counts.of(table))

    def _finished_table(self) -> pa.Table:
        positions = sorted(self._finished)
        return build_table(
            [self._finished[position] for position in positions],
            carried=take_rows(self._work.carried, positions),
            attempt=self._attempt,
            worker=self._context.worker,
            optional=self._job.manifest.optional,
        )

    def _commit(self) -> RunOutcome:
        """Create the part from chunks and finished rows, unless another attempt was first."""
        self._journal.committing()
        last = self._finished_table()
        table = self._work.join(last)
        expected = [row.request.row for row in self._work.rows]
        if pc.unique(table["row"]).to_pylist() != expected:
            raise JobError(
                f"{self._job.chunks_dir(self._number)}: its rows are not those of the shard, so no part is made of "
                "them; delete the folder and resume the job"
            )
        is_first = self._work.commit(table)
        if self._work.chunks:
            self._job.delete_chunks(self._number, self._work.chunks)
            self._work.chunks.clear()
        # One that stays beside a part means nothing.
        self._job.store.discard(self._earlier.journals.values())
        if is_first and last.num_rows:
            self._context.on_rows(Counts.of(last))
        self._context.on_progress()
        self._context.on_commit(self._job)
        return RunOutcome.COMMITTED if is_first else RunOutcome.ALREADY_COMMITTED
