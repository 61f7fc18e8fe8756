"""The manifest: a job as it was submitted. Written last by submit, never changed."""

import base64
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from batcher.errors import JobError
from batcher.ids import ID_PATTERN, is_model_name, response_digits
from batcher.selection import ALL_ROWS, RowSelection
from batcher.types import TAKE_ALL, AnswerRules, SamplingParams

#: 2: shards hold the parameters beyond the documented ones and chats, results have `logprobs`. 3: shards hold further
#: parameters, which are at their defaults in jobs of version 2, and the job has a uid.
MANIFEST_VERSION = 3
_READABLE_VERSIONS = (2, 3)


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """What the manifest says of one shard. `model` None marks a shard of refused rows: no worker is needed for it."""

    shard: int
    model: str | None
    num_rows: int
    num_choices: int


@dataclass(frozen=True, slots=True)
class InputColumn:
    """A column of the input: its `name` there, and the `column` of the results that has its values.

    `column` None: it is a field of the request, such as max_tokens, and no column has it. `is_message`: the values are
    the users' messages of the chats that `column` has.
    """

    name: str
    column: str | None
    is_message: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """A job as submitted. Immutable; every other state is derived from the files beside it.

    `seed` is the job's seed, from which rows without one derive theirs. `carried_ipc` is the Arrow schema of the
    carried input columns, as base64 of its IPC message. `fingerprint` identifies inputs and options, so that the same
    command given again is known as a resume. `row_timeout_s` bounds the time of each choice, from its first prefill.
    No choice takes more than `longest_request` tokens, prompt and completion, by the bytes of its prompt. `uid` is of
    this job alone, whatever its name; "" in jobs of version 2. `optional_ipc` is the schema of its optional result
    columns (see `optional_columns`), likewise; "" where it has none. `answers` says which answers it does not take,
    `selection` which rows of the inputs it has, `columns` are those of the input, in its order; none in older jobs.
    """

    job_id: str
    created_at: datetime
    inputs: tuple[str, ...]
    fingerprint: str
    defaults: SamplingParams
    default_model: str | None
    seed: int
    num_rows: int
    num_refused: int
    carried_ipc: str
    shards: tuple[ShardInfo, ...]
    row_timeout_s: float | None = None
    longest_request: int | None = None
    uid: str = ""
    optional_ipc: str = ""
    answers: AnswerRules = TAKE_ALL
    selection: RowSelection = ALL_ROWS
    columns: tuple[InputColumn, ...] = ()
    version: int = MANIFEST_VERSION

    @property
    def carried(self) -> pa.Schema:
        """Names and types of the input columns that go along to the results."""
        return _decode_schema(self.carried_ipc)

    @property
    def optional(self) -> pa.Schema:
        """Names and types of the result columns that not all jobs have, see `optional_columns`."""
        return _decode_schema(self.optional_ipc) if self.optional_ipc else pa.schema([])

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose workers this job needs, in order of first appearance."""
        return tuple(dict.fromkeys(s.model for s in self.shards if s.model is not None))

    @property
    def identity(self) -> str:
        """An id of this job alone, whatever its name and its place: what its keys at a broker are told by."""
        return self.uid or f"{self.job_id}-{self.created_at:%Y%m%dT%H%M%S.%fZ}"

    def response_digits(self, row: int) -> str:
        """What the ids of the response to a row are made of, see `ids.response_digits`."""
        return response_digits(self.uid or f"{self.job_id} {self.created_at.isoformat()}", row)

    @property
    def num_choices(self) -> int:
        return sum(shard.num_choices for shard in self.shards)


_MANIFEST = TypeAdapter(Manifest)


def encode_schema(schema: pa.Schema) -> str:
    """`Manifest.carried_ipc` of a schema."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode("ascii")


def _decode_schema(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def encode_manifest(manifest: Manifest) -> bytes:
    """The content of the file."""
    return _MANIFEST.dump_json(manifest, indent=1)


def parse_manifest(data: bytes, *, path: Path) -> Manifest:
    """The manifest that the file at `path` holds. Raises JobError saying what is wrong with it and what to do."""
    try:
        manifest = _MANIFEST.validate_json(data)
    except ValidationError as exc:
        first = exc.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise JobError(f"{path}: damaged ({where}: {first['msg']}); restore it, or submit the input again") from exc
    if manifest.version not in _READABLE_VERSIONS:
        readable = " and ".join(map(str, _READABLE_VERSIONS))
        raise JobError(
            f"{path}: format version {manifest.version}, this Batcher reads {readable}; "
            "use the version that submitted the job"
        )
    if contradiction := _contradiction(manifest):
        raise JobError(f"{path}: damaged or changed ({contradiction}); restore it, or submit the input again")
    return manifest


def _contradiction(manifest: Manifest) -> str:
    """What of a manifest cannot be true; "" where nothing is wrong with it."""
    if not ID_PATTERN.match(manifest.job_id):
        return f"it is of the job {manifest.job_id[:60]!r}"
    shards = manifest.shards
    numbers = [info.shard for info in shards]
    if numbers != list(range(len(shards))):
        return f"its shards are not numbered 0 to {len(shards) - 1}"
    for info in shards:
        if info.num_rows < 1 or (info.model is not None and info.num_choices < info.num_rows):
            return f"shard {info.shard} cannot have {info.num_rows} rows and {info.num_choices} choices"
        if info.model is not None and not is_model_name(info.model):
            return f"shard {info.shard} has the model {info.model!r}"
    num_refused = sum(info.num_rows for info in shards if info.model is None)
    for name, said, found in (
        ("num_rows", manifest.num_rows, sum(info.num_rows for info in shards)),
        ("num_refused", manifest.num_refused, num_refused),
    ):
        if said != found:
            return f"{name} is {said}, its shards add up to {found}"
    for name, schema in (("carried_ipc", manifest.carried_ipc), ("optional_ipc", manifest.optional_ipc)):
        try:
            _ = _decode_schema(schema) if schema or name == "carried_ipc" else None
        except (ValueError, OSError, pa.ArrowException) as exc:
            return f"{name} is no schema: {exc}"
    return ""
