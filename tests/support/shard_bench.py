"""A job of one shard, and what its runner needs: a real broker, real files, and an engine that answers when told to."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import redis

from batcher.broker.client import lease_key
from batcher.broker.leases import Leases
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import read_file
from tests.support.clock import Clock
from tests.support.job_files import make_job
from tests.support.manual_engine import Answer, ManualEngine
from tests.support.waiting import wait_for
from workers.shard.context import WorkerContext
from workers.shard.runner import RunOutcome, run_shard

ROWS = 6


class Bench:
    """A job of one shard, and what its runner needs."""

    def __init__(self, path: Path, client: redis.Redis) -> None:
        self.client = client
        self._pool = ThreadPoolExecutor()
        self.clock = Clock(1000.0)
        self.job = make_job(path / "job", (ROWS,))
        self.stopping = threading.Event()
        self.commits: list[JobDir] = []
        self.progress = threading.Semaphore(0)
        self.context = WorkerContext(
            worker="w1",
            process="p1",
            leases=Leases(client),
            stopping=self.stopping,
            on_claim=lambda job, shard, attempt: None,
            on_end=lambda job, shard, attempt: None,
            on_progress=self.progress.release,
            on_set_aside=lambda: None,
            on_commit=self.commits.append,
            clock=self.clock,
        )

    @property
    def lease(self) -> bytes | None:
        found = self.client.get(lease_key(self.job.manifest.identity, 0))
        assert found is None or isinstance(found, bytes)
        return found

    def run(self, engine: ManualEngine, *, worker: str = "w1", shard: int = 0) -> RunOutcome:
        return run_shard(self.job, shard, engine, replace(self.context, worker=worker))

    def begin(
        self, num_answers: int, *, answer: Answer = lambda request: "text"
    ) -> tuple[ManualEngine, Future[RunOutcome]]:
        """Run in the background, on an engine that answers so many prompts; returns when it has."""
        engine = ManualEngine(answer, allowance=num_answers)
        running = self._pool.submit(self.run, engine)
        wait_for(lambda: engine.num_steps == num_answers, what=f"{num_answers} prompts are answered")
        return engine, running

    def part(self) -> dict[str, list[object]]:
        columns: dict[str, list[object]] = read_file(self.job.part_path(0)).to_pydict()
        return columns

    def chunk_rows(self) -> list[int]:
        tables = [read_file(chunk.path) for chunk in self.job.chunks(0)]
        return sorted(row for table in tables for row in table["row"].to_pylist())
