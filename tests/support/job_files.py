"""Job directories for tests, made of the real files: shards, parts and chunks as submit and workers write them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from batcher.ids import ID_PATTERN
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import Manifest, ShardInfo, encode_schema
from batcher.jobdir.optional_columns import NONE, optional_schema
from batcher.jobdir.results import build_table, read_file, write_file
from batcher.jobdir.shards import Shard, ShardRow, write_shard
from batcher.manage.finish import finalize
from batcher.types import (
    TAKE_ALL,
    AnswerRules,
    Choice,
    Completion,
    ErrorCode,
    FinishReason,
    Request,
    RowError,
    SamplingParams,
    Usage,
)

MODEL = "tiny"
#: What rows of the input carry beside their requests.
CARRIED = pa.schema([pa.field("topic", pa.string()), pa.field("tags", pa.list_(pa.string()))])
CREATED = 1_767_225_600  # 2026-01-01T00:00:00Z


def make_request(row: int, *prompts: str, model: str = MODEL, params: SamplingParams | None = None) -> Request:
    """A request whose prompt defaults to one that names its row: `prompt 3.0`."""
    texts = prompts or (f"prompt {row}.0",)
    return Request(row, f"id-{row}", model, texts, len(texts) > 1, params or SamplingParams())


def ok(row: int, *, num_choices: int = 1, text: str = "text", tokens: int = 3, cached: int = 0) -> Completion:
    """A completion whose choices have 5 prompt tokens and `tokens` completion tokens each."""
    choices = tuple(
        Choice(index, f"{text} {row}.{index}", FinishReason.LENGTH, Usage(5, tokens, cached), 12.5)
        for index in range(num_choices)
    )
    prompts = (f"prompt {row}.{index}" for index in range(num_choices))
    return Completion(make_request(row, *prompts), f"cmpl-{row}", CREATED, choices)


def answered(
    row: int, *texts: str, params: SamplingParams, finish_reason: FinishReason = FinishReason.STOP
) -> Completion:
    """A completion of one prompt, whose choices have these texts."""
    choices = tuple(Choice(index, text, finish_reason, Usage(5, 3), 12.5) for index, text in enumerate(texts))
    request = make_request(row, params=replace(params, n=len(texts)))
    return Completion(request, f"cmpl-{row}", CREATED, choices)


def failed(row: int, code: ErrorCode = ErrorCode.TIMEOUT) -> Completion:
    return Completion(make_request(row), f"cmpl-{row}", CREATED, error=RowError(code, f"row {row}: {code.value}"))


def carried_of(rows: Iterable[int], schema: pa.Schema = CARRIED) -> pa.Table:
    """What the input's other columns held in these rows."""
    values = list(rows)
    if not schema.names:
        return pa.table({"": pa.nulls(len(values))}).select([])
    topics = [f"topic-{row}" for row in values]
    return pa.table({"topic": topics, "tags": [["a", str(row)] for row in values]}, schema=schema)


