"""Retry: rows of committed shards run again, those that failed or any that a condition is true of.

A shard is opened by one small file (see `jobdir.retries`), so a crash between any two steps loses nothing: before it
the shard is as it was, after it one more that is to be worked on. Its part stays, and with it the answers of before,
until the new ones are all there.

It may be done while the job is worked on: shards that are not committed are left alone, and who works on the job finds
those that were opened. Two retries at once exclude each other (see `jobdir.lock`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.conditions import Condition, parse_conditions
from batcher.errors import InputError, InvalidBodyError, JobError, StorageError
from batcher.jobdir import attempts
from batcher.jobdir.folder import JobDir, unset_success
from batcher.jobdir.lock import exclusive
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.results import Counts, job_schema
from batcher.jobdir.retries import Retry, asked_rows, open_shard
from batcher.jobdir.sending import Send
from batcher.jobdir.shards import ShardRow
from batcher.manage.finish import read_part_counts
from batcher.manage.joined import renamed_columns
from batcher.manage.repair import read_part
from batcher.openai.overrides import check_settings, override
from batcher.types import ErrorCode, OnTruncation, RowStatus, SamplingParams

#: The name that the attempt of a reopening carries: it counts as a claim, but no worker stands behind it.
WORKER_NAME = "batcher-retry"

#: Conditions whose text needs no quotes, as nobody would look for anything else there.
_BARE = re.compile(r"(error_code|row)\s*=\s*([^\s=']+)|(custom_id)\s*=\s*([^\s='].*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reopening:
    """The rows of a shard that would run again, by their number in the input, and what the others add up to.

    `extra_tokens` are those by which one of them can become longer.
    """

    info: ShardInfo
    rows: tuple[int, ...]
    kept: Counts
    extra_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a job would run again, shard by shard.

    Of those that match, `num_refused` were refused at submit, and `num_not_retriable` have an error that another
    attempt can't change, and `num_reopened` are in shards that an earlier retry has open. `num_open` rows are in shards
    that have no part yet, and were not asked. `num_ok` of the rows that would run again have an answer.
    """

    shards: tuple[Reopening, ...]
    num_refused: int
    num_not_retriable: int
    num_reopened: int
    num_open: int
    num_ok: int

    @property
    def num_rows(self) -> int:
        return sum(len(one.rows) for one in self.shards)


@dataclass(frozen=True, slots=True)
class Retried:
    """What a retry did. `was_complete`: nobody works on the job; `num_sent` shards were sent."""

    selection: Selection
    was_complete: bool
    num_sent: int


def parse_where(job: JobDir, conditions: Iterable[str]) -> Condition | None:
    """Conditions on result rows, all of which must hold (see `arrow.conditions`); None for none.

    `error_code=timeout`, `custom_id=id-4` and `row=4` need no quotes. Raises InputError for what can't be read, and for
    a code whose rows fail again.
    """
    quoted = [_quoted(text.strip()) for text in conditions]
    return parse_conditions(quoted, job_schema(job.manifest), renamed=renamed_columns(job.manifest))


def _quoted(condition: str) -> str:
    found = _BARE.fullmatch(condition)
    return condition if found is None else equals(found[1] or found[3], found[2] or found[4])


def equals(key: str, value: str) -> str:
    """The condition that a column has this value. Raises InputError for one that no row to retry can have."""
    if key == "row":
        if not (value.isascii() and value.isdigit() and len(value) <= 18):
            raise InputError(f"condition row={value}: not a row; rows count from 0")
        return f"row = {value}"
    if key == "error_code":
        _check_code(value)
    text = value.replace("'", "''")
    return f"{key} = '{text}'"


def _check_code(code: str) -> None:
    if code not in set(ErrorCode):
        raise InputError(f"condition error_code={code}: no such code; use one of {', '.join(_retriable_codes())}")
    if code not in _retriable_codes() and code != ErrorCode.TRUNCATED:
        raise InputError(
            f"condition error_code={code}: such rows fail again; mend them in the input and submit it as a new job"
        )


