"""Parts that went bad after their commit: a disk that tore or flipped what was whole, or somebody's edit.

Such a part is no commit. It is moved aside, never deleted, and its shard is pending again, so that whoever works on the
job computes it anew. Whoever finalizes a job checks the footers (see `finish`); `repair`, for a user's `resume`, reads
every bit. What the disk merely can't read now (EIO, a stale handle, no permission) is an error and no damage.

Several may find the same damage at once, and the slowest of them may move a part that was computed anew meanwhile. So
what was moved is looked at once more, and put back if it is whole.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from batcher.errors import BatcherError, CorruptFileError, JobError, StorageError
from batcher.jobdir.folder import JobDir, unset_success
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.refused import commit_refused
from batcher.jobdir.results import Counts, job_schema, read_counts, read_rows
from batcher.jobdir.sealed import MissingFileError
from batcher.jobdir.shards import read_row_numbers
from batcher.words import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Damage:
    """A part that was moved aside to `moved_to`; `reason` names it and says what is wrong with it."""

    info: ShardInfo
    reason: str
    moved_to: Path

    def __str__(self) -> str:
        rows = f"{counted(self.info.num_rows, 'row')} {'is' if self.info.num_rows == 1 else 'are'}"
        return f"{self.reason}; moved to {self.moved_to}, its {rows} computed again"


def repair(job: JobDir) -> list[Damage]:
    """Read all parts of `job` and move aside those that are damaged. Returns them; their shards are pending.

    Blocks for as long as it takes to read the results. Raises StorageError where the disk says no, JobError where the
    manifest is what is wrong.
    """
    present = job.shards_with_part()
    found = []
    for info in job.manifest.shards:
        if info.shard in present:
            _, damage = _examine(job, info, _check_part)
            found += [damage] if damage else []
    return found


def sound_counts(job: JobDir, info: ShardInfo) -> Counts | None:
    """The counts of a part, from its footer alone. None where it was damaged, and moved aside with a warning, or gone.

    Raises like `repair`.
    """
    counts, damage = _examine(job, info, _check_footer)
    if damage is not None:
        logger.warning("%s", damage)
    return counts


def read_part(job: JobDir, shard: int, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a part whole, or these columns of it after checking every bit.

    Raises CorruptFileError with the remedy, another StorageError where it can't be read.
    """
    try:
        return read_rows(job.part_path(shard), job_schema(job.manifest), columns=columns, store=job.store)
    except CorruptFileError as exc:
        raise with_remedy(exc, job) from exc


def with_remedy(exc: CorruptFileError, job: JobDir) -> CorruptFileError:
    """The same error of a part, saying what mends it."""
    return CorruptFileError(f"{exc}; `batcher resume {job.path}` moves it aside and computes its rows again")


#: Returns the counts of a part that lies at a path, or raises CorruptFileError.
_Check = Callable[[JobDir, ShardInfo, Path], Counts]


def _examine(job: JobDir, info: ShardInfo, check: _Check) -> tuple[Counts | None, Damage | None]:
    """The counts of a part that is sound, else what became of it; neither for one that is gone."""
    part = job.part_path(info.shard)
    try:
        return check(job, info, part), None
    except MissingFileError:
        return None, None
    except CorruptFileError as exc:
        damage = _move_aside(job, info, str(exc))
        if damage is not None and info.model is None:
            # No worker is needed for refused rows, and none would come.
            commit_refused(job)
        return None, damage


def _check_footer(job: JobDir, info: ShardInfo, path: Path) -> Counts:
    counts = read_counts(path, store=job.store)
    if counts.num_rows != info.num_rows or counts.num_rows != counts.num_ok + counts.num_errors:
        _check_manifest(job, info, counts)
        raise CorruptFileError(
            f"{path}: holds {counted(counts.num_rows, 'row')} ({counts.num_ok} ok, {counts.num_errors} error), "
            f"the shard has {info.num_rows}"
        )
    return counts


def _check_manifest(job: JobDir, info: ShardInfo, counts: Counts) -> None:
    """Raise JobError where a part agrees with its shard file: then it is the manifest that is wrong."""
    try:
        num_rows = len(read_row_numbers(job.shard_path(info.shard), store=job.store))
    except CorruptFileError:
        return
    if num_rows == counts.num_rows != info.num_rows:
        raise JobError(
            f"{job.manifest_path}: damaged or changed (it gives shard {info.shard} {counted(info.num_rows, 'row')}, "
            f"its file and its part have {num_rows}); restore it, or submit the input again"
        )


def _check_part(job: JobDir, info: ShardInfo, path: Path) -> Counts:
    counts = _check_footer(job, info, path)
    table = read_rows(path, job_schema(job.manifest), store=job.store)
    if Counts.of(table) != counts:
        raise CorruptFileError(f"{path}: its rows are not what its footer says")
    try:
        expected = read_row_numbers(job.shard_path(info.shard), store=job.store)
    except CorruptFileError:
        return counts  # A committed shard needs its file no more.
    if pc.unique(table["row"]).to_pylist() != expected:
        raise CorruptFileError(f"{path}: its rows are those of another shard")
    return counts


def _move_aside(job: JobDir, info: ShardInfo, reason: str) -> Damage | None:
    """Make a part no commit any more. Returns None where it is gone, or is whole after all."""
    part = job.part_path(info.shard)
    target = job.damaged_dir / f"{part.stem}-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.parquet"
    unset_success(job)
    try:
        job.store.move(part, target)
    except FileNotFoundError:
        return None
    # Once more: somebody's `finalize`, begun when the part was there, may have written them since.
    unset_success(job)
    try:
        _check_part(job, info, target)
    except CorruptFileError:
        return Damage(info, reason, target)
    except BatcherError:
        _put_back(job, part, target)
        raise
    _put_back(job, part, target)
    return None


def _put_back(job: JobDir, part: Path, moved: Path) -> None:
    try:
        job.store.create(part, job.store.read(moved), guard=job.check_exists)
    except FileNotFoundError:
        return  # Somebody else has put it back.
    except StorageError as exc:
        raise StorageError(f"{exc}; {moved} belongs to {part}") from exc
    job.store.delete_many([moved])
