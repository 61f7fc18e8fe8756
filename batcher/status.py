"""Snapshots of a job, from its files alone: rows, tokens, rates, ETA.

Nothing here asks the broker: a job directory copied to another machine shows the same. Parts and chunks are immutable
and carry their counts in the footer, so a reader that is asked again reads only the footers it has not seen.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from batcher.errors import CorruptFileError, JobError
from batcher.jobdir import JobDir, ShardInfo
from batcher.results import Counts, read_counts
from batcher.summary import read_part_counts, read_summary

#: Seconds over which rates are taken. A few flushes of a chunk, so that their rhythm does not show.
RATE_WINDOW_S = 15.0


class JobState(StrEnum):
    """Where a job stands by its files. `waiting`: submitted, and no shard was claimed yet."""

    WAITING = "waiting"
    RUNNING = "running"
    CANCELLED = "cancelled"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class Status:
    """A job at one moment. `num_done` = `num_ok` + `num_errors`, of `num_rows`; it counts rows in chunks too.

    Shards: `num_committed` have their part, `num_claimed` were claimed and have none, `num_waiting` were never
    claimed. `num_attempts` counts the claims of the shards without a part. `tokens_per_s` counts completion tokens
    over the last seconds (over the whole job at the first reading, and once it is complete). `eta_s` is None where
    nothing is known to progress.
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
    tokens_per_s: float
    rows_per_s: float
    eta_s: float | None
    created_at: datetime
    started_at: datetime | None
    elapsed_s: float

    @property
    def is_complete(self) -> bool:
        return self.state is JobState.COMPLETE


@dataclass(frozen=True, slots=True)
class _Progress:
    """What was done at a moment (Unix seconds); rows refused at submit don't count as work."""

    at: float
    rows: int
    tokens: int


class StatusReader:
    """Reads one job again and again. Not for several threads at once. `clock` gives Unix seconds."""

    def __init__(self, job: JobDir, *, clock: Callable[[], float] = time.time) -> None:
        self._job = job
        self._clock = clock
        self._parts: dict[int, Counts] = {}
        self._chunks: dict[int, dict[Path, Counts]] = {}
        self._started_at: datetime | None = None
        self._steps: deque[_Progress] = deque()

    def read(self) -> Status:
        """Take a snapshot. Reads the footers that are new, lists the folders of shards without a part."""
        job, manifest = self._job, self._job.manifest
        uncommitted = [info for info in manifest.shards if info.shard not in self._parts]
        # Chunks before parts: a chunk vanishes only after its shard's part exists, so what is missed here is there.
        partial = {info.shard: self._read_chunks(info) for info in uncommitted}
        self._read_parts()
        pending = [info for info in manifest.shards if info.shard not in self._parts]
        counts = sum(self._parts.values(), Counts())
        for info in pending:
            # A shard that `retry` has just reopened was not among the uncommitted.
            counts += partial.get(info.shard) or self._read_chunks(info)
        attempts = [job.num_attempts(info.shard) for info in pending]
        if self._started_at is None:
            self._started_at = job.first_claim_at()
        now = self._clock()
        state = self._state(pending)
        tokens_per_s, rows_per_s, elapsed_s = self._rates(counts, state=state, now=now)
        left = manifest.num_rows - counts.num_rows
        return Status(
            job_id=manifest.job_id,
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
            num_claimed=sum(number > 0 for number in attempts),
            num_waiting=sum(number == 0 for number in attempts),
            num_attempts=sum(attempts),
            tokens_per_s=round(tokens_per_s, 2),
            rows_per_s=round(rows_per_s, 3),
            eta_s=round(left / rows_per_s, 1) if rows_per_s and state is JobState.RUNNING else None,
            created_at=manifest.created_at,
            started_at=self._started_at,
            elapsed_s=round(elapsed_s, 3),
        )

    def _state(self, pending: list[ShardInfo]) -> JobState:
        if not pending and self._job.is_complete:
            return JobState.COMPLETE
        if self._job.is_cancelled:
            return JobState.CANCELLED
        return JobState.WAITING if self._started_at is None and pending else JobState.RUNNING

    def _read_parts(self) -> None:
        """Bring the remembered parts up to date: new ones are read, those that `retry` deleted are forgotten."""
        committed = self._job.committed_shards()
        for shard in [shard for shard in self._parts if shard not in committed]:
            del self._parts[shard]
        for info in self._job.manifest.shards:
            if info.shard in committed and info.shard not in self._parts:
                try:
                    self._parts[info.shard] = read_part_counts(self._job, info.shard)
                except CorruptFileError:
                    if self._job.part_path(info.shard).exists():
                        raise  # Readers of results/ would stumble over it as well: the user must know.
                    continue  # Reopened by `retry` since the listing.
                self._chunks.pop(info.shard, None)

    def _read_chunks(self, info: ShardInfo) -> Counts:
        """What the chunks of a shard add up to, never more than the shard holds."""
        known = self._chunks.get(info.shard, {})
        found: dict[Path, Counts] = {}
        for chunk in self._job.chunks(info.shard):
            counts = known.get(chunk.path)
            if counts is None:
                try:
                    counts = read_counts(chunk.path)
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
