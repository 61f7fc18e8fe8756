"""A job that lies in no file system, from submit to deletion, and how often those who follow it list it."""

from pathlib import Path

import pytest
import redis

from batcher.broker.sender import Sender
from batcher.broker.sweep import LOOK_AGE_S, Sweep
from batcher.jobdir.folder import JobDir, Watch
from batcher.jobdir.heartbeats import workers_dir
from batcher.jobdir.results import read_file
from batcher.manage.delete import delete_job
from batcher.manage.export import ExportFormat, export
from batcher.manage.finish import finalize
from batcher.manage.repair import repair
from batcher.manage.retry import parse_where, reopen, select
from batcher.manage.status import JobState, StatusReader, read_status
from batcher.submission.planner import submit
from batcher.types import ErrorCode, RowError
from tests.support.manual_engine import ManualEngine
from tests.support.memory_store import MemoryStore
from tests.support.shard_bench import Bench
from tests.support.submitted import make_options, write_lines
from workers.shard.runner import RunOutcome

ROWS, SHARD_ROWS = 6, 3
#: Is on no disk.
HOME = Path("/nowhere/on/this/machine")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def bench(tmp_path: Path, client: redis.Redis, store: MemoryStore) -> Bench:
    """A runner's bench whose job, of two shards, lies in the store."""
    bench = Bench(tmp_path, client)
    bench.job = JobDir(HOME / "job", store)
    lines = [{"prompt": f"prompt {row}", "topic": row} for row in range(ROWS - 1)]
    prompts = write_lines(tmp_path / "prompts.jsonl", *lines, {"prompt": 5, "topic": 5})
    submit(bench.job, [prompts], make_options(shard_rows=SHARD_ROWS))
    return bench


def test_job_lives_in_a_store_without_files(tmp_path: Path, bench: Bench, store: MemoryStore) -> None:
    job = bench.job
    assert read_status(job).state is JobState.WAITING
    assert finalize(job) is None

    for info in job.pending_shards():
        assert bench.run(ManualEngine(), shard=info.shard) is RunOutcome.COMMITTED
    summary = finalize(job)

    assert summary is not None
    assert (summary.num_ok, summary.num_errors) == (ROWS - 1, 1)
    assert read_status(JobDir.open(job.path, store)).state is JobState.COMPLETE
    assert repair(job) == []
    assert export(job, tmp_path / "out.jsonl", layout=ExportFormat.OPENAI) == ROWS
    rows = [row for info in job.manifest.shards for row in _rows(job, info.shard)]
    assert rows == list(range(ROWS))

    assert not job.is_cancelled
    assert job.cancel()
    assert read_status(job).state is JobState.COMPLETE
    assert delete_job(job) == []
    assert store.list(HOME) == []
    assert not HOME.exists()


def test_row_that_timed_out_is_retried_in_a_store_without_files(bench: Bench) -> None:
    job = bench.job
    timeout = RowError(ErrorCode.TIMEOUT, "it took too long")
    for info in job.pending_shards():
        engine = ManualEngine(lambda request: timeout if request.prompt == "prompt 1" else "text")
        bench.run(engine, shard=info.shard)
    finalize(job)

    opened = reopen(job, select(job, where=parse_where(job, ["error_code=timeout"])), {})

    assert [info.shard for info in opened] == [0]
    assert read_status(job).num_done == ROWS - 1
    bench.run(ManualEngine(), shard=0)
    assert finalize(job) is not None
    assert _rows(job, 0) == [0, 1, 2]


def test_each_look_at_a_job_is_one_listing(
    bench: Bench, store: MemoryStore, client: redis.Redis, broker_url: str
) -> None:
    """Given who waits for a job, when it reads the status and sweeps at a moment, then it lists the job once. What
    workers there are is known to the sender for some seconds."""
    job = bench.job
    watch = Watch(job)
    reader = StatusReader(job, watch=watch)
    sender = Sender(broker_url, scope=job.manifest.identity)
    sender.window(job, "tiny")
    sweep = Sweep(job, client, sender=sender, watch=watch)

    for _ in range(3):
        del store.listings[:]
        reader.read()
        sweep.look(max_age_s=LOOK_AGE_S)
        sweep.reap()
        assert store.listings == [job.path, workers_dir(HOME)]


def test_worker_lists_nothing_for_a_shard_that_nobody_has_claimed(bench: Bench, store: MemoryStore) -> None:
    for info in bench.job.pending_shards():
        del store.listings[:]
        bench.run(ManualEngine(), shard=info.shard)
        assert store.listings == []


def test_worker_lists_attempts_and_retries_of_a_shard_once_and_chunks_when_it_claims_and_when_it_reads(
    bench: Bench, store: MemoryStore
) -> None:
    job = bench.job
    info = job.pending_shards()[0]
    job.claim_attempt(info.shard, worker="w0")
    del store.listings[:]

    bench.run(ManualEngine(), shard=info.shard)

    # The claim notes when the attempts before it wrote their last file.
    folders = (job.attempts_dir, job.chunks_dir, job.retries_dir, job.chunks_dir)
    assert store.listings == [folder(info.shard) for folder in folders]


def _rows(job: JobDir, shard: int) -> list[int]:
    rows: list[int] = read_file(job.part_path(shard), store=job.store)["row"].to_pylist()
    return rows
