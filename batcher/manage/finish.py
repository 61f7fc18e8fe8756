"""The end of a job: the proof that every input row has its result, and the totals, written once as `summary.json`.

The proof reads footers only. It holds when every shard of the manifest has its part, no other part lies beside them,
each part's count of rows is the shard's, and over all of them rows in = rows ok + rows error. Then, and only then,
`summary.json` and `results/_SUCCESS` are written, in this order, so `_SUCCESS` never stands without the totals.
A part that has become unreadable is no commit (see `repair`): its shard is pending again, and nothing is proved.

So a job is finished when `finalize` has said so, and not with its last part. Whoever may be the last to care calls it,
as a crash right after the last commit leaves the proof to somebody else:

- the worker that has committed a part (`workers.child`): the usual way;
- who waits for the job (`workers.local`, `Job.wait`), at the beginning, at each look that finds all parts there, and
  once more where the job was cancelled or paused while a commit was on its way;
- who waits for none: the sweep of a jobs root (`workers.queue.sweeper`), and the server's rounds, for batches;
- who would change the job: `resume`, `cancel` and `pause`, which leave a finished one as it is;
- who wants all of its results: `export`, and `Job` where a Python program asks.
"""

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter, ValidationError

from batcher.errors import CorruptFileError, JobError, StorageError
from batcher.jobdir.folder import JobDir, unset_success, write_summary
from batcher.jobdir.listing import Listing
from batcher.jobdir.lock import exclusive
from batcher.jobdir.results import Counts, read_counts
from batcher.jobdir.store import Entry
from batcher.manage.repair import sound_counts, with_remedy
from batcher.manage.worked import read_work


