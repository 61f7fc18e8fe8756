"""The job directory: the only place that builds its paths, and the records kept in it.

    JOB/manifest.json                          written last by submit: its presence is the job's existence
    JOB/shards/00007.parquet                   validated requests of the shard (see `shards`)
    JOB/attempts/00007/0001.json               a claim, created if absent: the durable attempt number
    JOB/attempts/00007/0001.journal            the rows it has in the engine now (see `attempts`)
    JOB/attempts/00007/0001.end.json           how it ended, if not in good order
    JOB/attempts/00007/0002.retry.json         the rows that ran again by a retry, and with which parameters
    JOB/chunks/00007/0001-<uid>-0003.parquet   finished rows of an attempt, immutable
    JOB/results/part-00007.parquet             the shard's commit: created if absent, replaced only by a retry's answers
    JOB/retries/00007/0002.json                rows of a shard with a part that are to run again (see `retries`)
    JOB/earlier/part-00007-0002.parquet        the rows that this has replaced, as they were
    JOB/results/_SUCCESS, JOB/summary.json     written when every part exists and the count proves it
    JOB/CANCELLED                              present while the job is cancelled
    JOB/PAUSED                                 present while the job is paused
    JOB/standing.json                          its place among others (see `standing`)
    JOB/batch.json                             what was asked for, if it was made by the server (see `server.batches`)
    JOB/batch/                                 what became of that, and its output files for download
    JOB/DELETED                                the manifest of a job that is being deleted: there is no job any more
    JOB/damaged/part-00007-<time>.parquet      a part that was torn or changed after its commit (see `manage.repair`)

Everything a job is can be derived from these files; Redis holds nothing that could not be lost.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from threading import Lock

from pydantic import TypeAdapter, ValidationError

from batcher.errors import JobError, StorageError
from batcher.jobdir.listing import (
    ATTEMPTS_NAME,
    BATCH_NAME,
    CANCELLED_NAME,
    CHUNKS_NAME,
    DAMAGED_NAME,
    EARLIER_NAME,
    MANIFEST_NAME,
    PAUSED_NAME,
    RESULTS_NAME,
    RETRIES_NAME,
    SHARDS_NAME,
    SUCCESS_NAME,
    AttemptFiles,
    ChunkFile,
    Listing,
    chunk_files,
    is_wanted,
    part_number,
    retry_number,
)
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.manifest import Manifest, ShardInfo, encode_manifest, parse_manifest
from batcher.jobdir.store import Entry, Guard, Store

#: What the mark of a cancellation ends in that came because the time was over.
_EXPIRY_MARK = " expired"


@dataclass(frozen=True, slots=True)
class Attempt:
    """A worker's durable claim of a shard. `system_fingerprint` says what engine it has; None: that is not known.

    `idle_since` is when the attempts before it wrote their last file; None for the first, and in older records.
    """

    attempt: int
    worker: str
    claimed_at: datetime
    system_fingerprint: str | None = None
    idle_since: datetime | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """The number of an attempt that was claimed, from 1, and what those before it have left."""

    attempt: int
    earlier: AttemptFiles


@dataclass(frozen=True, slots=True)
class Cancellation:
    """That a job is cancelled, since when, and whether that is because its time was over (a batch's)."""

    at: datetime
    is_expiry: bool


_ATTEMPT = TypeAdapter(Attempt)


class JobDir:
    """Paths and records of one job, kept in `store`. Holds no state but the manifest, once read: it is immutable."""

    def __init__(self, path: Path, store: Store = LOCAL) -> None:
        self.path = path
        self.store = store

    def __repr__(self) -> str:
        return f"JobDir({str(self.path)!r})"

    @classmethod
    def open(cls, path: Path, store: Store = LOCAL) -> "JobDir":
        """The existing job at `path`. Raises JobError where there is none, or where its manifest can't be read."""
        job = cls(path, store)
        _ = job.manifest
        return job

    @property
    def job_id(self) -> str:
        return self.path.name

    @property
    def manifest_path(self) -> Path:
        return self.path / MANIFEST_NAME

    @property
    def deleted_path(self) -> Path:
        return self.path / "DELETED"

    @property
    def damaged_dir(self) -> Path:
        return self.path / DAMAGED_NAME

    @property
    def shards_dir(self) -> Path:
        return self.path / SHARDS_NAME

    @property
    def results_dir(self) -> Path:
        return self.path / RESULTS_NAME

    @property
    def success_path(self) -> Path:
        return self.results_dir / SUCCESS_NAME

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def cancelled_path(self) -> Path:
        return self.path / CANCELLED_NAME

    @property
    def paused_path(self) -> Path:
        return self.path / PAUSED_NAME

    @property
    def standing_path(self) -> Path:
        return self.path / "standing.json"

    @property
    def batch_path(self) -> Path:
        return self.path / "batch.json"

    @property
    def batch_dir(self) -> Path:
        return self.path / BATCH_NAME

    def shard_path(self, shard: int) -> Path:
        return self.shards_dir / f"{shard:05d}.parquet"

    def part_path(self, shard: int) -> Path:
        return self.results_dir / f"part-{shard:05d}.parquet"

    @property
    def chunks_root(self) -> Path:
        return self.path / CHUNKS_NAME

    def chunks_dir(self, shard: int) -> Path:
        return self.chunks_root / f"{shard:05d}"

    def chunk_path(self, shard: int, *, attempt: int, uid: str, sequence: int) -> Path:
        return self.chunks_dir(shard) / f"{attempt:04d}-{uid}-{sequence:04d}.parquet"

    @property
    def attempts_root(self) -> Path:
        return self.path / ATTEMPTS_NAME

    def attempts_dir(self, shard: int) -> Path:
        return self.attempts_root / f"{shard:05d}"

    def attempt_path(self, shard: int, *, attempt: int) -> Path:
        return self.attempts_dir(shard) / f"{attempt:04d}.json"

    def journal_path(self, shard: int, *, attempt: int) -> Path:
        return self.attempts_dir(shard) / f"{attempt:04d}.journal"

    def attempt_end_path(self, shard: int, *, attempt: int) -> Path:
        return self.attempts_dir(shard) / f"{attempt:04d}.end.json"

    @property
    def retries_root(self) -> Path:
        return self.path / RETRIES_NAME

    def retries_dir(self, shard: int) -> Path:
        return self.retries_root / f"{shard:05d}"

    def retry_path(self, shard: int, number: int) -> Path:
        return self.retries_dir(shard) / f"{number:04d}.json"

    def answered_retry_path(self, shard: int, number: int) -> Path:
        return self.attempts_dir(shard) / f"{number:04d}.retry.json"

    @property
    def earlier_dir(self) -> Path:
        return self.path / EARLIER_NAME

    def earlier_path(self, shard: int, number: int) -> Path:
        return self.earlier_dir / f"part-{shard:05d}-{number:04d}.parquet"

    def has(self, path: Path) -> bool:
        """Whether a file of the job is there."""
        return self.store.head(path) is not None

    # -- the manifest -------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether a job was submitted here (an unfinished submit leaves files but no manifest)."""
        return self.has(self.manifest_path)

    def missing(self) -> JobError:
        """What to say where no job is."""
        if self.has(self.deleted_path):
            return JobError(f"{self.path}: the deletion of a job here was interrupted; finish it with `batcher delete`")
        return JobError(f"{self.path}: no job here (no manifest.json); `batcher list` shows the jobs")

    def is_here(self) -> bool:
        """Whether the job that `manifest` was read from is here: neither deleted, nor another under its name."""
        found = self.store.head(self.manifest_path)
        return found is not None and found.version == self._submitted[1]

    def check_exists(self) -> None:
        """Raise StorageError if the job that `manifest` was read from is not here any more.

        The guard of all that is written for a job: rows of one that was deleted must not bring its folder back, nor get
        into another that was submitted under its name.
        """
        try:
            is_here = self.is_here()
        except JobError as exc:
            raise StorageError(f"{exc}; nothing is written") from exc
        if not is_here:
            raise StorageError(
                f"{self.path}: the job was deleted while it was worked on; nothing more is written to it"
            )

    @property
    def manifest(self) -> Manifest:
        """The manifest, read once. Raises JobError naming the file and what to do."""
        return self._submitted[0]

    @cached_property
    def _submitted(self) -> tuple[Manifest, str]:
        """The manifest, and the version of its file. Raises like `manifest`."""
        # The version first: where another job's manifest is there when it is read, nothing is written to that one.
        found = None
        while found is None:
            found = self.store.head(self.manifest_path)
            try:
                data = self.store.read(self.manifest_path)
            except FileNotFoundError as exc:
                raise self.missing() from exc
        return parse_manifest(data, path=self.manifest_path), found.version

    def create_manifest(self, manifest: Manifest) -> bool:
        """Make the job exist. Returns False where another submit was first."""
        return self.store.create(self.manifest_path, encode_manifest(manifest))

    def look(self, *, settled: frozenset[int] = frozenset()) -> Listing:
        """All that the names of the job's files say, in one listing; of the attempts of `settled` shards maybe nothing.

        A shard that was committed meanwhile is seen with its part, or with the chunks that it had.
        """
        return Listing.of(self.store.list(self.path, wants=partial(is_wanted, settled=settled)))

    # -- attempts -----------------------------------------------------------------------------------------------

    def claim(self, shard: int, *, worker: str, system_fingerprint: str | None = None) -> Claim:
        """Create the next attempt record of `shard`, durably. Lists nothing where it is the first, as most are."""
        earlier, idle_since = AttemptFiles(), None
        number = 1
        while True:
            record = Attempt(number, worker, datetime.now(UTC), system_fingerprint, idle_since)
            path = self.attempt_path(shard, attempt=number)
            if self.store.create(path, _ATTEMPT.dump_json(record), guard=self.check_exists):
                return Claim(number, earlier)
            files = self.store.list(self.attempts_dir(shard))
            earlier, idle_since = AttemptFiles.of(entry.path for entry in files), self._last_written_at(shard, files)
            number = max(number, earlier.last) + 1

    def _last_written_at(self, shard: int, attempts: Iterable[Entry]) -> datetime | None:
        """When the attempts at a shard wrote the last of their files: claims, journals, chunks, the part."""
        heads = [entry.head() for entry in (*attempts, *self.store.list(self.chunks_dir(shard)))]
        heads.append(self.store.head(self.part_path(shard)))
        written = max((head.modified_s for head in heads if head is not None), default=None)
        return None if written is None else datetime.fromtimestamp(written, UTC)

    def claim_attempt(self, shard: int, *, worker: str, system_fingerprint: str | None = None) -> int:
        """The number of a new claim, see `claim`."""
        return self.claim(shard, worker=worker, system_fingerprint=system_fingerprint).attempt

    def system_fingerprint(self, shard: int, attempt: int) -> str | None:
        """What engine an attempt had; None where that was not noted, or can't be read any more."""
        record = self.read_attempt(shard, attempt)
        return None if record is None else record.system_fingerprint

    def list_attempts(self, shard: int) -> AttemptFiles:
        """What the attempts of `shard` have left. One listing."""
        return AttemptFiles.of(entry.path for entry in self.store.list(self.attempts_dir(shard)))

    def num_attempts(self, shard: int) -> int:
        """The highest attempt number of `shard`, 0 before its first claim. One listing."""
        return self.list_attempts(shard).last

    def first_claim_at(self, listing: Listing | None = None) -> datetime | None:
        """When work on the job began: the earliest first attempt of a shard. None where none was claimed.

        A record that is damaged counts for nothing here: its number does, and that is in its name.
        """
        if listing is not None:
            shards: Iterable[int] = listing.attempts_by_shard
        else:
            shards = [int(name) for name in self.store.names(self.attempts_root) if name.isdigit()]
        records = (self.read_attempt(shard, 1) for shard in shards)
        return min((record.claimed_at for record in records if record is not None), default=None)

    def read_attempt(self, shard: int, attempt: int) -> Attempt | None:
        """The claim of that number; None where there is none, or it can't be read any more."""
        try:
            return _ATTEMPT.validate_json(self.store.read(self.attempt_path(shard, attempt=attempt)))
        except (OSError, StorageError, ValidationError):
            return None

    # -- chunks and parts ---------------------------------------------------------------------------------------

    def chunks(self, shard: int) -> list[ChunkFile]:
        """The chunks of `shard` in order of attempt and sequence. One listing."""
        return chunk_files(entry.path for entry in self.store.list(self.chunks_dir(shard)))

    def delete_chunks(self, shard: int, chunks: Iterable[ChunkFile] | None = None) -> None:
        """Remove chunks of a committed shard, all if none are given. Never raises: they are only dead weight."""
        with contextlib.suppress(StorageError):
            if chunks is None:
                self.store.delete_tree(self.chunks_dir(shard))
                return
            self.store.discard([chunk.path for chunk in chunks])
            self.store.drop_folder(self.chunks_dir(shard))

    def shards_with_part(self) -> set[int]:
        """The shards whose part exists, be it to be replaced or not. One listing."""
        names = self.store.names(self.results_dir)
        return {number for name in names if (number := part_number(name)) is not None}

    def committed_shards(self) -> set[int]:
        """The shards whose part exists and is not to be replaced. Two listings."""
        return self.shards_with_part() - {
            int(shard)
            for shard, name in (entry.parts for entry in self.store.list(self.retries_root) if len(entry.parts) == 2)
            if shard.isdigit() and retry_number(name) is not None
        }

    def is_committed(self, shard: int) -> bool:
        """Whether the part of a shard exists and is not to be replaced. One listing, none where there is no part."""
        return self.has(self.part_path(shard)) and not self.open_retries(shard)

    def open_retries(self, shard: int) -> list[int]:
        """The retries by which rows of a shard are to run again, by number. One listing."""
        names = self.store.names(self.retries_dir(shard))
        return sorted(number for name in names if (number := retry_number(name)) is not None)

    def pending_shards(self) -> list[ShardInfo]:
        """The shards that are not committed, in order. Two listings."""
        return self.without_part(self.committed_shards())

    def without_part(self, committed: Collection[int]) -> list[ShardInfo]:
        """The shards that are not among `committed`, in order."""
        return [info for info in self.manifest.shards if info.shard not in committed]

    # -- cancelling and pausing ---------------------------------------------------------------------------------

    @property
    def is_cancelled(self) -> bool:
        return self.has(self.cancelled_path)

    def cancel(self, *, is_expiry: bool = False, guard: Guard | None = None) -> bool:
        """Mark the job as cancelled; workers stop at their next row. Returns False where it was already.

        `guard` is for what is no job yet.
        """
        mark = datetime.now(UTC).isoformat() + (_EXPIRY_MARK if is_expiry else "")
        return self.store.create(self.cancelled_path, mark.encode(), guard=guard or self.check_exists)

    @property
    def cancellation(self) -> Cancellation | None:
        """Since when the job is cancelled; None where it is not."""
        found = self.store.head(self.cancelled_path)
        if found is None:
            return None
        try:
            text = self.store.read(self.cancelled_path).decode(errors="replace")
        except FileNotFoundError:
            return None
        try:
            at = datetime.fromisoformat(text.removesuffix(_EXPIRY_MARK).strip())
        except ValueError:
            # Made by hand: that it is there is what counts.
            at = datetime.fromtimestamp(found.modified_s, UTC)
        return Cancellation(at if at.tzinfo else at.replace(tzinfo=UTC), text.endswith(_EXPIRY_MARK))

    @property
    def is_paused(self) -> bool:
        return self.has(self.paused_path)

    def pause(self) -> bool:
        """Mark the job as paused; workers stop at their next row. Returns False where it was already."""
        mark = datetime.now(UTC).isoformat()
        return self.store.create(self.paused_path, mark.encode(), guard=self.check_exists)

    @property
    def is_halted(self) -> bool:
        """Cancelled or paused: nobody is to work on the job."""
        return self.is_cancelled or self.is_paused

    def unhalt(self) -> None:
        """Take back the marks of a cancellation and of a pause."""
        self.store.delete_many([self.cancelled_path, self.paused_path])

    @property
    def is_complete(self) -> bool:
        return self.has(self.success_path)


def write_summary(job: JobDir, summary: bytes) -> bool:
    """Write `summary.json` and then `_SUCCESS`. Returns False where another had written that."""
    job.store.replace(job.summary_path, summary, guard=job.check_exists)
    return job.store.create(job.success_path, b"", guard=job.check_exists)


def unset_success(job: JobDir) -> None:
    """Take back what `write_summary` wrote. Before a part goes: `_SUCCESS` must never stand beside a missing one."""
    job.store.delete_many([job.success_path, job.summary_path])


class Watch:
    """A job that is looked at again and again, by several at a time, with one listing for all that ask at a moment.

    For all threads. Remembers the attempts of shards that have a part, whose folders it lists no more: once after the
    part was seen, all that they left is there. `clock` is in seconds and only grows.
    """

    def __init__(self, job: JobDir, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.job = job
        self._clock = clock
        self._lock = Lock()
        self._last: tuple[float, Listing] | None = None
        self._settled: frozenset[int] = frozenset()

    def look(self, *, max_age_s: float = 0.0) -> Listing:
        """The job as it is now, or as somebody saw it up to `max_age_s` ago. Raises StorageError."""
        with self._lock:
            now = self._clock()
            if self._last is not None and now - self._last[0] < max_age_s:
                return self._last[1]
            found = self.job.look(settled=self._settled)
            if unsettled := self._unsettled(found):
                self._settled -= unsettled
                found = self.job.look(settled=self._settled)
            if self._last is not None:
                found = found.with_attempts_of(self._last[1], self._settled)
                self._settled = found.parts & self._last[1].parts
            self._last = (now, found)
            return found

    def _unsettled(self, found: Listing) -> frozenset[int]:
        """Those of the settled that `retry` has opened again, or that were committed anew since."""
        before = self._last[1].replaced if self._last is not None else {}
        return self._settled - found.parts | {
            shard for shard in self._settled & found.replaced.keys() if found.replaced[shard] != before.get(shard)
        }
