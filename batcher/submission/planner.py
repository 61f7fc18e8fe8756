"""An input becomes a job: what `batcher submit` does.

One pass over the input: rows are read (`readers`), validated (`rows`), split into shards (`splitter`) and written as
they stream by. The parts of refused rows are committed right away, since no worker is needed for them. The manifest
comes last: without it there is no job, and what a killed submit left is cleared by the next one.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from batcher.errors import InputError, JobError
from batcher.ids import check_id, check_model_name
from batcher.jobdir import results
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import Manifest, ShardInfo, encode_schema
from batcher.jobdir.shards import Shard, read_shard, write_shard
from batcher.openai.parameters import ROW_FIELDS
from batcher.submission import staging
from batcher.submission.bad_rows import BadRowsWatch
from batcher.submission.carried import CarriedColumns
from batcher.submission.custom_ids import CustomIds
from batcher.submission.readers import files as prompts
from batcher.submission.readers.files import Readable, ReadOptions
from batcher.submission.readers.paths import shown_path
from batcher.submission.rows import RowBatch, RowParser
from batcher.submission.splitter import Splitter
from batcher.submission.template import parse_template
from batcher.types import Completion, Request, SamplingParams

#: The parameters that every fingerprint has.
_FIRST_PARAMS = frozenset(
    {
        *("max_tokens", "temperature", "top_p", "stop", "seed", "n", "best_of", "echo", "logprobs"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "suffix", "clips_max_tokens"),
    }
)

#: Of a seed that nobody gave. Fewer than a seed can have: as many as JSON readers with doubles keep.
DRAWN_SEED_BITS = 53

#: How many bad rows a refusal under `strict` lists.
NUM_LISTED = 20


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """How an input becomes requests; the command line's options of the same names.

    `default_model` and `params` are for rows that do not say. A row naming a model outside `known_models` becomes an
    error row `model_not_found`; None: the models are not known here, any valid name is taken. `template` is the text
    itself. `shard_rows` None: grows with the input. `seed` None: one is drawn, and noted in the manifest.
    `row_timeout_s` bounds the time of each choice, from its first prefill. `chat_max_tokens` is the max_tokens of a
    chat that does not say; None: the usual ones, or fewer in a small context. A row meant for another `endpoint` is an
    error row; None: each goes to its own. `chat` makes the prompts of plain rows the user's messages of chats; `system`
    is the text of the message that goes before those of a plain row without a system message. `fields` are columns of
    plain rows that are fields of the request, such as `top_k`, rather than the user's own. `reading` is how the files
    are read.

    Without `allow_bad_rows` an input whose rows, or first thousand rows, all have the same mistake is refused as a
    whole. `context_lengths` are those of the models that will run, in tokens, as far as they are known: a mistake is
    also a max_tokens that leaves no room for a prompt.
    """

    default_model: str | None
    params: SamplingParams
    known_models: frozenset[str] | None
    prompt_column: str | None = None
    id_column: str | None = None
    template: str | None = None
    strict: bool = False
    shard_rows: int | None = None
    seed: int | None = None
    row_timeout_s: float | None = None
    chat_max_tokens: int | None = None
    endpoint: str | None = None
    chat: bool = False
    system: str | None = None
    fields: tuple[str, ...] = ()
    allow_bad_rows: bool = True
    context_lengths: Mapping[str, int] = field(default_factory=dict)
    reading: ReadOptions = field(default_factory=ReadOptions)


def submit(
    job: JobDir,
    inputs: Sequence[str],
    options: SubmitOptions,
    *,
    stdin: Readable | None = None,
    stdin_name: str = prompts.STDIN_NAME,
    on_progress: Callable[[int], None] | None = None,
) -> Manifest:
    """Make `job` from `inputs`, streaming, and return its manifest; `on_progress` gets the number of rows read so far.

    A job that is there already is returned as it is if input and options are the same: the same command again is a
    resume. `stdin_name` is what messages call `stdin`. Raises JobError if they are not, JobBusyError if another submit
    is writing it; InputError if the input can't be used, and then nothing is left behind.
    """
    check_id(job.job_id, what="job id")
    source = Input(inputs, options, stdin, stdin_name=stdin_name, own=job.path)
    if not job.exists():
        with staging.locked(job):
            # Another submit may have written the job while this one waited to look.
            if not job.exists():
                return _write_job(job, source, on_progress)
    return _same_job(job, source)


def fingerprint(inputs: Sequence[str], options: SubmitOptions, *, stdin: Readable | None = None) -> str:
    """What tells one job from another: a digest of what the inputs hold, and one of the options that change the rows.

    Reads the files whole, at the speed of the disk, and `stdin` to its end where it is given. Names and times of files
    do not count, so an input generated again is the same input. What can be read only once (standard input, pipes)
    counts for nothing here.
    """
    return Input(inputs, options, stdin).fingerprint()


def commit_refused(job: JobDir) -> int:
    """Write the missing parts of the shards of refused rows, from their shard files. Returns how many it wrote."""
    return _commit_refused(job, job.manifest, [info for info in job.pending_shards() if info.model is None])


def read_requests(
    inputs: Sequence[str], options: SubmitOptions, *, limit: int, stdin: Readable | None = None
) -> list[Request]:
    """The first `limit` good rows, as submit would have them; reads hardly further. Raises InputError."""
    rows = (row for batch in Input(inputs, options, stdin).scan() for row in batch.rows)
    return list(islice((row.request for row in rows if row.error is None), limit))


class Input:
    """The rows of a command: files, options, and how much of standard input has been seen. Read once."""

    def __init__(
        self,
        inputs: Sequence[str],
        options: SubmitOptions,
        stdin: Readable | None,
        *,
        stdin_name: str = prompts.STDIN_NAME,
        own: Path | None = None,
    ) -> None:
        self.inputs = tuple(map(shown_path, inputs))
        self.options = options
        self._stdin_name = stdin_name
        self._files = prompts.expand(inputs, own=own)
        self._stdin = _HashedStream(stdin) if stdin is not None and prompts.STDIN in inputs else None
        _check_file_column(options)
        if options.default_model is not None:
            check_model_name(options.default_model)
        self._parser = RowParser(
            params=options.params,
            default_model=options.default_model,
            chat_max_tokens=options.chat_max_tokens,
            known_models=options.known_models,
            prompt_column=options.prompt_column,
            id_column=options.id_column,
            template=parse_template(options.template) if options.template is not None else None,
            endpoint=options.endpoint,
            chat=options.chat,
            system=options.system,
            fields=options.fields,
        )

    def scan(self) -> Iterator[RowBatch]:
        """The validated rows. Raises InputError for a file that can't be read, and at the end for repeated ids."""
        num_rows = 0
        with CustomIds() as ids:
            for raw in prompts.read_batches(
                self._files, self.options.reading, stdin=self._stdin, stdin_name=self._stdin_name
            ):
                batch = self._parser.parse(raw, first_row=num_rows)
                num_rows += len(batch.rows)
                ids.add([row.request.custom_id for row in batch.rows], batch.origin)
                yield batch
            if self.options.id_column is not None and not self._parser.has_ids:
                raise InputError(f"--id-column {self.options.id_column}: no row has a value there; correct the name")
            ids.check()

    def fingerprint(self) -> str:
        """See `fingerprint`. Of standard input it reads what is left, so that it covers all of it."""
        options = self.options
        digests: list[object] = []
        for file in self._files:
            if file.name == prompts.STDIN and self._stdin is not None:
                digests.append(self._stdin.finish())
            else:
                digests.append("stream" if prompts.is_stream(file.name) else _digest(Path(file.name)))
            # What the name of a file says of its rows counts.
            if columns := prompts.file_columns(file, options.reading):
                digests.append(dict(columns))
        # Not known_models, context_lengths and shard_rows: they change where the rows run, not what they are. Nor
        # row_timeout_s: who finds it too short should be able to go on with the job.
        settings = [
            options.default_model,
            _said_of(options.params),
            options.chat_max_tokens,
            options.prompt_column,
            options.id_column,
            options.template,
            options.strict,
            _said_of_seed(options.seed),
        ]
        # Only where there is one: jobs of the command line have had none.
        settings += [options.endpoint] if options.endpoint is not None else []
        # Likewise.
        if options.chat or options.system is not None:
            settings.append({"chat": options.chat, "system": options.system})
        if options.fields:
            settings.append({"fields": sorted(set(options.fields))})
        if options.reading != ReadOptions():
            settings.append(asdict(options.reading))
        halves = (json.dumps(half).encode() for half in (digests, settings))
        return "-".join(hashlib.sha256(half).hexdigest()[:32] for half in halves)


