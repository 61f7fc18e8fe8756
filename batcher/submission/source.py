"""What a job is made of: inputs, the options that make requests of their rows, and the fingerprint of both."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

import pyarrow as pa

from batcher.errors import InputError
from batcher.ids import check_model_name
from batcher.jobdir.manifest import InputColumn
from batcher.jobdir.optional_columns import optional_schema
from batcher.jobdir.standing import USUAL, Standing
from batcher.openai.parameters import ROW_FIELDS
from batcher.selection import ALL_ROWS, RowSelection
from batcher.submission.custom_ids import CustomIds
from batcher.submission.readers.bounds import MAX_LINE_BYTES, Bounds, Checkpoint, UnpackLimits, go_on
from batcher.submission.readers.digests import RowsDigest
from batcher.submission.readers.files import InputStream, ReadOptions, file_columns, read_batches
from batcher.submission.readers.paths import STREAM, InputFile, expand, is_pipe, shown_path
from batcher.submission.rows import RowBatch, RowParser
from batcher.submission.sampling import NumberedBatch, select_rows
from batcher.submission.template import parse_template
from batcher.types import TAKE_ALL, AnswerRules, Reasoning, Request, SamplingParams

#: A file, a folder or a glob by name, or what is no file.
Input = str | InputStream

#: How many bad rows a refusal or a report lists.
NUM_LISTED = 20

#: The parameters that every fingerprint has.
_FIRST_PARAMS = frozenset(
    {
        *("max_tokens", "temperature", "top_p", "stop", "seed", "n", "best_of", "echo", "logprobs"),
        *("presence_penalty", "frequency_penalty", "logit_bias", "suffix", "clips_max_tokens"),
    }
)


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
    are read, `unpack_limits` how much they may unpack to, and `max_line_bytes` how long a row may be. `answers` says
    which answers are not taken.

    Without `allow_bad_rows` an input whose rows, or first thousand rows, all have the same mistake is refused as a
    whole. `context_lengths` are those of the models that will run, in tokens, as far as they are known: a mistake is
    also a max_tokens that leaves no room for a prompt.

    `selection` says which rows of the input are wanted; a sample is drawn by `seed`, None: by 0.

    `standing` is the job's place among others, and changes nothing of what its rows are.

    `reasoning` is what becomes of the thoughts in chats (see `types.Reasoning`). None: they are split where one of the
    models that will run reasons (`models_reason`; None: nobody knows), else kept.
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
    unpack_limits: UnpackLimits = field(default_factory=UnpackLimits)
    max_line_bytes: int = MAX_LINE_BYTES
    answers: AnswerRules = TAKE_ALL
    reasoning: str | None = None
    models_reason: bool | None = None
    selection: RowSelection = ALL_ROWS
    standing: Standing = USUAL

    @property
    def chat_reasoning(self) -> str:
        """What becomes of the thoughts in chats that do not say."""
        return self.reasoning or (Reasoning.SPLIT if self.models_reason else Reasoning.KEEP).value

    @property
    def optional(self) -> pa.Schema:
        """The optional columns that the results have; that of calls also where a batch line has tools."""
        return optional_schema(replace(self.params, reasoning=self.chat_reasoning), has_tools="tools" in self.fields)


def fingerprint(inputs: Sequence[Input], options: SubmitOptions) -> str:
    """What tells one job from another: a digest of what the inputs hold, and one of the options that change the rows.

    Reads files and streams whole, at the speed of the disk, and where the first rows are wanted hardly further than
    these. Names and times of files do not count, so an input generated again is the same input. What a named pipe holds
    counts for nothing, but for its first rows.
    """
    return Source(inputs, options).fingerprint()


def read_requests(inputs: Sequence[Input], options: SubmitOptions, *, limit: int) -> list[Request]:
    """The first `limit` good rows, as submit would have them; reads hardly further. Raises InputError."""
    rows = (row for batch in Source(inputs, options).scan() for row in batch.rows)
    return list(islice((row.request for row in rows if row.error is None), limit))


class Source:
    """Inputs and options, which give rows once. `own` is the folder of the job that is made of them."""

    def __init__(self, inputs: Sequence[Input], options: SubmitOptions, *, own: Path | None = None) -> None:
        self.inputs = tuple(shown_path(each) if isinstance(each, str) else STREAM for each in inputs)
        self.options = options
        self._files = expand(inputs, own=own)
        #: Of the rows, where the first ones are wanted: what comes behind them may have no end.
        self._first_rows = RowsDigest()
        self._is_scanned = False
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
            reasoning=options.chat_reasoning,
            can_split=options.chat_reasoning == Reasoning.SPLIT or options.models_reason is False,
        )

    def scan(self, checkpoint: Checkpoint = go_on) -> Iterator[RowBatch]:
        """The validated rows. Raises InputError for a file that can't be read, and at the end for repeated ids.

        `checkpoint` is called before each block that is read, unpacked or checked; what it raises ends the reading.
        """
        with CustomIds() as ids:
            for raw in self._selected(self._bounds(checkpoint)):
                checkpoint()
                batch = self._parser.parse(raw.batch, numbers=raw.rows)
                ids.add([row.request.custom_id for row in batch.rows], batch.origin)
                yield batch
            if self.options.id_column is not None and not self._parser.has_ids:
                raise InputError(f"--id-column {self.options.id_column}: no row has a value there; correct the name")
            ids.check()

    def _bounds(self, checkpoint: Checkpoint) -> Bounds:
        return Bounds(checkpoint, self.options.unpack_limits, self.options.max_line_bytes)

    def _selected(self, bounds: Bounds) -> Iterator[NumberedBatch]:
        self._is_scanned = True
        raw_batches = read_batches(self._files, self.options.reading, bounds)
        for raw in select_rows(raw_batches, self.options.selection, seed=self.options.seed or 0):
            yield raw
            if self.options.selection.limit is not None:
                self._first_rows.add(raw.batch)

    def columns(self, carried: Mapping[str, str]) -> tuple[InputColumn, ...]:
        """The columns of what was scanned, see `InputColumns.found`."""
        return self._parser.columns.found(carried, has_ids=self._parser.has_ids)

    def fingerprint(self) -> str:
        """See the function. Of streams it reads what is left."""
        options = self.options
        digests = self._whole_digests() if options.selection.limit is None else [self._first_digest()]
        # Not known_models, context_lengths and shard_rows: they change where the rows run, not what they are. Nor
        # row_timeout_s and the limits: who finds one too small should be able to go on with the job.
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
        if options.reasoning is not None:
            settings.append({"reasoning": options.reasoning})
        if options.fields:
            settings.append({"fields": sorted(set(options.fields))})
        if options.answers != TAKE_ALL:
            settings.append({"answers": asdict(options.answers)})
        if options.selection != ALL_ROWS:
            settings.append({"selection": asdict(options.selection)})
        if options.reading != ReadOptions():
            settings.append(asdict(options.reading))
        halves = (json.dumps(half).encode() for half in (digests, settings))
        return "-".join(hashlib.sha256(half).hexdigest()[:32] for half in halves)

    def _whole_digests(self) -> list[object]:
        digests: list[object] = []
        for file in self._files:
            if isinstance(file, InputFile):
                digests.append("stream" if is_pipe(file.name) else _digest(Path(file.name)))
            else:
                digests.append(file.digest())
            # What the name of a file says of its rows counts.
            if columns := file_columns(file, self.options.reading):
                digests.append(dict(columns))
        return digests

    def _first_digest(self) -> str:
        if not self._is_scanned:
            for _ in self._selected(self._bounds(go_on)):
                pass
        return self._first_rows.hexdigest()


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
