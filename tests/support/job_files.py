"""Job directories for tests, made of the real files: shards, parts and chunks as submit and workers write them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa

from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.results import build_table, write_file
from batcher.jobdir.shards import Shard, ShardRow, write_shard
from batcher.types import Choice, Completion, ErrorCode, FinishReason, Request, RowError, SamplingParams, Usage
from tests.support.job_factory import create_manifest

CARRIED = pa.schema([pa.field("topic", pa.string()), pa.field("tags", pa.list_(pa.string()))])
CREATED = 1_767_225_600  # 2026-01-01T00:00:00Z


def request(row: int, *, model: str = "tiny", num_prompts: int = 1) -> Request:
    prompts = tuple(f"prompt {row}.{index}" for index in range(num_prompts))
    return Request(row, f"id-{row}", model, prompts, num_prompts > 1, SamplingParams())


def ok(row: int, *, num_choices: int = 1, text: str = "text", tokens: int = 3, cached: int = 0) -> Completion:
    """A completion whose choices have 5 prompt tokens and `tokens` completion tokens each."""
    choices = tuple(
        Choice(index, f"{text} {row}.{index}", FinishReason.LENGTH, Usage(5, tokens, cached), 12.5)
        for index in range(num_choices)
    )
    return Completion(request(row, num_prompts=num_choices), f"cmpl-{row}", CREATED, choices)


def failed(row: int, code: ErrorCode = ErrorCode.TIMEOUT) -> Completion:
    return Completion(request(row), f"cmpl-{row}", CREATED, error=RowError(code, f"row {row}: {code.value}"))


def carried_of(rows: Iterable[int], schema: pa.Schema = CARRIED) -> pa.Table:
    """What the input's other columns held in these rows."""
    values = list(rows)
    if not schema.names:
        return pa.table({"": pa.nulls(len(values))}).select([])
    topics = [f"topic-{row}" for row in values]
    return pa.table({"topic": topics, "tags": [["a", str(row)] for row in values]}, schema=schema)


def make_job(
    path: Path, sizes: Sequence[int] = (2,), *, models: Sequence[str | None] | None = None, carried: pa.Schema = CARRIED
) -> JobDir:
    """A submitted job with shards of these sizes; rows count on over them. Model None: a shard of refused rows."""
    job = JobDir(path)
    models = models or ["tiny"] * len(sizes)
    for shard, rows in enumerate(_row_ranges(sizes)):
        refused = RowError(ErrorCode.INVALID_REQUEST, "bad") if models[shard] is None else None
        shard_rows = tuple(ShardRow(request(row), refused) for row in rows)
        write_shard(job.shard_path(shard), Shard(shard_rows, carried_of(rows, carried)))
    infos = tuple(ShardInfo(i, models[i], size, size) for i, size in enumerate(sizes))
    create_manifest(job, infos, carried=carried)
    return job


def result_table(completions: Sequence[Completion], *, attempt: int = 1, carried: pa.Schema = CARRIED) -> pa.Table:
    rows = [completion.request.row for completion in completions]
    return build_table(completions, carried=carried_of(rows, carried), attempt=attempt, worker="w1")


def write_part(job: JobDir, shard: int, completions: Sequence[Completion]) -> None:
    """Commit a shard, as a worker that claimed it does."""
    attempt = job.claim_attempt(shard, worker="w1")
    table = result_table(completions, attempt=attempt, carried=job.manifest.carried)
    assert write_file(job.part_path(shard), table)


def write_chunk(
    job: JobDir, shard: int, completions: Sequence[Completion], *, attempt: int = 1, sequence: int = 1
) -> Path:
    path = job.chunk_path(shard, attempt=attempt, uid="ab12", sequence=sequence)
    assert write_file(path, result_table(completions, attempt=attempt, carried=job.manifest.carried))
    return path


def complete_job(path: Path) -> JobDir:
    """Three shards, six rows, two of them failed; one row has two choices. Not finalized."""
    job = make_job(path, (2, 3, 1))
    write_part(job, 0, [ok(0), failed(1)])
    write_part(job, 1, [ok(2), ok(3, num_choices=2), failed(4, ErrorCode.CONTEXT_LENGTH_EXCEEDED)])
    write_part(job, 2, [ok(5, cached=4)])
    return job


def _row_ranges(sizes: Sequence[int]) -> list[range]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]
