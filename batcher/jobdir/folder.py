"""The job directory: the only place that builds its paths, and the records kept in it.

    JOB/manifest.json                          written last by submit: its presence is the job's existence
    JOB/shards/00007.parquet                   validated requests of the shard (see `shards`)
    JOB/attempts/00007/0001.json               a claim, created if absent: the durable attempt number
    JOB/attempts/00007/0001.journal            the rows it has in the engine now (see `attempts`)
    JOB/attempts/00007/0001.end.json           how it ended, if not in good order
    JOB/chunks/00007/0001-<uid>-0003.parquet   finished rows of an attempt, immutable
    JOB/results/part-00007.parquet             the shard's commit: created if absent, never overwritten
    JOB/results/_SUCCESS, JOB/summary.json     written when every part exists and the count proves it
    JOB/CANCELLED                              present while the job is cancelled
    JOB/batch.json                             what was asked for, if it was made by the server (see `server.batches`)
    JOB/batch/                                 what became of that, and its output files for download
    JOB/DELETED                                the manifest of a job that is being deleted: there is no job any more
    JOB/damaged/part-00007-<time>.parquet      a part that was torn or changed after its commit (see `manage.repair`)

Everything a job is can be derived from these files; Redis holds nothing that could not be lost.
"""

import contextlib
import os
import re
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from batcher.errors import JobError, StorageError
from batcher.jobdir import store
from batcher.jobdir.manifest import Manifest, ShardInfo, encode_manifest, parse_manifest

#: What the mark of a cancellation ends in that came because the time was over.
_EXPIRY_MARK = " expired"

_PART_NAME = re.compile(r"^part-(\d{5,})\.parquet$")
_ATTEMPT_NAME = re.compile(r"^(\d{4,})\.json$")
_CHUNK_NAME = re.compile(r"^(\d{4,})-[0-9a-f]+-(\d{4,})\.parquet$")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A worker's durable claim of a shard. `system_fingerprint` says what engine it has; None: that is not known."""

    attempt: int
    worker: str
    claimed_at: datetime
    system_fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Cancellation:
    """That a job is cancelled, since when, and whether that is because its time was over (a batch's)."""

    at: datetime
    is_expiry: bool


@dataclass(frozen=True, slots=True, order=True)
class ChunkFile:
    """A chunk on disk; ordered by attempt, then by sequence within it."""

    attempt: int
    sequence: int
    path: Path = field(compare=False)


_ATTEMPT = TypeAdapter(Attempt)