def select(job: JobDir, *, where: Condition | None = None, settings: Mapping[str, Any] | None = None) -> Selection:
    """Find the rows of committed shards that `where` is true of, or that failed where there is none, and could succeed.

    Without `where` it reads only parts with errors. Raises InputError for `settings` that a row can't have.
    """
    settings = settings or {}
    check_settings(settings)
    if job.is_cancelled:
        raise JobError(f"{job.path}: the job is cancelled; `batcher resume {job.path}` takes it up again first")
    # In this order: a shard of which the first listing knows no part may have one by the second.
    parts = job.shards_with_part()
    committed = job.committed_shards()
    shards: list[Reopening] = []
    num_refused = num_not_retriable = num_reopened = num_open = num_ok = 0
    for info in job.manifest.shards:
        if info.shard not in parts:
            num_open += info.num_rows
            continue
        if where is None and not read_part_counts(job, info.shard).num_errors:
            continue
        part = read_part(job, info.shard)
        is_error = pc.equal(part["status"], RowStatus.ERROR.value)
        found = part.filter(is_error) if where is None else where.filter(part)
        matching = {*found["row"].to_pylist()}
        if info.shard not in committed:
            num_reopened += len(matching)
            continue
        if info.model is None:
            # No worker serves a shard without a model: these rows were decided at submit.
            num_refused += len(matching)
            continue
        final = matching & _final_rows(part, settings)
        num_not_retriable += len(final)
        if rows := sorted(matching - final):
            one = _reopening(job, info, part, rows, settings)
            num_ok += len(rows) - (Counts.of(part).num_errors - one.kept.num_errors)
            shards.append(one)
    return Selection(tuple(shards), num_refused, num_not_retriable, num_reopened, num_open, num_ok)


def _final_rows(part: pa.Table, settings: Mapping[str, Any]) -> set[int]:
    """The rows whose error another attempt can't change; more tokens change that of a text that was cut off."""
    codes = {code.value for code in ErrorCode if not code.is_retriable}
    if not settings.keys().isdisjoint(("max_tokens", "max_completion_tokens")):
        codes.discard(ErrorCode.TRUNCATED.value)
    is_final = pc.is_in(part["error_code"], value_set=pa.array(sorted(codes), pa.string()))
    return {*part.filter(is_final)["row"].to_pylist()}


def _reopening(
    job: JobDir, info: ShardInfo, part: pa.Table, rows: Sequence[int], settings: Mapping[str, Any]
) -> Reopening:
    kept = part.filter(pc.invert(pc.is_in(part["row"], value_set=pa.array(rows, pa.int64()))))
    extra = _extra_tokens(job, info, rows, settings) if settings else 0
    return Reopening(info, tuple(rows), Counts.of(kept), extra)


def _extra_tokens(job: JobDir, info: ShardInfo, rows: Sequence[int], settings: Mapping[str, Any]) -> int:
    """By how much a completion can become longer. Raises InputError for a row that can't have the settings."""
    wanted, most = frozenset(rows), 0
    known: dict[int, SamplingParams] = {}
    for row in asked_rows(job, info.shard):
        if row.request.row not in wanted:
            continue
        before = row.request.params
        if id(before) not in known:
            known[id(before)] = _override(row, settings)
        most = max(most, known[id(before)].max_tokens - before.max_tokens)
    return 2 * most if job.manifest.answers.on_truncation is OnTruncation.RETRY else most


def _override(row: ShardRow, settings: Mapping[str, Any]) -> SamplingParams:
    try:
        return override(row.request.params, settings, is_chat=row.request.is_chat)
    except InvalidBodyError as exc:
        raise InputError(f"row {row.request.row} ({row.request.custom_id}): with --set its {exc}") from exc


def retry(
    job: JobDir, *, where: Condition | None = None, settings: Mapping[str, Any] | None = None, send: Send | None = None
) -> Retried:
    """Run rows of `job` again: those that `where` is true of, else those that failed (see `select`).

    `settings` are fields of their requests that they get anew (see `openai.overrides`). `send` has the opened shards
    worked on, unless the job is paused; None: who works on the job finds them, or `resume` does. Raises InputError for
    settings that a row can't have, JobError for a job that is cancelled, JobBusyError while another command changes it,
    StorageError where the disk says no, BrokerError of `send`, when the shards are open.
    """
    with exclusive(job):
        was_complete = job.is_complete
        selection = select(job, where=where, settings=settings)
        shards = reopen(job, selection, settings or {})
    # Of a job that is paused they would be dropped: `resume` sends them.
    num_sent = send(job, shards) if send is not None and shards and not job.is_paused else 0
    return Retried(selection, was_complete=was_complete, num_sent=num_sent)


def reopen(job: JobDir, selection: Selection, settings: Mapping[str, Any]) -> list[ShardInfo]:
    """Open the selected shards again."""
    if selection.shards:
        # Before the first: `_SUCCESS` must never stand beside an open shard.
        unset_success(job)
    for one in selection.shards:
        shard = one.info.shard
        # By old journals a row that was set aside would be so again without being run.
        attempts.delete_journals(job, shard, up_to=job.num_attempts(shard))
        number = job.claim_attempt(shard, worker=WORKER_NAME)
        if not open_shard(job, shard, Retry(number, one.rows, dict(settings), one.kept, one.extra_tokens)):
            raise StorageError(f"{job.retry_path(shard, number)}: is there already; retry again")
    if selection.shards:
        # Once more: somebody's `finalize`, begun when no shard was open, may have written them since.
        unset_success(job)
    return [one.info for one in selection.shards]


def _retriable_codes() -> list[str]:
    return [code.value for code in ErrorCode if code.is_retriable]
