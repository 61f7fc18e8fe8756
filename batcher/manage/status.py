"""Snapshots of a job, from files alone: rows, tokens, rates, ETA, its workers and what became of its attempts.

Nothing here asks the broker: a job directory copied to another machine shows the same rows. Parts and chunks are
immutable and carry their counts in the footer, so a reader that is asked again makes one listing of the job, and reads
only the footers and the ends of attempts that it has not seen.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from batcher.errors import BatcherError, CorruptFileError, JobError
from batcher.jobdir.attempts import AttemptEnd, Outcome, load_ends
from batcher.jobdir.folder import JobDir, Watch
from batcher.jobdir.heartbeats import Health, WorkerReport, read_heartbeats
from batcher.jobdir.listing import Listing
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.pulse import WorkerState
from batcher.jobdir.results import Counts, read_counts
from batcher.jobdir.root import list_jobs
from batcher.manage.finish import read_part_counts, read_summary
from batcher.types import ErrorCode

#: Seconds over which rates are taken. A few flushes of a chunk, so that their rhythm does not show.
RATE_WINDOW_S = 15.0


class JobState(StrEnum):
    """Where a job stands by its files. `waiting`: submitted, and no shard was claimed yet."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A worker as one job sees it. `shards` are those of this job that it holds; `is_busy_elsewhere`: those of others.

    `age_s` are seconds since its last sign of life, `stalled_s` since its engine's last step while it has work (0 while
    it moves). `num_crashes` counts deaths of its process since it was started, at whatever job; `last_crash` says how
    the last one ended.
    """

    name: str
    host: str
    pid: int
    health: Health
    state: WorkerState
    age_s: float
    stalled_s: float
    shards: tuple[int, ...]
    is_busy_elsewhere: bool
    num_crashes: int
    last_crash: str


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """A shard whose last attempt could not go on, and why."""

    shard: int
    attempt: int
    worker: str
    message: str
    at: datetime
    is_retriable: bool


@dataclass(frozen=True, slots=True)
class Status:
    """A job at one moment. `job_id` is the name of its folder, by which commands find it. `num_done` = `num_ok` +
    `num_errors`, of `num_rows`; it counts rows in chunks too.

    Shards: `num_committed` have their part, `num_claimed` were claimed and have none, `num_waiting` were never
    claimed. `num_attempts` counts the claims of all shards, `num_crashes` those that ended with their worker,
    `num_quarantined` the rows that were set aside because they ended it. `failures` are of shards that nobody has tried
    again since. `workers` are those that hold shards of the job, and while it goes on those that could. `tokens_per_s`
    counts completion tokens over the last seconds (over the whole job at the first reading, and once it is complete).
    `unserved_models` are those that rows wait for and no worker has that is alive, with the number of these rows;
    `served_models` are those that such workers have, `models` those of the job's rows. `eta_s` is None where nothing is
    known to progress, and where rows wait for a model that is not served.
    """

    job_id: str
    state: JobState
    num_rows: int
    num_done: int
    num_ok: int
    num_errors: int
    num_choices: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    error_codes: dict[str, int]
    num_shards: int
    num_committed: int
    num_claimed: int
    num_waiting: int
    num_attempts: int
    num_crashes: int
    num_quarantined: int
    tokens_per_s: float
    rows_per_s: float
    eta_s: float | None
    created_at: datetime
    started_at: datetime | None
    elapsed_s: float
    workers: tuple[WorkerStatus, ...]
    failures: tuple[ShardFailure, ...]
    unserved_models: dict[str, int]
    served_models: tuple[str, ...]
    models: tuple[str, ...]

    @property
    def is_complete(self) -> bool:
        return self.state is JobState.COMPLETE


@dataclass(frozen=True, slots=True)
class _Progress:
    """What was done at a moment (Unix seconds); rows refused at submit don't count as work."""

    at: float
    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class _History:
    """What the attempts of a shard left: the number of the last one, and the ends of those that ended badly.

    `end_paths` are the files that `ends` were read from, damaged ones among them.
    """

    num_attempts: int = 0
    end_paths: tuple[Path, ...] = ()
    ends: tuple[AttemptEnd, ...] = ()


