"""The output files of a batch: its results as the lines that the API documents, made when somebody first asks.

    JOB/batch/output-<stamp>.jsonl     lines of the rows that are ok
    JOB/batch/errors-<stamp>.jsonl     lines of the rows that failed, and of those that never ran once it has ended
    JOB/batch/outputs.json             written last: which stamp these are of
    JOB/batch/output.deleted           the stamp whose output a client has deleted; likewise errors.deleted

The stamp names a state of the results, so what a `retry` or `resume` changes is written anew, and a reader of the old
file keeps it. Of two makers at once both write the same bytes.
"""

import contextlib
import hashlib
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from batcher.errors import StorageError
from batcher.jobdir.folder import JobDir
from batcher.manage.export import write_batch_output
from batcher.openai.answers import Unrun

_FILE_ID = re.compile(r"^file-(output|errors)-(.{1,128})\Z")
_INPUT_ID_PREFIX = "file-input-"
_STAMP_CHARS = 16


class OutputKind(StrEnum):
    """Which of the two."""

    OUTPUT = "output"
    ERRORS = "errors"


@dataclass(frozen=True, slots=True)
class Outputs:
    """The output files as they were made: bytes of each, None where it has no line."""

    stamp: str
    output_bytes: int | None
    error_bytes: int | None

    def num_bytes(self, kind: OutputKind) -> int | None:
        return self.output_bytes if kind is OutputKind.OUTPUT else self.error_bytes


_OUTPUTS = TypeAdapter(Outputs)


def output_path(job: JobDir, kind: OutputKind, *, stamp: str) -> Path:
    """The output file of one state of the results."""
    return job.batch_dir / f"{kind.value}-{stamp}.jsonl"


def _tombstone_path(job: JobDir, kind: OutputKind) -> Path:
    return job.batch_dir / f"{kind.value}.deleted"


def _outputs_path(job: JobDir) -> Path:
    return job.batch_dir / "outputs.json"


def output_id(job_id: str, kind: OutputKind) -> str:
    """The id of an output file."""
    return f"file-{kind.value}-{job_id}"


def parse_output_id(file_id: str) -> tuple[str, OutputKind] | None:
    """The job and the kind in the id of an output file, not checked further; None where it is another file's."""
    match = _FILE_ID.match(file_id)
    return (match[2], OutputKind(match[1])) if match else None


def virtual_input_id(job_id: str) -> str:
    """What stands for the input of a job of the command line, which is no uploaded file."""
    return f"{_INPUT_ID_PREFIX}{job_id}"


def is_virtual_input(file_id: str) -> bool:
    return file_id.startswith(_INPUT_ID_PREFIX)


def results_stamp(job: JobDir) -> str:
    """A name for the state of the results: another one whenever rows were added, computed again or given up."""
    digest = hashlib.sha256()
    listing = job.look()
    if listing.is_complete:
        # It says when the last part was committed.
        digest.update(job.store.read(job.summary_path))
    else:
        digest.update(f"{_unrun(job)}\n".encode())
        for info in job.manifest.shards:
            names = [chunk.path.name for chunk in listing.chunks(info.shard)]
            has_part = info.shard in listing.parts or info.shard in listing.retries
            part = job.store.head(job.part_path(info.shard)) if has_part else None
            if part is not None:
                names.append(f"part {part.version}")
            digest.update(f"{info.shard}: {names}\n".encode())
    return digest.hexdigest()[:_STAMP_CHARS]


def read_outputs(job: JobDir) -> Outputs | None:
    """What was made last; None where nothing was, or where it can't be read and will be made anew."""
    try:
        return _OUTPUTS.validate_json(job.store.read(_outputs_path(job)))
    except (OSError, StorageError, ValidationError):
        return None


def make_outputs(job: JobDir) -> Outputs:
    """The output files of what is finished now, made if they are not there yet. Raises StorageError."""
    while True:
        stamp = results_stamp(job)
        known = read_outputs(job)
        if known is not None and known.stamp == stamp and _are_there(job, known):
            return known
        made = _make(job, stamp)
        # What was read may be newer than the stamp: a worker that has not yet stopped, or a retry.
        if results_stamp(job) == stamp:
            job.store.replace(_outputs_path(job), _OUTPUTS.dump_json(made), guard=job.check_exists)
            _delete_others(job, stamp)
            return made


def delete_output(job: JobDir, kind: OutputKind) -> None:
    """Have an output file gone, until the results change."""
    stamp = results_stamp(job)
    job.store.replace(_tombstone_path(job, kind), stamp.encode(), guard=job.check_exists)
    job.store.delete_many([output_path(job, kind, stamp=stamp)])


def is_deleted(job: JobDir, kind: OutputKind) -> bool:
    """Whether a client has deleted the output file of the results as they are."""
    try:
        stamp = job.store.read(_tombstone_path(job, kind)).decode()
    except FileNotFoundError:
        return False
    return stamp == results_stamp(job)


def _unrun(job: JobDir) -> Unrun | None:
    """Why rows that are not finished will not be, if that is so."""
    cancellation = job.cancellation
    if cancellation is None:
        return None
    return Unrun.EXPIRED if cancellation.is_expiry else Unrun.CANCELLED


def _are_there(job: JobDir, made: Outputs) -> bool:
    return all(
        made.num_bytes(kind) is None
        or job.has(output_path(job, kind, stamp=made.stamp))
        # One that was deleted need not be made again.
        or is_deleted(job, kind)
        for kind in OutputKind
    )


def _make(job: JobDir, stamp: str) -> Outputs:
    job.check_exists()
    with contextlib.ExitStack() as begun:
        files = []
        for kind in OutputKind:
            files.append(job.store.begin(output_path(job, kind, stamp=stamp)))
            begun.callback(files[-1].discard)
        sizes = [0, 0]

        def write(to: int, line: bytes) -> None:
            sizes[to] += files[to].write(line)

        write_batch_output(job, partial(write, 0), partial(write, 1), unrun=_unrun(job))
        for file, size in zip(files, sizes, strict=True):
            # Another maker's holds the same.
            if size:
                file.commit(guard=job.check_exists)
    return Outputs(stamp, *(size or None for size in sizes))


def _delete_others(job: JobDir, stamp: str) -> None:
    files = (job.batch_dir / name for name in job.store.names(job.batch_dir))
    job.store.discard([path for path in files if path.suffix == ".jsonl" and not path.stem.endswith(f"-{stamp}")])