def make_job(
    path: Path,
    shards: Sequence[int | Sequence[Request]] = (2,),
    *,
    models: Sequence[str | None] | None = None,
    refusals: Mapping[int, RowError] | None = None,
    carried: pa.Schema = CARRIED,
    params: SamplingParams | None = None,
    answers: AnswerRules = TAKE_ALL,
) -> JobDir:
    """A submitted job whose shards have these requests, or so many rows that count on over them.

    `models` are those of counted shards; None: a shard of refused rows. `refusals` are those of single rows. `params`
    are the defaults, and those of counted rows.
    """
    job, infos, num_rows = JobDir(path), [], 0
    optional = optional_schema(params or SamplingParams())
    for shard, content in enumerate(shards):
        if isinstance(content, int):
            model = models[shard] if models else MODEL
            requests = [make_request(num_rows + i, model=model or MODEL, params=params) for i in range(content)]
        else:
            model, requests = content[0].model, list(content)
        num_rows += len(requests)
        errors = dict(refusals or {})
        if model is None:
            errors |= {request.row: RowError(ErrorCode.INVALID_REQUEST, "bad") for request in requests}
        rows = tuple(ShardRow(request, errors.get(request.row)) for request in requests)
        write_shard(job.shard_path(shard), Shard(rows, carried_of((request.row for request in requests), carried)))
        infos.append(ShardInfo(shard, model, len(requests), sum(request.num_choices for request in requests)))
    manifest = Manifest(
        # A folder can be given any name after a submit.
        job_id=path.name if ID_PATTERN.match(path.name) else "job",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        inputs=("prompts.jsonl",),
        fingerprint="f",
        defaults=params or SamplingParams(),
        default_model=MODEL,
        seed=7,
        num_rows=num_rows,
        num_refused=sum(info.num_rows for info in infos if info.model is None),
        carried_ipc=encode_schema(carried),
        answers=answers,
        optional_ipc=encode_schema(optional) if optional.names else "",
        shards=tuple(infos),
    )
    assert job.create_manifest(manifest)
    return job


def make_bare_job(path: Path, num_shards: int, *, models: Sequence[str | None] = (MODEL,)) -> JobDir:
    """A job of shards of one row each, by its manifest alone: the files of its shards are not there.

    `models` are those of the shards in turn.
    """
    job = JobDir(path)
    infos = tuple(ShardInfo(shard, models[shard % len(models)], 1, 1) for shard in range(num_shards))
    manifest = Manifest(
        job_id=path.name,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        inputs=("prompts.jsonl",),
        fingerprint="f",
        defaults=SamplingParams(),
        default_model=MODEL,
        seed=7,
        num_rows=num_shards,
        num_refused=sum(info.model is None for info in infos),
        carried_ipc=encode_schema(CARRIED),
        shards=infos,
    )
    assert job.create_manifest(manifest)
    return job


def result_table(
    completions: Sequence[Completion],
    *,
    attempt: int = 1,
    carried: pa.Schema = CARRIED,
    optional: pa.Schema = NONE,
) -> pa.Table:
    rows = [completion.request.row for completion in completions]
    return build_table(completions, carried=carried_of(rows, carried), attempt=attempt, worker="w1", optional=optional)


def write_part(job: JobDir, shard: int, completions: Sequence[Completion]) -> None:
    """Commit a shard, as a worker that claimed it does."""
    attempt = job.claim_attempt(shard, worker="w1")
    manifest = job.manifest
    table = result_table(completions, attempt=attempt, carried=manifest.carried, optional=manifest.optional)
    assert write_file(job.part_path(shard), table)


def write_chunk(
    job: JobDir, shard: int, completions: Sequence[Completion], *, attempt: int = 1, sequence: int = 1
) -> Path:
    path = job.chunk_path(shard, attempt=attempt, uid="ab12", sequence=sequence)
    manifest = job.manifest
    table = result_table(completions, attempt=attempt, carried=manifest.carried, optional=manifest.optional)
    assert write_file(path, table)
    return path


def complete_job(path: Path) -> JobDir:
    """Three shards, six rows, two of them failed; one row has two choices. Not finalized."""
    job = make_job(path, (2, 3, 1))
    write_part(job, 0, [ok(0), failed(1)])
    write_part(job, 1, [ok(2), ok(3, num_choices=2), failed(4, ErrorCode.CONTEXT_LENGTH_EXCEEDED)])
    write_part(job, 2, [ok(5, cached=4)])
    return job


def finished_job(path: Path) -> JobDir:
    """That job, finalized."""
    job = complete_job(path)
    assert finalize(job) is not None
    return job


def result_rows(job: JobDir) -> list[dict[str, Any]]:
    """The rows of all parts, in order."""
    tables = [read_file(job.part_path(shard)) for shard in sorted(job.committed_shards())]
    return [row for table in tables for row in table.to_pylist()]
