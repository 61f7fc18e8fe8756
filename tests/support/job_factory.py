"""Makes job directories without reading an input file."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import Manifest, ShardInfo, encode_schema
from batcher.jobdir.shards import Shard, ShardRow, write_shard
from batcher.types import Request, RowError, SamplingParams

MODEL = "tiny"


def make_request(row: int, *prompts: str, model: str = MODEL, params: SamplingParams | None = None) -> Request:
    """A request whose prompts default to one that names its row."""
    texts = prompts or (f"p{row}",)
    return Request(row, f"id-{row}", model, texts, len(texts) > 1, params or SamplingParams(max_tokens=4))


def make_job(
    path: Path,
    shards: Sequence[Sequence[Request]],
    *,
    errors: dict[int, RowError] | None = None,
    seed: int = 7,
) -> JobDir:
    """A submitted job. Each row carries a column `note`; `errors` are refusals by row."""
    job = JobDir(path)
    schema = pa.schema([pa.field("note", pa.string())])
    infos = []
    for number, requests in enumerate(shards):
        rows = tuple(ShardRow(request, (errors or {}).get(request.row)) for request in requests)
        carried = pa.table({"note": [f"note {request.row}" for request in requests]}, schema=schema)
        write_shard(job.shard_path(number), Shard(rows, carried))
        num_choices = sum(request.num_choices for request in requests)
        infos.append(ShardInfo(number, requests[0].model, len(requests), num_choices))
    create_manifest(job, infos, carried=schema, seed=seed)
    return job


def create_manifest(job: JobDir, shards: Sequence[ShardInfo], *, carried: pa.Schema, seed: int = 0) -> None:
    """Make the job exist, its shard files being written."""
    manifest = Manifest(
        job_id=job.path.name,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        inputs=("prompts.jsonl",),
        fingerprint="f",
        defaults=SamplingParams(),
        default_model=MODEL,
        seed=seed,
        num_rows=sum(info.num_rows for info in shards),
        num_refused=sum(info.num_rows for info in shards if info.model is None),
        carried_ipc=encode_schema(carried),
        shards=tuple(shards),
    )
    assert job.create_manifest(manifest)