_NO_HISTORY = _History()


class StatusReader:
    """Reads one job again and again. Not for several threads at once. `clock` gives Unix seconds.

    `watch` is that of others who look at the job, too.
    """

    def __init__(self, job: JobDir, *, clock: Callable[[], float] = time.time, watch: Watch | None = None) -> None:
        self._job = job
        self._clock = clock
        self._watch = watch or Watch(job)
        self._parts: dict[int, Counts] = {}
        self._chunks: dict[int, dict[Path, Counts]] = {}
        self._histories: dict[int, _History] = {}
        self._started_at: datetime | None = None
        self._steps: deque[_Progress] = deque()

    def read(self) -> Status:
        """Take a snapshot: one listing of the job, one of its root's workers, and the footers that are new."""
        job, manifest = self._job, self._job.manifest
        listing = self._look()
        pending, counts = self._count_rows(listing)
        self._read_histories(listing)
        claims = [self._history(info.shard).num_attempts for info in pending]
        if self._started_at is None:
            self._started_at = job.first_claim_at(listing)
        now = self._clock()
        state = self._state(listing, pending)
        tokens_per_s, rows_per_s, elapsed_s = self._rates(counts, state=state, now=now)
        left = manifest.num_rows - counts.num_rows
        ends = [end for history in self._histories.values() for end in history.ends]
        reports = self._read_heartbeats(listing, pending)
        served = {name for report in reports if report.health is not Health.GONE for name in report.beat.models}
        is_going_on = state in (JobState.WAITING, JobState.RUNNING)
        unserved = self._rows_waiting(pending, served) if is_going_on else {}
        has_eta = rows_per_s and state is JobState.RUNNING and not unserved
        return Status(
            # A folder may have been renamed since; `.` has no name.
            job_id=job.job_id or manifest.job_id,
            state=state,
            num_rows=manifest.num_rows,
            num_done=counts.num_rows,
            num_ok=counts.num_ok,
            num_errors=counts.num_errors,
            num_choices=counts.num_choices,
            prompt_tokens=counts.prompt_tokens,
            completion_tokens=counts.completion_tokens,
            cached_tokens=counts.cached_tokens,
            error_codes=dict(sorted(counts.error_codes.items())),
            num_shards=len(manifest.shards),
            num_committed=len(self._parts),
            num_claimed=sum(number > 0 for number in claims),
            num_waiting=sum(number == 0 for number in claims),
            num_attempts=sum(history.num_attempts for history in self._histories.values()),
            num_crashes=sum(end.outcome is Outcome.CRASHED for end in ends),
            num_quarantined=counts.error_codes.get(ErrorCode.WORKER_CRASHED.value, 0),
            tokens_per_s=round(tokens_per_s, 2),
            rows_per_s=round(rows_per_s, 3),
            eta_s=round(left / rows_per_s, 1) if has_eta else None,
            created_at=manifest.created_at,
            started_at=self._started_at,
            elapsed_s=round(elapsed_s, 3),
            workers=self._workers(reports, pending, state),
            failures=tuple(failure for info in pending if (failure := self._failure(info.shard)) is not None),
            unserved_models=unserved,
            served_models=tuple(sorted(served)),
            models=manifest.models,
        )

    def _look(self) -> Listing:
        listing = self._watch.look()
        if any(shard not in listing.parts and not listing.chunks(shard) for shard in self._parts):
            # Opened again by `retry`, which saves the good rows as a chunk before the part goes: it may just have come.
            listing = self._watch.look()
        return listing

    def _count_rows(self, listing: Listing) -> tuple[list[ShardInfo], Counts]:
        """The shards without a part, and what parts and chunks add up to."""
        self._read_parts(listing)
        pending = self._job.without_part(self._parts)
        counts = sum(self._parts.values(), Counts())
        for info in pending:
            counts += self._read_chunks(info, listing)
        return pending, counts

    def _read_histories(self, listing: Listing) -> None:
        """Bring the remembered attempts up to date: the ends of those that ended badly are read once."""
        for shard, files in listing.attempts_by_shard.items():
            known = self._history(shard)
            if (known.num_attempts, known.end_paths) != (files.last, files.ends):
                ends = known.ends if known.end_paths == files.ends else tuple(load_ends(self._job, files.ends))
                self._histories[shard] = _History(files.last, files.ends, ends)

    def _history(self, shard: int) -> _History:
        return self._histories.get(shard, _NO_HISTORY)

    def _failure(self, shard: int) -> ShardFailure | None:
        """Why the last attempt of a shard could not go on; None where it was no such end, or where another runs."""
        history = self._history(shard)
        end = history.ends[-1] if history.ends else None
        if end is None or end.outcome is not Outcome.FAILED or end.attempt < history.num_attempts:
            return None
        return ShardFailure(shard, end.attempt, end.worker, end.detail, end.at, end.is_retriable)

    def _rows_waiting(self, pending: list[ShardInfo], served: set[str]) -> dict[str, int]:
        """The rows that are not done of each model that is not served, by name; refused rows have none."""
        found: Counter[str] = Counter()
        for info in pending:
            if info.model is not None and info.model not in served:
                num_done = sum(counts.num_rows for counts in self._chunks.get(info.shard, {}).values())
                found[info.model] += max(0, info.num_rows - num_done)
        return dict(sorted(found.items()))

    def _read_heartbeats(self, listing: Listing, pending: list[ShardInfo]) -> list[WorkerReport]:
        """Those of the job's own workers, then those of its root; none where nothing is left to do."""
        if not pending:
            return []
        own = read_heartbeats(self._job.path, listed=listing.workers, store=self._job.store)
        # absolute(): the parent of `.` is `.`.
        return own + read_heartbeats(self._job.path.absolute().parent, store=self._job.store)

    def _workers(
        self, reports: list[WorkerReport], pending: list[ShardInfo], state: JobState
    ) -> tuple[WorkerStatus, ...]:
        """The workers that matter to the job, those of its own first: who holds a shard of it, and who could take one.

        One that is gone holds its shards until somebody else has claimed them, and could take none.
        """
        last_attempts = {info.shard: self._history(info.shard).num_attempts for info in pending}
        models = {info.model for info in pending}
        found = []
        for report in reports:
            held = [each for each in report.beat.shards if each.job_id == self._job.job_id]
            # Not `==`: it may have claimed one since the attempts were listed.
            shards = [each.shard for each in held if each.attempt >= last_attempts.get(each.shard, each.attempt + 1)]
            could_help = state not in (JobState.CANCELLED, JobState.PAUSED) and not models.isdisjoint(
                report.beat.models
            )
            if shards or (could_help and report.health is not Health.GONE):
                found.append(_worker_status(report, shards, is_busy_elsewhere=len(held) < len(report.beat.shards)))
        return tuple(found)

    def _state(self, listing: Listing, pending: list[ShardInfo]) -> JobState:
        if not pending and listing.is_complete:
            return JobState.COMPLETE
        if listing.is_cancelled:
            return JobState.CANCELLED
        if listing.is_paused:
            return JobState.PAUSED
        return JobState.WAITING if self._started_at is None and pending else JobState.RUNNING

    def _read_parts(self, listing: Listing) -> None:
        """Bring the remembered parts up to date: new ones are read, those that `retry` deleted are forgotten."""
        committed = listing.parts
        for shard in [shard for shard in self._parts if shard not in committed]:
            del self._parts[shard]
        for info in self._job.manifest.shards:
            if info.shard in committed and info.shard not in self._parts:
                try:
                    self._parts[info.shard] = read_part_counts(self._job, info.shard)
                except CorruptFileError:
                    if self._job.has(self._job.part_path(info.shard)):
                        raise  # Readers of results/ would stumble over it as well: the user must know.
                    continue  # Reopened by `retry` since the listing.
                self._chunks.pop(info.shard, None)

    def _read_chunks(self, info: ShardInfo, listing: Listing) -> Counts:
        """What the chunks of a shard add up to, never more than the shard holds."""
        known = self._chunks.get(info.shard, {})
        found: dict[Path, Counts] = {}
        for chunk in listing.chunks(info.shard):
            counts = known.get(chunk.path)
            if counts is None:
                try:
                    counts = read_counts(chunk.path, store=self._job.store)
                except CorruptFileError:
                    continue  # Torn, or gone because the shard was committed meanwhile: workers skip it as well.
            found[chunk.path] = counts
        self._chunks[info.shard] = found
        return _clamp(sum(found.values(), Counts()), info.num_rows)

    def _rates(self, counts: Counts, *, state: JobState, now: float) -> tuple[float, float, float]:
        """Tokens/s, rows/s and the elapsed seconds of the job."""
        worked = max(0, counts.num_rows - self._job.manifest.num_refused)
        if state is JobState.COMPLETE:
            try:
                summary = read_summary(self._job)
            except JobError:
                pass  # Deleted by hand or by a `retry` just now: the rates below are good enough.
            else:
                rows_per_s = worked / summary.elapsed_s if summary.elapsed_s else 0.0
                return summary.tokens_per_s, rows_per_s, summary.elapsed_s
        elapsed_s = max(0.0, now - self._started_at.timestamp()) if self._started_at else 0.0
        step = _Progress(now, worked, counts.completion_tokens)
        # Only steps forward are kept. The oldest is the last one before the window, or further back where nothing
        # has moved since: then the rate decays towards 0 instead of jumping there between two chunks.
        if not self._steps or (step.rows, step.tokens) != (self._steps[-1].rows, self._steps[-1].tokens):
            self._steps.append(step)
        while len(self._steps) > 2 and self._steps[1].at <= now - RATE_WINDOW_S:
            self._steps.popleft()
        base = self._steps[0]
        if len(self._steps) > 1 and now > base.at:
            span_s = now - base.at
            return max(0, step.tokens - base.tokens) / span_s, max(0, step.rows - base.rows) / span_s, elapsed_s
        if elapsed_s:
            return step.tokens / elapsed_s, step.rows / elapsed_s, elapsed_s
        return 0.0, 0.0, elapsed_s