@dataclass(frozen=True, slots=True)
class Proof:
    """Rows in = rows ok + rows error. `rows_in` is the manifest's count, the others were counted in the parts."""

    rows_in: int
    rows_ok: int
    rows_error: int

    @property
    def holds(self) -> bool:
        return self.rows_in == self.rows_ok + self.rows_error


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals of a complete job; the fields are the keys of `summary.json`.

    `seed` is the job's, given or drawn; None in the summaries of an older Batcher.
    `started_at` is the first claim of a shard (None where all rows were refused and no work was needed),
    `finished_at` the last commit. `elapsed_s` is the time between them in which somebody worked on a shard (see
    `worked`): nothing while the job was paused, interrupted, or complete and not yet retried. `tokens_per_s` is
    completion tokens per elapsed second, without the `copied_tokens`, for which nothing was computed, as an equal
    request had the same answer. `results` is relative to the job directory.
    """

    job_id: str
    proof: Proof
    num_rows: int
    num_ok: int
    num_errors: int
    num_choices: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    finish_reasons: dict[str, int]
    error_codes: dict[str, int]
    started_at: datetime | None
    finished_at: datetime
    elapsed_s: float
    tokens_per_s: float
    num_parts: int
    models: tuple[str, ...]
    results: str = "results/*.parquet"
    seed: int | None = None
    copied_tokens: int = 0


_SUMMARY = TypeAdapter(Summary)

#: Seconds. No claim takes that long to write.
STALE_AFTER_S = 60.0


def finalize(job: JobDir, *, listing: Listing | None = None) -> Summary | None:
    """Prove that the job is complete and write its summary and `_SUCCESS`. Returns None while parts are missing.

    `listing` spares a look of its own where it shows that parts are missing.
    Anyone may call it at any time, several at once too: all derive the same content from the same files. A part whose
    footer is damaged is moved aside with a warning, and missing. Leftovers of killed writers are swept at the end.
    Raises JobError where the manifest is wrong, StorageError where the disk says no.
    """
    if listing is not None and job.without_part(listing.parts):
        return None
    while not job.pending_shards():
        summary = _written_summary(job)
        if summary is None:
            counts = _proven_counts(job)
            if counts is None:
                return None
            summary = _summarize(job, counts)
            assert summary.proof.holds, "each part has the rows of its shard, and these add up to the job's"
            is_first = write_summary(job, _SUMMARY.dump_json(summary, indent=1))
            if job.pending_shards():
                # `retry` has opened a shard between the proof and now. It has unset these before we wrote them.
                unset_success(job)
                continue
            if is_first:
                _sweep_leftovers(job)
        if job.is_halted:
            # That came too late.
            job.unhalt()
        return summary
    return None


def _summarize(job: JobDir, counts: Counts) -> Summary:
    work = read_work(job)
    elapsed_s = work.seconds
    return Summary(
        job_id=job.manifest.job_id,
        proof=Proof(job.manifest.num_rows, counts.num_ok, counts.num_errors),
        num_rows=counts.num_rows,
        num_ok=counts.num_ok,
        num_errors=counts.num_errors,
        num_choices=counts.num_choices,
        prompt_tokens=counts.prompt_tokens,
        completion_tokens=counts.completion_tokens,
        cached_tokens=counts.cached_tokens,
        finish_reasons=dict(sorted(counts.finish_reasons.items())),
        error_codes=dict(sorted(counts.error_codes.items())),
        started_at=work.started_at,
        finished_at=work.finished_at or last_commit_at(job),
        elapsed_s=round(elapsed_s, 3),
        tokens_per_s=round((counts.completion_tokens - counts.copied_tokens) / elapsed_s, 2) if elapsed_s else 0.0,
        num_parts=len(job.manifest.shards),
        models=job.manifest.models,
        seed=job.manifest.seed,
        copied_tokens=counts.copied_tokens,
    )


def _written_summary(job: JobDir) -> Summary | None:
    """The summary that stands beside `_SUCCESS`; None where it has to be written, as a damaged one has."""
    if not job.is_complete:
        return None
    try:
        return read_summary(job)
    except JobError:
        return None


def read_summary(job: JobDir) -> Summary:
    """The summary of a complete job. Raises JobError where there is none, or where it is damaged."""
    try:
        return _SUMMARY.validate_json(job.store.read(job.summary_path))
    except FileNotFoundError as exc:
        raise JobError(f"{job.path}: no summary yet; `batcher status {job.path}` shows how far the job is") from exc
    except ValidationError as exc:
        raise JobError(
            f"{job.summary_path}: damaged; delete it, and `batcher resume {job.path}` writes it again"
        ) from exc


def read_part_counts(job: JobDir, shard: int) -> Counts:
    """The counts in the footer of a part. Raises CorruptFileError with what to do."""
    try:
        return read_counts(job.part_path(shard), store=job.store)
    except CorruptFileError as exc:
        raise with_remedy(exc, job) from exc


def _proven_counts(job: JobDir) -> Counts | None:
    """The counts over all parts, checked against the manifest shard by shard; None where one was no commit."""
    manifest = job.manifest
    strangers = job.committed_shards() - {info.shard for info in manifest.shards}
    if strangers:
        raise JobError(
            f"{job.part_path(min(strangers))}: the manifest has no such shard, yet readers of results/ would read it; "
            "move the file away"
        )
    total = Counts()
    is_whole = True
    for info in manifest.shards:
        counts = sound_counts(job, info)
        is_whole = is_whole and counts is not None
        total += counts or Counts()
    return total if is_whole else None


def _sweep_leftovers(job: JobDir) -> None:
    """Delete what killed writers left in a job that has just become complete. Never raises.

    Only under the lock that `retry` holds, and where there is one: the chunks of a shard that it is about to open look
    like leftovers. A writer that is still alive has lost its race, and is told so by the part that it finds.
    """
    with contextlib.suppress(JobError, StorageError), exclusive(job, patience_s=0) as is_locked:
        if not is_locked or job.pending_shards():
            return
        job.store.delete_tree(job.chunks_root)
        success = job.store.head(job.success_path)
        if success is not None:
            stale_at = success.modified_s - STALE_AFTER_S
            leftovers = job.store.leftovers(job.path)
            job.store.discard([entry.path for entry in leftovers if not _may_be_in_work(job, entry, stale_at=stale_at)])


def _may_be_in_work(job: JobDir, entry: Entry, *, stale_at: float) -> bool:
    """Whether somebody could be claiming a shard with an unfinished file, or making the outputs of the batch that has
    just ended: they would take it amiss that it is gone."""
    head = entry.head()
    is_fresh = head is not None and head.modified_s >= stale_at
    return is_fresh and any(entry.path.is_relative_to(folder) for folder in (job.attempts_root, job.batch_dir))


def last_commit_at(job: JobDir) -> datetime:
    """When the last part was written; now for a job without shards."""
    # From the files and not from a clock: a job whose last worker died right after the last commit ended then, not
    # when somebody came to write its summary.
    heads = (job.store.head(job.part_path(info.shard)) for info in job.manifest.shards)
    written = max((head.modified_s for head in heads if head is not None), default=None)
    return datetime.now(UTC) if written is None else datetime.fromtimestamp(written, UTC)