def _write_job(job: JobDir, source: Input, on_progress: Callable[[int], None] | None) -> Manifest:
    staging.clear_leftovers(job)
    try:
        manifest = _write_shards(job, source, on_progress)
        _commit_refused(job, manifest, [info for info in manifest.shards if info.model is None])
        if not job.create_manifest(manifest):
            raise JobError(f"{job.path}: another submit was first; run the command again to see whose job it is")
    except BaseException:
        if not job.exists():
            staging.clear_leftovers(job)
        raise
    return manifest


def _write_shards(job: JobDir, source: Input, on_progress: Callable[[int], None] | None) -> Manifest:
    created_at = datetime.now(UTC)
    options = source.options
    carried = CarriedColumns()
    splitter = Splitter(
        lambda number, shard: _create_shard(job, number, shard), carried=carried, shard_rows=options.shard_rows
    )
    watch = BadRowsWatch(options.context_lengths)
    listed: list[str] = []
    num_rows = num_refused = 0
    for batch in source.scan():
        num_rows += len(batch.rows)
        watch.add(batch)
        if watch.is_certain:
            _refuse_bad_rows(watch, options)
        messages = [row.error.message for row in batch.rows if row.error is not None]
        num_refused += len(messages)
        listed.extend(messages[: NUM_LISTED - len(listed)])
        if not (options.strict and num_refused):
            splitter.add(batch)
        if on_progress is not None:
            on_progress(num_rows)
    if options.strict and num_refused:
        raise InputError(_strict_message(listed, num_refused=num_refused, num_rows=num_rows))
    _refuse_bad_rows(watch, options)
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
    )