def read_status(job: JobDir) -> Status:
    """One snapshot of a job."""
    return StatusReader(job).read()


def read_all(root: Path, *, on_damaged: Callable[[BatcherError], None]) -> list[Status]:
    """A snapshot of each job under `root`, the oldest first; one that is damaged goes to `on_damaged` instead."""
    found = []
    for job in list_jobs(root):
        try:
            found.append(read_status(job))
        except BatcherError as exc:
            # It must not hide the others.
            on_damaged(exc)
    return sorted(found, key=lambda status: status.created_at)


def _worker_status(report: WorkerReport, shards: list[int], *, is_busy_elsewhere: bool) -> WorkerStatus:
    beat = report.beat
    return WorkerStatus(
        name=beat.name,
        host=beat.host,
        pid=beat.pid,
        health=report.health,
        state=beat.state,
        age_s=report.age_s,
        stalled_s=round(report.stalled_s, 3),
        shards=tuple(sorted(shards)),
        is_busy_elsewhere=is_busy_elsewhere,
        num_crashes=beat.num_crashes,
        last_crash=beat.last_crash,
    )


def _clamp(counts: Counts, num_rows: int) -> Counts:
    """Counts of chunks that may overlap (two attempts at one time), brought down to what a shard can hold."""
    if counts.num_rows <= num_rows:
        return counts
    share = num_rows / counts.num_rows
    num_errors = round(counts.num_errors * share)
    return Counts(
        num_rows=num_rows,
        num_ok=num_rows - num_errors,
        num_errors=num_errors,
        num_choices=round(counts.num_choices * share),
        prompt_tokens=round(counts.prompt_tokens * share),
        completion_tokens=round(counts.completion_tokens * share),
        cached_tokens=round(counts.cached_tokens * share),
        finish_reasons={reason: round(number * share) for reason, number in counts.finish_reasons.items()},
        error_codes={code: round(number * share) for code, number in counts.error_codes.items()},
    )
