"""Result tables: the Arrow schema, chunks (checkpoints) and parts (commits): writing, reading, joining.

One row a choice, flat, the same schema in every chunk and part of a job even where a column is all null, so that
any Parquet reader sees `results/*.parquet` as one clean dataset. A request that failed has one row, of index 0.
Each file's footer carries its `Counts`, so that status and summary read footers, not rows. Files are sealed (see
`sealed`): one that is torn, or has a single bit that flipped, is refused as a whole.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from batcher.arrow.tables import take_rows
from batcher.errors import CorruptFileError
from batcher.jobdir import optional_columns, sealed
from batcher.jobdir.local_store import LOCAL
from batcher.jobdir.manifest import Manifest
from batcher.jobdir.optional_columns import ResultRow
from batcher.jobdir.sealed import MissingFileError
from batcher.jobdir.store import Guard, Store
from batcher.openai.answers import CHAT_OBJECT, COMPLETION_OBJECT, logprobs_object
from batcher.types import Choice, Completion, RowStatus

logger = logging.getLogger(__name__)

RESULT_FIELDS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("custom_id", pa.string(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("object", pa.string()),
        pa.field("created", pa.timestamp("s", tz="UTC")),
        pa.field("model", pa.string()),
        pa.field("prompt", pa.string()),
        pa.field("text", pa.string()),
        pa.field("finish_reason", pa.string()),
        pa.field("logprobs", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("completion_tokens", pa.int32()),
        pa.field("total_tokens", pa.int32()),
        pa.field("cached_tokens", pa.int32()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("attempts", pa.int32()),
        pa.field("latency_ms", pa.float64()),
        pa.field("worker", pa.string()),
    ]
)

_COUNTS_KEY = b"batcher.counts"
#: In the footer of a part: the numbers of the retries whose answers it holds.
_RETRIES_KEY = b"batcher.retries"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a set of finished rows adds up to. `num_rows` counts input rows, `num_choices` result rows that are ok.

    `copied_tokens` are those completion tokens for which nothing was computed, as an equal request has the same answer;
    0 in files of an older Batcher.
    """

    num_rows: int = 0
    num_ok: int = 0
    num_errors: int = 0
    num_choices: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)
    error_codes: dict[str, int] = field(default_factory=dict)
    copied_tokens: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.num_rows + other.num_rows,
            self.num_ok + other.num_ok,
            self.num_errors + other.num_errors,
            self.num_choices + other.num_choices,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            dict(Counter(self.finish_reasons) + Counter(other.finish_reasons)),
            dict(Counter(self.error_codes) + Counter(other.error_codes)),
            self.copied_tokens + other.copied_tokens,
        )

    def at_most(self, num_rows: int) -> "Counts":
        """These counts of chunks that may overlap (two attempts at one time), brought down to what a shard can hold."""
        if self.num_rows <= num_rows:
            return self
        share = num_rows / self.num_rows
        num_errors = round(self.num_errors * share)
        return Counts(
            num_rows=num_rows,
            num_ok=num_rows - num_errors,
            num_errors=num_errors,
            num_choices=round(self.num_choices * share),
            prompt_tokens=round(self.prompt_tokens * share),
            completion_tokens=round(self.completion_tokens * share),
            cached_tokens=round(self.cached_tokens * share),
            finish_reasons={reason: round(number * share) for reason, number in self.finish_reasons.items()},
            error_codes={code: round(number * share) for code, number in self.error_codes.items()},
            copied_tokens=round(self.copied_tokens * share),
        )

    @classmethod
    def of(cls, table: pa.Table) -> "Counts":
        """Count the rows of a result table."""
        ok = table.filter(pc.equal(table["status"], RowStatus.OK.value))
        num_ok = pc.count_distinct(ok["row"]).as_py()
        num_rows = pc.count_distinct(table["row"]).as_py()

        # As `Usage.is_copied` has it.
        is_copied = pc.and_(pc.equal(ok["cached_tokens"], ok["prompt_tokens"]), pc.greater(ok["prompt_tokens"], 0))

        def total(name: str, table: pa.Table = ok) -> int:
            return int(pc.sum(table[name]).as_py() or 0)

        return cls(
            num_rows=num_rows,
            num_ok=num_ok,
            num_errors=num_rows - num_ok,
            num_choices=ok.num_rows,
            prompt_tokens=total("prompt_tokens"),
            completion_tokens=total("completion_tokens"),
            cached_tokens=total("cached_tokens"),
            finish_reasons=_value_counts(ok["finish_reason"]),
            error_codes=_value_counts(table["error_code"]),
            copied_tokens=total("completion_tokens", ok.filter(is_copied)),
        )