def _refuse_bad_rows(watch: BadRowsWatch, options: SubmitOptions) -> None:
    if not options.allow_bad_rows and (refusal := watch.find(is_strict=options.strict)):
        raise InputError(refusal)


def _create_shard(job: JobDir, number: int, shard: Shard) -> None:
    if not write_shard(job.shard_path(number), shard):
        raise JobError(f"{job.shard_path(number)}: exists already; another submit is writing this job")


def _commit_refused(job: JobDir, manifest: Manifest, infos: Sequence[ShardInfo]) -> int:
    num_written = 0
    for info in infos:
        shard = read_shard(job.shard_path(info.shard), carried=manifest.carried)
        created = int(manifest.created_at.timestamp())
        completions = [Completion(row.request, id="", created=created, error=row.error) for row in shard.rows]
        table = results.build_table(completions, carried=shard.carried, attempt=None, worker=None)
        num_written += results.write_file(job.part_path(info.shard), table)
    return num_written


def _same_job(job: JobDir, source: Input) -> Manifest:
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
    raise JobError(
        f"{job.path}: holds a job with other {' and '.join(differs) or 'input'}; "
        f"`batcher resume` continues that one, for a new one choose another folder or job id"
    )


def _strict_message(listed: Sequence[str], *, num_refused: int, num_rows: int) -> str:
    lines = [f"{num_refused} of {num_rows} rows are not valid, and --strict takes all or none:", *listed]
    if num_refused > len(listed):
        lines.append(f"... and {num_refused - len(listed)} more")
    return "\n  ".join(lines)


def _said_of_seed(seed: int | None) -> int | str:
    """A seed as a fingerprint has it. None is 0, as it was while 0 was the default: the command that made such a job
    still finds it. A 0 that was given is another thing."""
    return "0" if seed == 0 else seed or 0


def _said_of(params: SamplingParams) -> dict[str, object]:
    """The parameters as a fingerprint has them: one that is newer than those counts only where it is not at its
    default, so that a command given again finds the job that an older Batcher made."""
    default = SamplingParams()
    said = asdict(params)
    return {name: said[name] for name in said if name in _FIRST_PARAMS or said[name] != getattr(default, name)}


class _HashedStream:
    """Standard input, and the digest of what was read of it."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def finish(self) -> str:
        """Read the rest; the digest of everything."""
        while self.read(1 << 20):
            pass
        return self._hash.hexdigest()


def _check_file_column(options: SubmitOptions) -> None:
    """Raise InputError for a column of file names that has the name of a field of the request."""
    name = options.reading.file_column
    fields = {*ROW_FIELDS, *options.fields, "messages", options.prompt_column, options.id_column}
    if name is not None and (name in fields or not name):
        raise InputError(f"--file-column {name}: that column is a field of the request; choose another name")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
