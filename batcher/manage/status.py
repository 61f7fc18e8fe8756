"""Snapshots of a job, from files alone: rows, tokens, rates, ETA, its workers and what became of its attempts.

Nothing here asks the broker: a job directory copied to another machine shows the same rows. Parts and chunks are
immutable and carry their counts in the footer, so a reader that is asked again makes one listing of the job, and reads
only the footers and the ends of attempts that it has not seen.
"""

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from batcher.errors import BatcherError, CorruptFileError, JobError, StorageError
from batcher.jobdir.attempts import AttemptEnd, Outcome, load_ends
from batcher.jobdir.folder import JobDir, Watch
from batcher.jobdir.heartbeats import Health, HeldShard, WorkerReport, read_heartbeats
from batcher.jobdir.listing import Listing
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.pulse import WorkerState
from batcher.jobdir.results import Counts, read_counts, read_file
from batcher.jobdir.retries import read_retry
from batcher.jobdir.root import list_jobs
from batcher.jobdir.standing import read_standing
from batcher.manage.finish import read_part_counts, read_summary
from batcher.manage.in_flight import InFlight, measure
from batcher.manage.speedometer import LEAST_SPAN_S, Speedometer, Step, late_s
from batcher.types import ErrorCode


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
    the last one ended. Of `num_slots` sequences that its engines compute at a time, `num_running` are taken, for
    whatever job or live request, and so are its `tokens_per_s`.
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
    num_slots: int = 0
    num_running: int = 0
    tokens_per_s: float = 0.0


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
    counts completion tokens over the last seconds (at the first readings as workers say, or over the whole job, as once
    it is complete), without those that were copied from an equal row. `progress` is how much of the work is done, 0 to
    1, with what is made of rows that have no result yet: `tokens_in_flight`; `rows_per_s` goes by it, too.
    `error_reasons` has, of error codes, what the first row with it says, where it was asked for.
    `late_s` are the seconds by which a job that has to be finished by a time will be late, or was; below 0 it is early.
    `unserved_models` are those that rows wait for and no worker has that takes shards, with the number of these
    rows, without those that a worker finishes before it ends; `served_models` are those that such workers have,
    `models` those of the job's rows. `eta_s` is None where nothing is known to progress, and where such rows wait.
    `elapsed_s` counts from the first claim; complete, as the summary.
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
    progress: float
    tokens_in_flight: int
    error_reasons: dict[str, str]
    priority: int
    finish_by: datetime | None
    late_s: float | None

    @property
    def is_complete(self) -> bool:
        return self.state is JobState.COMPLETE