def job_schema(manifest: Manifest) -> pa.Schema:
    """The schema of every chunk and part of a job."""
    return result_schema(manifest.carried, optional=manifest.optional)


def result_schema(carried: pa.Schema, *, optional: pa.Schema = optional_columns.NONE) -> pa.Schema:
    """The schema of results with the carried input columns `carried`, and of `optional_columns` those of `optional`."""
    return pa.schema([*RESULT_FIELDS, *optional, *carried])


def build_table(
    completions: Sequence[Completion],
    *,
    carried: pa.Table,
    attempt: int | None,
    worker: str | None,
    optional: pa.Schema = optional_columns.NONE,
) -> pa.Table:
    """The result rows of `completions`; `carried` has one row for each of them, in the same order."""
    rows: list[dict[str, Any]] = []
    sources: list[ResultRow] = []
    positions: list[int] = []
    for position, completion in enumerate(completions):
        new = _result_rows(completion)
        rows.extend(new)
        sources.extend(ResultRow(completion.request, choice, completion.id) for choice in completion.choices or (None,))
        positions.extend([position] * len(new))
    columns = {name: pa.array([row.get(name) for row in rows], type_) for name, type_ in _types().items()}
    columns["attempts"] = pa.array([attempt] * len(rows), pa.int32())
    columns["worker"] = pa.array([worker] * len(rows), pa.string())
    further = optional_columns.fill(optional, sources)
    going_along = take_rows(carried, positions).columns
    schema = result_schema(carried.schema, optional=optional)
    return pa.Table.from_arrays([*columns.values(), *further, *going_along], schema=schema)


def seal_rows(table: pa.Table, *, retries: Iterable[int] = ()) -> bytearray:
    """The bytes of a chunk or part, its counts in the footer; `retries` are those that a part has answered."""
    metadata = {_COUNTS_KEY: json.dumps(asdict(Counts.of(table))).encode()}
    if numbers := sorted(retries):
        metadata[_RETRIES_KEY] = json.dumps(numbers).encode()
    return sealed.seal(table, metadata)


def write_file(path: Path, table: pa.Table, *, guard: Guard | None = None, store: Store = LOCAL) -> bool:
    """Create a chunk or part durably, see `seal_rows`. Returns False where the file exists.

    `guard` (see `jobdir.store`) is that of the job. Raises StorageError.
    """
    return store.create(path, seal_rows(table), guard=guard)


def read_file(path: Path, *, store: Store = LOCAL) -> pa.Table:
    """Read a chunk or part whole and as it was written.

    Raises CorruptFileError where any bit of it is wrong or it is gone, another StorageError where it can't be read.
    """
    return sealed.read_table(path, store=store)


def read_counts(path: Path, *, store: Store = LOCAL) -> Counts:
    """The counts in a chunk's or part's footer, which is checked; the rest is not read. Raises like `read_file`."""
    metadata = sealed.read_metadata(path, store=store)
    try:
        return Counts(**json.loads(metadata[_COUNTS_KEY]))
    except (KeyError, ValueError, TypeError) as exc:
        raise CorruptFileError(f"{path}: not a result file of Batcher: {exc}") from exc


