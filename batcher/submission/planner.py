"""An input becomes a job: what `batcher submit` does.

One pass over the input: rows are read (`readers`), validated (`rows`), split into shards (`splitter`) and written as
they stream by. The parts of refused rows are committed right away, since no worker is needed for them. The manifest
comes last: without it there is no job, and what a killed submit left is cleared by the next one.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from batcher.errors import InputError, JobError
from batcher.ids import check_id
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import Manifest, encode_schema
from batcher.jobdir.optional_columns import extended
from batcher.jobdir.refused import commit_parts
from batcher.jobdir.root import check_place
from batcher.jobdir.sending import Send
from batcher.jobdir.shards import Shard, write_shard
from batcher.jobdir.standing import USUAL, change_standing, write_first_standing
from batcher.submission import staging
from batcher.submission.bad_rows import BadRowsWatch
from batcher.submission.carried import CarriedColumns
from batcher.submission.readers.bounds import Checkpoint, go_on
from batcher.submission.source import NUM_LISTED, Input, Source, SubmitOptions
from batcher.submission.splitter import Splitter
from batcher.types import OnTruncation

#: Of a seed that nobody gave. Fewer than a seed can have: as many as JSON readers with doubles keep.
DRAWN_SEED_BITS = 53


@dataclass(frozen=True, slots=True)
class Submitted:
    """`is_new`: this call made the job."""

    manifest: Manifest
    is_new: bool


def submit(
    job: JobDir,
    inputs: Sequence[Input],
    options: SubmitOptions,
    *,
    send: Send | None = None,
    on_progress: Callable[[int], None] | None = None,
    checkpoint: Checkpoint = go_on,
) -> Submitted:
    """Make `job` from `inputs`, streaming, and send it; `on_progress` gets the number of rows read so far.

    `checkpoint` is called before each block that is read, written or unpacked; where it raises, nothing is left behind.

    `send` has a new job worked on; None: the caller does. A job that is there already stays as it is if input and
    options are the same, but for its place among others: the same call again is a resume, and `manage.resume` does what
    that takes. Raises JobError if
    they are not the same or the folder lies inside another job, JobBusyError if another submit is writing it;
    InputError if the input can't be used, and then nothing is left behind; BrokerError of `send`, the job is there.
    """
    check_id(job.job_id, what="job id")
    source = Source(inputs, options, own=job.path)
    manifest = _make(job, source, on_progress or _ignore, checkpoint)
    if manifest is None:
        manifest = _same_job(job, source)
        if options.standing != USUAL:
            change_standing(job, options.standing)
        return Submitted(manifest, is_new=False)
    if send is not None:
        send(job, manifest.shards)
    return Submitted(manifest, is_new=True)


def _make(job: JobDir, source: Source, on_progress: Callable[[int], None], checkpoint: Checkpoint) -> Manifest | None:
    """Make the job; None where there is one."""
    if job.exists():
        return None
    check_place(job)
    with staging.locked(job):
        # Another submit may have written the job while this one waited to look.
        return None if job.exists() else _write_job(job, source, on_progress, checkpoint)


def _write_job(job: JobDir, source: Source, on_progress: Callable[[int], None], checkpoint: Checkpoint) -> Manifest:
    staging.clear_leftovers(job)
    try:
        manifest = _write_shards(job, source, on_progress, checkpoint)
        for shard in manifest.shards:
            checkpoint()
            commit_parts(job, manifest, [shard])
        write_first_standing(job, source.options.standing)
        if not job.create_manifest(manifest):
            raise JobError(f"{job.path}: another submit was first; run the command again to see whose job it is")
    except BaseException:
        if not job.exists():
            staging.clear_leftovers(job)
        raise
    return manifest


def _write_shards(job: JobDir, source: Source, on_progress: Callable[[int], None], checkpoint: Checkpoint) -> Manifest:
    created_at = datetime.now(UTC)
    options = source.options
    optional = options.optional
    carried = CarriedColumns(optional=optional.names)
    splitter = Splitter(
        lambda number, shard: _create_shard(job, number, shard),
        carried=carried,
        shard_rows=options.shard_rows,
        retries_truncated=options.answers.on_truncation is OnTruncation.RETRY,
    )
    watch = BadRowsWatch(options.context_lengths)
    listed: list[str] = []
    num_rows = num_refused = 0
    for batch in source.scan(checkpoint):
        num_rows += len(batch.rows)
        watch.add(batch)
        if watch.is_certain:
            _refuse_bad_rows(watch, options)
        messages = [row.error.message for row in batch.rows if row.error is not None]
        num_refused += len(messages)
        listed.extend(messages[: NUM_LISTED - len(listed)])
        if not (options.strict and num_refused):
            splitter.add(batch)
        on_progress(num_rows)
    if options.strict and num_refused:
        raise InputError(_strict_message(listed, num_refused=num_refused, num_rows=num_rows))
    _refuse_bad_rows(watch, options)
    optional = extended(optional, splitter.asked.values())
    return Manifest(
        job_id=job.job_id,
        created_at=created_at,
        inputs=source.inputs,
        fingerprint=source.fingerprint(),
        defaults=options.params,
        default_model=options.default_model,
        seed=secrets.randbits(DRAWN_SEED_BITS) if options.seed is None else options.seed,
        num_rows=num_rows,
        num_refused=num_refused,
        shards=splitter.finish(),
        carried_ipc=encode_schema(carried.schema),
        row_timeout_s=options.row_timeout_s,
        longest_request=splitter.longest_request,
        uid=secrets.token_hex(16),
        answers=options.answers,
        selection=options.selection,
        columns=source.columns(carried.names),
        optional_ipc=encode_schema(optional) if optional.names else "",
    )


def _ignore(num_rows: int) -> None:
    """Nobody looks."""


def _refuse_bad_rows(watch: BadRowsWatch, options: SubmitOptions) -> None:
    if not options.allow_bad_rows and (refusal := watch.find(is_strict=options.strict)):
        raise InputError(refusal)


def _create_shard(job: JobDir, number: int, shard: Shard) -> None:
    if not write_shard(job.shard_path(number), shard, store=job.store):
        raise JobError(f"{job.shard_path(number)}: exists already; another submit is writing this job")


def _same_job(job: JobDir, source: Source) -> Manifest:
    manifest = job.manifest
    found = source.fingerprint()
    if manifest.fingerprint == found:
        return manifest
    differs = [
        what
        for what, mine, theirs in zip(
            ("input", "options"), found.split("-"), manifest.fingerprint.split("-"), strict=False
        )
        if mine != theirs
    ]
    what = f"with other {' and '.join(differs) or 'input'}"
    if manifest.selection != source.options.selection:
        what = f"of {manifest.selection} of the input, and this is one of {source.options.selection}"
    raise JobError(
        f"{job.path}: holds a job {what}; `batcher resume` continues that one, for a new one choose another folder or "
        "job id"
    )


def _strict_message(listed: Sequence[str], *, num_refused: int, num_rows: int) -> str:
    lines = [f"{num_refused} of {num_rows} rows are not valid, and --strict takes all or none:", *listed]
    if num_refused > len(listed):
        lines.append(f"... and {num_refused - len(listed)} more")
    return "\n  ".join(lines)