@dataclass(frozen=True, slots=True)
class _Rates:
    tokens_per_s: float
    rows_per_s: float
    elapsed_s: float
    finished_at: datetime | None = None


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

    `watch` is that of others who look at the job, too. With `reads_reasons` it reads, of each error code that it meets,
    the rows of one file that have it.
    """

    def __init__(
        self,
        job: JobDir,
        *,
        clock: Callable[[], float] = time.time,
        watch: Watch | None = None,
        reads_reasons: bool = False,
    ) -> None:
        self._job = job
        self._clock = clock
        self._watch = watch or Watch(job)
        self._parts: dict[int, Counts] = {}
        self._replaced: Mapping[int, int] = {}
        self._kept: dict[int, tuple[Path, Counts]] = {}
        self._chunks: dict[int, dict[Path, Counts]] = {}
        self._histories: dict[int, _History] = {}
        self._started_at: datetime | None = None
        self._speed = Speedometer()
        self._reads_reasons = reads_reasons
        self._reasons: dict[str, str] = {}

    def read(self) -> Status:
        """Take a snapshot: one listing of the job, one of its root's workers, and the footers that are new."""
        job, manifest = self._job, self._job.manifest
        listing = self._watch.look()
        pending, counts = self._count_rows(listing)
        self._read_histories(listing)
        claims = [self._history(info.shard).num_attempts for info in pending]
        if self._started_at is None:
            self._started_at = job.first_claim_at(listing)
        now = self._clock()
        state = self._state(listing, pending)
        ends = [end for history in self._histories.values() for end in history.ends]
        reports = self._read_heartbeats(listing, pending)
        served = {name for report in reports if report.takes_shards for name in report.beat.models}
        in_hand = {each.shard for report in reports if report.finishes_shards for each in self._held(report)}
        is_going_on = state in (JobState.WAITING, JobState.RUNNING)
        unserved = self._rows_waiting(pending, served, in_hand) if is_going_on else {}
        in_flight = self._in_flight(listing, reports, pending, counts)
        rates = self._rates(counts, in_flight, reports, state=state, now=now)
        work = counts.num_rows + in_flight.work
        eta_s = self._eta_s(manifest.num_rows - work, rates) if state is JobState.RUNNING and not unserved else None
        standing = read_standing(job)
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
            tokens_per_s=round(rates.tokens_per_s, 2),
            rows_per_s=round(rates.rows_per_s, 3),
            eta_s=None if eta_s is None else round(eta_s, 1),
            created_at=manifest.created_at,
            started_at=self._started_at,
            elapsed_s=round(rates.elapsed_s, 3),
            workers=self._workers(reports, pending, state),
            failures=tuple(failure for info in pending if (failure := self._failure(info.shard)) is not None),
            unserved_models=unserved,
            served_models=tuple(sorted(served)),
            models=manifest.models,
            progress=round(work / manifest.num_rows, 4) if manifest.num_rows else 1.0,
            tokens_in_flight=in_flight.num_tokens,
            error_reasons={code: self._reasons[code] for code in sorted(self._reasons) if code in counts.error_codes},
            priority=standing.level,
            finish_by=standing.finish_by,
            late_s=late_s(standing.finish_by, self._ends_at(eta_s, rates, now=now, state=state), now=now),
        )

    def _ends_at(self, eta_s: float | None, rates: _Rates, *, now: float, state: JobState) -> float | None:
        if state is JobState.COMPLETE:
            return (rates.finished_at or self._started_at or self._job.manifest.created_at).timestamp()
        return None if eta_s is None else now + eta_s

    def _count_rows(self, listing: Listing) -> tuple[list[ShardInfo], Counts]:
        """The shards that are not committed, and what parts and chunks add up to."""
        self._read_parts(listing)
        pending = self._job.without_part(self._parts)
        counts = sum(self._parts.values(), Counts())
        self._kept = {info.shard: kept for info in pending if (kept := self._read_kept(info, listing)) is not None}
        for info in pending:
            counts += self._kept_counts(info) + self._read_chunks(info, listing)
        return pending, counts

    def _read_kept(self, info: ShardInfo, listing: Listing) -> tuple[Path, Counts] | None:
        """The file of the retry that has opened a shard again, and what the rows add up to that keep their answers."""
        numbers = listing.retries.get(info.shard)
        if not numbers:
            return None
        path = numbers[max(numbers)]
        known = self._kept.get(info.shard)
        if known is not None and known[0] == path:
            return known
        try:
            return path, read_retry(path, store=self._job.store).kept
        except FileNotFoundError:
            return None  # Answered meanwhile: the next look finds the part.

    def _kept_counts(self, info: ShardInfo) -> Counts:
        return self._kept[info.shard][1] if info.shard in self._kept else Counts()

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

    def _rows_waiting(self, pending: list[ShardInfo], served: set[str], in_hand: set[int]) -> dict[str, int]:
        """The rows that nobody has in hand of each model that is not served, by name; refused rows have none."""
        found: Counter[str] = Counter()
        for info in pending:
            if info.model is not None and info.model not in served and info.shard not in in_hand:
                num_done = self._kept_counts(info).num_rows
                num_done += sum(counts.num_rows for counts in self._chunks.get(info.shard, {}).values())
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
            held = self._held(report)
            # Not `==`: it may have claimed one since the attempts were listed.
            shards = [each.shard for each in held if each.attempt >= last_attempts.get(each.shard, each.attempt + 1)]
            could_help = state not in (JobState.CANCELLED, JobState.PAUSED) and not models.isdisjoint(
                report.beat.models
            )
            if shards or (could_help and report.takes_shards):
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
        """Bring the remembered parts up to date: new ones are read, those forgotten that a retry has (had) replaced."""
        committed = listing.parts
        for shard in list(self._parts):
            if shard not in committed or listing.replaced.get(shard) != self._replaced.get(shard):
                del self._parts[shard]
        self._replaced = listing.replaced
        for info in self._job.manifest.shards:
            if info.shard in committed and info.shard not in self._parts:
                try:
                    counts = self._parts[info.shard] = read_part_counts(self._job, info.shard)
                except CorruptFileError:
                    if self._job.has(self._job.part_path(info.shard)):
                        raise  # Readers of results/ would stumble over it as well: the user must know.
                    continue  # Moved aside since the listing, as it was damaged.
                self._chunks.pop(info.shard, None)
                self._read_reasons(self._job.part_path(info.shard), counts)

    def _read_reasons(self, path: Path, counts: Counts) -> None:
        """Note what the first rows say that have error codes of which nothing is known yet."""
        if not self._reads_reasons or self._reasons.keys() >= counts.error_codes.keys():
            return
        with contextlib.suppress(StorageError):  # Gone or damaged: another file will tell, or the next look.
            table = read_file(path, store=self._job.store)
            for code, message in zip(
                *(table[name].to_pylist() for name in ("error_code", "error_message")), strict=True
            ):
                if code is not None:
                    self._reasons.setdefault(code, message or "")

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
                self._read_reasons(chunk.path, counts)
            found[chunk.path] = counts
        self._chunks[info.shard] = found
        return sum(found.values(), Counts()).at_most(info.num_rows - self._kept_counts(info).num_rows)

    def _in_flight(
        self, listing: Listing, reports: list[WorkerReport], pending: list[ShardInfo], done: Counts
    ) -> InFlight:
        """What is made of rows that are not done yet."""
        held = [each for report in reports if report.health is not Health.GONE for each in self._held(report)]

        def saved(info: ShardInfo, attempt: int | None) -> Counts:
            known = self._chunks.get(info.shard, {})
            chunks = (each for each in listing.chunks(info.shard) if attempt in (None, each.attempt))
            kept = self._kept_counts(info) if attempt is None else Counts()
            return sum((known[each.path] for each in chunks if each.path in known), kept)

        return measure(self._job.manifest, held, {info.shard: info for info in pending}, done, saved)

    def _held(self, report: WorkerReport) -> list[HeldShard]:
        """The shards of this job that a worker has."""
        return [each for each in report.beat.shards if each.job_id == self._job.job_id]

    def _rates(
        self, counts: Counts, in_flight: InFlight, reports: list[WorkerReport], *, state: JobState, now: float
    ) -> _Rates:
        """How fast the job goes; of a complete one, how fast it went."""
        worked = max(0, counts.num_rows - self._job.manifest.num_refused)
        if state is JobState.COMPLETE:
            try:
                summary = read_summary(self._job)
            except JobError:
                pass  # Deleted by hand or by a `retry` just now: the rates below are good enough.
            else:
                rows_per_s = worked / summary.elapsed_s if summary.elapsed_s else 0.0
                return _Rates(summary.tokens_per_s, rows_per_s, summary.elapsed_s, summary.finished_at)
        step = Step(
            now,
            worked + in_flight.work,
            counts.completion_tokens - counts.copied_tokens + in_flight.num_tokens - in_flight.num_copied,
        )
        elapsed_s = max(0.0, now - self._started_at.timestamp()) if self._started_at else 0.0
        self._speed.look(step)
        guess = self._guess(step, in_flight, reports, elapsed_s=elapsed_s)
        tokens_per_s, work_per_s = self._speed.tokens_per_s, self._speed.work_per_s
        return _Rates(
            guess.tokens_per_s if tokens_per_s is None else tokens_per_s,
            guess.rows_per_s if work_per_s is None else work_per_s,
            elapsed_s,
        )

    def _eta_s(self, left: float, rates: _Rates) -> float | None:
        is_meant = self._speed.has_settled or self._speed.is_new
        has_begun = rates.elapsed_s >= LEAST_SPAN_S
        return self._speed.eta_s(left, work_per_s=rates.rows_per_s if is_meant and has_begun else None)

    def _guess(self, step: Step, in_flight: InFlight, reports: list[WorkerReport], *, elapsed_s: float) -> _Rates:
        """The rates as long as too little was seen: what workers say that do nothing else, else those of the job."""
        busy = [report for report in reports if report.health is Health.ALIVE and self._held(report)]
        tokens_per_s = sum(report.beat.tokens_per_s for report in busy)
        if tokens_per_s and all(len(self._held(report)) == len(report.beat.shards) for report in busy):
            return _Rates(tokens_per_s, tokens_per_s / in_flight.row_tokens, elapsed_s)
        whole_s = elapsed_s or math.inf
        return _Rates(step.tokens / whole_s, step.work / whole_s, elapsed_s)


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
        num_slots=beat.num_slots,
        num_running=beat.num_running,
        tokens_per_s=beat.tokens_per_s,
    )
