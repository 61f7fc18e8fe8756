"""Retry of failed rows: a committed shard is opened again with its good rows kept as a chunk.

After that it is an ordinary shard without a part, and a resume runs just the rows its chunks lack. The order of the
durable steps is what makes a crash between any two of them harmless: while the part exists it is the truth and chunks
are ignored; when it goes, the good rows already stand in a chunk.

It may be done while the job is worked on: shards without a part are left alone, and who works on the job finds those
that were opened. Two retries at once exclude each other (see `jobdir.lock`).
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from batcher.errors import InputError, JobError, StorageError
from batcher.jobdir import attempts
from batcher.jobdir.folder import JobDir, unset_success
from batcher.jobdir.lock import exclusive
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.results import write_file
from batcher.jobdir.sending import Send
from batcher.manage.finish import read_part_counts
from batcher.manage.repair import read_part
from batcher.types import ErrorCode, RowStatus

#: What `where` can ask for: columns of the results.
WHERE_KEYS = ("error_code", "custom_id", "row")

#: The name that the attempt of a reopening carries: it counts as a claim, but no worker stands behind it.
WORKER_NAME = "batcher-retry"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which failed rows of a job would run again.

    `shards` are those to reopen, with the rows (by their number in the input) to drop from each. `num_refused` rows
    match but were refused at submit, `num_not_retriable` match but have a code that another attempt can't change.
    """

    shards: tuple[tuple[ShardInfo, tuple[int, ...]], ...]
    num_refused: int
    num_not_retriable: int

    @property
    def num_rows(self) -> int:
        return sum(len(rows) for _, rows in self.shards)


@dataclass(frozen=True, slots=True)
class Retried:
    """What a retry did. `was_complete`: nobody works on the job; `num_sent` shards were sent."""

    selection: Selection
    was_complete: bool
    num_sent: int


def parse_where(conditions: Iterable[str]) -> dict[str, str]:
    """`--where KEY=VALUE` conditions, all of which must hold. Raises InputError for what no failed row can match."""
    where: dict[str, str] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not equals or key not in WHERE_KEYS:
            raise InputError(f"--where {condition}: not a condition; use KEY=VALUE with {', '.join(WHERE_KEYS)}")
        if key in where and where[key] != value:
            raise InputError(f"--where {condition}: {key} is {where[key]!r} already, and conditions must all hold")
        where[key] = value
    _check_where(where)
    return where


def select(job: JobDir, *, where: Mapping[str, str]) -> Selection:
    """Find the failed rows of committed shards that match `where` and could succeed. Reads only parts with errors."""
    _check_where(where)
    if job.is_cancelled:
        raise JobError(f"{job.path}: the job is cancelled; `batcher resume {job.path}` takes it up again first")
    committed = job.committed_shards()
    shards: list[tuple[ShardInfo, tuple[int, ...]]] = []
    num_refused = num_not_retriable = 0
    for info in job.manifest.shards:
        if info.shard not in committed or not read_part_counts(job, info.shard).num_errors:
            continue
        errors = _matching_errors(read_part(job, info.shard), where)
        if info.model is None:
            # No worker serves a shard without a model: these rows were decided at submit.
            num_refused += errors.num_rows
            continue
        retriable = pc.is_in(errors["error_code"], value_set=pa.array(_retriable_codes(), pa.string()))
        rows = errors.filter(retriable)["row"].to_pylist()
        num_not_retriable += errors.num_rows - len(rows)
        if rows:
            shards.append((info, tuple(rows)))
    return Selection(tuple(shards), num_refused, num_not_retriable)


def retry(job: JobDir, *, where: Mapping[str, str], send: Send | None = None) -> Retried:
    """Run the failed rows of `job` again that meet all conditions of `where`, of which `parse_where` tells the keys.

    `send` has the opened shards worked on, unless the job is paused; None: who works on the job finds them, or `resume`
    does. Raises InputError for a condition that no row can meet, JobError for a job that is cancelled, JobBusyError
    while another command changes it, StorageError where the disk says no, BrokerError of `send`, when the shards are
    open.
    """
    with exclusive(job):
        was_complete = job.is_complete
        selection = select(job, where=where)
        shards = reopen_selection(job, selection)
    # Of a job that is paused they would be dropped: `resume` sends them.
    num_sent = send(job, shards) if send is not None and shards and not job.is_paused else 0
    return Retried(selection, was_complete=was_complete, num_sent=num_sent)


def reopen_selection(job: JobDir, selection: Selection) -> list[ShardInfo]:
    """Open the selected shards again, in an order in which a crash between any two durable steps loses nothing."""
    for info, rows in selection.shards:
        _reopen_shard(job, info, rows)
    if selection.shards:
        # Once more: somebody's `finalize`, begun when all parts stood, may have written them since.
        unset_success(job)
    return [info for info, _ in selection.shards]


def _reopen_shard(job: JobDir, info: ShardInfo, rows: Sequence[int]) -> None:
    part = read_part(job, info.shard)
    good = part.filter(pc.invert(pc.is_in(part["row"], value_set=pa.array(rows, pa.int64()))))
    # Chunks left by a crash between commit and clean-up hold the failed rows as finished. The part is still the truth.
    job.delete_chunks(info.shard)
    if leftovers := job.chunks(info.shard):
        raise StorageError(f"{leftovers[0].path}: cannot delete this old chunk; delete it, then retry again")
    # Likewise journals, by which a row that was set aside would be so again without being run.
    attempts.delete_journals(job, info.shard, up_to=job.num_attempts(info.shard))
    if good.num_rows:
        attempt = job.claim_attempt(info.shard, worker=WORKER_NAME)
        chunk = job.chunk_path(info.shard, attempt=attempt, uid=uuid.uuid4().hex[:8], sequence=1)
        if not write_file(chunk, good, guard=job.check_exists, store=job.store):
            raise StorageError(f"{chunk}: exists although its name was drawn at random; retry again")
    # Before the part: `_SUCCESS` must never stand beside a missing one.
    unset_success(job)
    job.store.delete_many([job.part_path(info.shard)])


def _matching_errors(part: pa.Table, where: Mapping[str, str]) -> pa.Table:
    """The error rows of a part that meet all conditions."""
    errors = part.filter(pc.equal(part["status"], RowStatus.ERROR.value))
    for key, value in where.items():
        errors = errors.filter(pc.equal(errors[key], int(value) if key == "row" else value))
    return errors


def _check_where(where: Mapping[str, str]) -> None:
    for key, value in where.items():
        if key not in WHERE_KEYS:
            raise InputError(f"condition {key}={value}: unknown key; use {', '.join(WHERE_KEYS)}")
    code, row = where.get("error_code"), where.get("row")
    if code is not None and code not in set(ErrorCode):
        raise InputError(f"condition error_code={code}: no such code; use one of {', '.join(_retriable_codes())}")
    if code is not None and not ErrorCode(code).is_retriable:
        raise InputError(
            f"condition error_code={code}: such rows fail again; mend them in the input and submit it as a new job"
        )
    if row is not None and not (row.isascii() and row.isdigit() and len(row) <= 18):
        raise InputError(f"condition row={row}: not a row; rows count from 0")


def _retriable_codes() -> list[str]:
    return [code.value for code in ErrorCode if code.is_retriable]