def read_retries(path: Path, *, store: Store = LOCAL) -> frozenset[int]:
    """The retries that a part has answered. Raises like `read_file`."""
    return frozenset(json.loads(sealed.read_metadata(path, store=store).get(_RETRIES_KEY, b"[]")))


def read_rows(path: Path, schema: pa.Schema, *, columns: Sequence[str] | None = None, store: Store = LOCAL) -> pa.Table:
    """Read a chunk or part of the job whose result schema is `schema`, or these columns of it, at least one.

    Raises like `read_file`, also for another's.
    """
    if columns is None:
        table = read_file(path, store=store)
    else:
        table = sealed.read_columns(path, columns, store=store)
        schema = pa.schema([schema.field(name) for name in columns])
    if not table.schema.equals(schema):
        differing = sorted({*table.schema} ^ {*schema}, key=lambda field: field.name)
        names = ", ".join(dict.fromkeys(field.name for field in differing)) or "their order"
        raise CorruptFileError(f"{path}: its columns are not those of the job: {names}")
    return table


def read_chunks(paths: Iterable[Path], schema: pa.Schema, *, store: Store = LOCAL) -> list[pa.Table]:
    """The chunks among `paths` that are whole and of this job, in their order.

    One that is damaged is left out with a warning: its rows are computed again. So is, without one, a chunk that is
    gone: another attempt has committed the shard meanwhile. Raises StorageError for what a second try may mend.
    """
    tables = []
    for path in paths:
        try:
            tables.append(read_rows(path, schema, store=store))
        except MissingFileError:
            continue
        except CorruptFileError as exc:
            logger.warning("%s; its rows are computed again", exc)
    return tables


def join_tables(tables: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """The union of result tables, in input order, each input row once: the first table that has a row wins."""
    seen: set[int] = set()
    kept = []
    for table in tables:
        rows = table["row"].to_pylist()
        mask = [row not in seen for row in rows]
        seen.update(rows)
        kept.append(table if all(mask) else table.filter(pa.array(mask)))
    joined = pa.concat_tables(kept) if kept else schema.empty_table()
    return joined.cast(schema).sort_by([("row", "ascending"), ("index", "ascending")])


def _types() -> dict[str, pa.DataType]:
    return {f.name: f.type for f in RESULT_FIELDS}


def _result_rows(completion: Completion) -> list[dict[str, Any]]:
    request = completion.request
    common = {
        "row": request.row,
        "custom_id": request.custom_id,
        "created": datetime.fromtimestamp(completion.created, UTC),
        "model": request.model or None,
    }
    if completion.error is not None:
        prompt = request.prompts[0] if request.prompts else None
        error = {"error_code": completion.error.code.value, "error_message": completion.error.message}
        return [{**common, "index": 0, "status": RowStatus.ERROR.value, "prompt": prompt, **error}]
    return [
        {
            **common,
            "index": choice.index,
            "status": RowStatus.OK.value,
            "id": completion.id,
            "object": CHAT_OBJECT if request.is_chat else COMPLETION_OBJECT,
            "prompt": request.prompts[choice.index // request.params.n],
            "text": choice.text,
            "finish_reason": choice.finish_reason.value,
            "logprobs": _logprobs_text(choice, is_chat=request.is_chat),
            "prompt_tokens": choice.usage.prompt_tokens,
            "completion_tokens": choice.usage.completion_tokens,
            "total_tokens": choice.usage.total_tokens,
            "cached_tokens": choice.usage.cached_tokens,
            "latency_ms": choice.latency_ms,
        }
        for choice in completion.choices
    ]


def _logprobs_text(choice: Choice, *, is_chat: bool) -> str | None:
    """The documented object as JSON text: its keys are tokens, so no columns could hold it."""
    logprobs = logprobs_object(choice.logprobs, is_chat=is_chat)
    return None if logprobs is None else json.dumps(logprobs, ensure_ascii=False, allow_nan=False)


def _value_counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {item["values"]: item["counts"] for item in pc.value_counts(column.drop_null()).to_pylist()}