class JobDir:
    """Paths and records of one job directory. Holds no state but the path (the manifest, once read, is immutable)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"JobDir({str(self.path)!r})"

    @classmethod
    def open(cls, path: Path) -> "JobDir":
        """The existing job at `path`. Raises JobError where there is none, or where its manifest can't be read."""
        job = cls(path)
        _ = job.manifest
        return job

    @property
    def job_id(self) -> str:
        return self.path.name

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def deleted_path(self) -> Path:
        return self.path / "DELETED"

    @property
    def damaged_dir(self) -> Path:
        return self.path / "damaged"

    @property
    def shards_dir(self) -> Path:
        return self.path / "shards"

    @property
    def results_dir(self) -> Path:
        return self.path / "results"

    @property
    def success_path(self) -> Path:
        return self.results_dir / "_SUCCESS"

    @property
    def summary_path(self) -> Path:
        return self.path / "summary.json"

    @property
    def cancelled_path(self) -> Path:
        return self.path / "CANCELLED"

    @property
    def batch_path(self) -> Path:
        return self.path / "batch.json"

    @property
    def batch_dir(self) -> Path:
        return self.path / "batch"

    def shard_path(self, shard: int) -> Path:
        return self.shards_dir / f"{shard:05d}.parquet"

    def part_path(self, shard: int) -> Path:
        return self.results_dir / f"part-{shard:05d}.parquet"

    def chunks_dir(self, shard: int) -> Path:
        return self.path / "chunks" / f"{shard:05d}"

    def chunk_path(self, shard: int, *, attempt: int, uid: str, sequence: int) -> Path:
        return self.chunks_dir(shard) / f"{attempt:04d}-{uid}-{sequence:04d}.parquet"

    def attempts_dir(self, shard: int) -> Path:
        return self.path / "attempts" / f"{shard:05d}"

    def journal_path(self, shard: int, *, attempt: int) -> Path:
        return self.attempts_dir(shard) / f"{attempt:04d}.journal"

    def attempt_end_path(self, shard: int, *, attempt: int) -> Path:
        return self.attempts_dir(shard) / f"{attempt:04d}.end.json"

    # -- the manifest -------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether a job was submitted here (an unfinished submit leaves files but no manifest)."""
        return self.manifest_path.is_file()

    def check_exists(self) -> None:
        """Raise StorageError if the job that `manifest` was read from is not here any more.

        The guard of all that is written for a job: rows of one that was deleted must not bring its folder back, nor get
        into another that was submitted under its name.
        """
        try:
            _, identity = self._submitted
        except JobError as exc:
            raise StorageError(f"{exc}; nothing is written") from exc
        try:
            is_here = _identity(self.manifest_path.stat()) == identity
        except (FileNotFoundError, NotADirectoryError):
            is_here = False
        except OSError as exc:
            raise StorageError(f"{self.manifest_path}: cannot read: {store.reason(exc)}") from exc
        if not is_here:
            raise StorageError(
                f"{self.path}: the job was deleted while it was worked on; nothing more is written to it"
            )

    @property
    def manifest(self) -> Manifest:
        """The manifest, read once. Raises JobError naming the file and what to do."""
        return self._submitted[0]

    @cached_property
    def _submitted(self) -> tuple[Manifest, tuple[int, int]]:
        """The manifest, and what tells its file from that of another job of this name. Raises like `manifest`."""
        try:
            with self.manifest_path.open("rb") as file:
                identity = _identity(os.fstat(file.fileno()))
                data = file.read()
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise JobError(f"{self.path}: no job here (no manifest.json); `batcher list` shows the jobs") from exc
        except OSError as exc:
            raise StorageError(f"{self.manifest_path}: cannot read: {store.reason(exc)}") from exc
        return parse_manifest(data, path=self.manifest_path), identity

    def create_manifest(self, manifest: Manifest) -> bool:
        """Make the job exist. Returns False where another submit was first."""
        return store.create_if_absent(self.manifest_path, encode_manifest(manifest))

    # -- attempts -----------------------------------------------------------------------------------------------

    def claim_attempt(self, shard: int, *, worker: str, system_fingerprint: str | None = None) -> int:
        """Create the next attempt record of `shard` and return its number, from 1. Durable."""
        number = self.num_attempts(shard) + 1
        while True:
            record = Attempt(number, worker, datetime.now(UTC), system_fingerprint)
            path = self.attempts_dir(shard) / f"{number:04d}.json"
            if store.create_if_absent(path, _ATTEMPT.dump_json(record), guard=self.check_exists):
                return number
            number += 1

    def system_fingerprint(self, shard: int, attempt: int) -> str | None:
        """What engine an attempt had; None where that was not noted, or can't be read any more."""
        record = _read_attempt(self.attempts_dir(shard) / f"{attempt:04d}.json")
        return None if record is None else record.system_fingerprint

    def num_attempts(self, shard: int) -> int:
        """The highest attempt number of `shard`, 0 before its first claim."""
        matches = (_ATTEMPT_NAME.match(path.name) for path in list_folder(self.attempts_dir(shard)))
        return max((int(match[1]) for match in matches if match), default=0)

    def first_claim_at(self) -> datetime | None:
        """When work on the job began: the earliest first attempt of a shard."""
        claims = map(_claimed_at, (self.path / "attempts").glob("*/0001.json"))
        return min((claim for claim in claims if claim is not None), default=None)

    # -- chunks and parts ---------------------------------------------------------------------------------------

    def chunks(self, shard: int) -> list[ChunkFile]:
        """The chunks of `shard` in order of attempt and sequence."""
        found = []
        for path in list_folder(self.chunks_dir(shard)):
            if match := _CHUNK_NAME.match(path.name):
                found.append(ChunkFile(int(match[1]), int(match[2]), path))
        return sorted(found)

    def delete_chunks(self, shard: int, *, up_to: int | None = None) -> None:
        """Remove the chunks of a committed shard. Never raises: they are only dead weight.

        `up_to` is the attempt that has committed it: later ones can be of a `retry` that has opened the shard since.
        """
        if up_to is None:
            shutil.rmtree(self.chunks_dir(shard), ignore_errors=True)
            return
        with contextlib.suppress(StorageError, OSError):
            for chunk in self.chunks(shard):
                if chunk.attempt <= up_to:
                    chunk.path.unlink(missing_ok=True)
            # Fails where something is left.
            self.chunks_dir(shard).rmdir()

    def committed_shards(self) -> set[int]:
        """The shards whose part exists. One listing."""
        matches = (_PART_NAME.match(path.name) for path in list_folder(self.results_dir))
        return {int(match[1]) for match in matches if match}

    def pending_shards(self) -> list[ShardInfo]:
        """The shards without a part, in order."""
        committed = self.committed_shards()
        return [info for info in self.manifest.shards if info.shard not in committed]

    # -- cancelling ---------------------------------------------------------------------------------------------

    @property
    def is_cancelled(self) -> bool:
        return self.cancelled_path.exists()

    def cancel(self, *, is_expiry: bool = False, guard: store.Guard | None = None) -> bool:
        """Mark the job as cancelled; workers stop at their next row. Returns False where it was already.

        `guard` is for what is no job yet.
        """
        mark = datetime.now(UTC).isoformat() + (_EXPIRY_MARK if is_expiry else "")
        return store.create_if_absent(self.cancelled_path, mark.encode(), guard=guard or self.check_exists)

    @property
    def cancellation(self) -> Cancellation | None:
        """Since when the job is cancelled; None where it is not."""
        try:
            text = self.cancelled_path.read_text(errors="replace")
            mtime = self.cancelled_path.stat().st_mtime
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StorageError(f"{self.cancelled_path}: cannot read: {store.reason(exc)}") from exc
        try:
            at = datetime.fromisoformat(text.removesuffix(_EXPIRY_MARK).strip())
        except ValueError:
            # Made by hand: that it is there is what counts.
            at = datetime.fromtimestamp(mtime, UTC)
        return Cancellation(at if at.tzinfo else at.replace(tzinfo=UTC), text.endswith(_EXPIRY_MARK))

    def uncancel(self) -> None:
        store.delete(self.cancelled_path)

    @property
    def is_complete(self) -> bool:
        return self.success_path.exists()


def write_summary(job: JobDir, summary: bytes) -> None:
    """Write `summary.json` and then `_SUCCESS`."""
    store.replace(job.summary_path, summary, guard=job.check_exists)
    store.create_if_absent(job.success_path, b"", guard=job.check_exists)


def unset_success(job: JobDir) -> None:
    """Take back what `write_summary` wrote. Before a part goes: `_SUCCESS` must never stand beside a missing one."""
    store.delete(job.success_path)
    store.delete(job.summary_path)


def _claimed_at(record: Path) -> datetime | None:
    """When an attempt was claimed; None where the record is damaged: its number counts, and that is in its name."""
    attempt = _read_attempt(record)
    return None if attempt is None else attempt.claimed_at


def _read_attempt(record: Path) -> Attempt | None:
    try:
        return _ATTEMPT.validate_json(record.read_bytes())
    except (OSError, ValidationError):
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    """What tells a manifest from that of another job under the same name. Not the inode, which is soon used again."""
    return status.st_mtime_ns, status.st_size


def list_folder(folder: Path) -> list[Path]:
    """What is in a folder, nothing where there is none. Raises StorageError."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise StorageError(f"{folder}: cannot list: {exc.strerror or exc}") from exc
