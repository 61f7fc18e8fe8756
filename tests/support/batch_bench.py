"""A jobs root with files and batches, whose rows are worked on by hand."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batcher.arrow.tables import take_rows
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.results import build_table, write_file
from batcher.jobdir.sending import Send
from batcher.jobdir.shards import read_shard
from batcher.jobdir.workload import Workload
from batcher.server.batches.intakes import Start
from batcher.server.batches.keeper import BatchKeeper
from batcher.server.batches.records import Batch
from batcher.server.batches.service import Batches
from batcher.server.batches.states import BatchReader
from batcher.server.batches.uploads import FileStore, StoredFile
from batcher.types import Choice, Completion, ErrorCode, FinishReason, Request, RowError, Usage
from tests.support.clock import Clock

Answer = Callable[[Request], str | RowError]

TIMEOUT = RowError(ErrorCode.TIMEOUT, "took too long")


@dataclass(frozen=True, slots=True)
class BatchServer:
    """The batches of one server, and what carries them on."""

    batches: Batches
    keeper: BatchKeeper
    reader: BatchReader


def do_at_once(work: Callable[[], None]) -> Callable[[], None]:
    """Has inputs read within the round that begins with them."""
    work()
    return lambda: None


class BatchBench:
    """`sent` are the jobs that were enqueued, in order; `num_wakes` how often a keeper was to make a round at once."""

    def __init__(self, root: Path, *, models: frozenset[str] | None = frozenset({"tiny"})) -> None:
        self.root = root
        # The times of files are those of the machine.
        self.clock = Clock(time.time())
        self.sent: list[str] = []
        self.num_wakes = 0
        self.models = models
        self.files = FileStore(root, clock=self.clock)
        own = self.server()
        self.batches, self.keeper, self.reader = own.batches, own.keeper, own.reader

    def server(
        self,
        *,
        send: Send | None = None,
        known_models: Callable[[], frozenset[str] | None] | None = None,
        start: Start | None = None,
    ) -> BatchServer:
        """Another server on the same root."""
        reader = BatchReader(self.root, clock=self.clock)
        keeper = BatchKeeper(
            reader,
            self.files,
            send=send or self._note_sent,
            known_models=known_models or (lambda: self.models),
            clock=self.clock,
            start=start or do_at_once,
        )
        batches = Batches(self.root, self.files, reader=reader, wake=self._on_wake, clock=self.clock)
        return BatchServer(batches, keeper, reader)

    def _note_sent(self, job: JobDir, shards: Sequence[ShardInfo]) -> int:
        self.sent.append(job.job_id)
        return len(shards)

    def _on_wake(self) -> None:
        self.num_wakes += 1

    def upload(self, content: bytes, *, purpose: str = "batch", filename: str = "in.jsonl") -> StoredFile:
        upload = self.files.begin()
        upload.write(content)
        return upload.commit(purpose=purpose, filename=filename)

    def create(self, content: bytes, **changes: Any) -> Batch:
        """A batch of an input that is uploaded first."""
        usual = {"endpoint": "/v1/completions", "completion_window": "24h"}
        return self.batches.create(input_file_id=self.upload(content).id, **(usual | changes))

    def started(self, content: bytes, **changes: Any) -> Batch:
        """A batch whose input is read."""
        batch = self.create(content, **changes)
        self.keeper.make_round()
        return self.get(batch.id)

    def make_round_after(self, seconds: float) -> None:
        self.clock.now += seconds
        self.keeper.make_round()

    def get(self, batch_id: str) -> Batch:
        batch = self.batches.get(batch_id)
        assert batch is not None
        return batch

    def job(self, batch_id: str) -> JobDir:
        return JobDir(self.root / batch_id)


def output_lines(bench: BatchBench, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    opened = bench.batches.open_output(file_id)
    assert opened is not None
    with opened[1] as file:
        data = file.read()
    assert len(data) == opened[0].num_bytes
    return [json.loads(text) for text in data.splitlines()]


def line(custom_id: str, prompt: str = "Hello", *, url: str = "/v1/completions", **params: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 4} | params
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def lines(*rows: dict[str, Any] | bytes) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def work(job: JobDir, *, answer: Answer = lambda request: "text", shards: Iterable[ShardInfo] | None = None) -> None:
    """Commit the shards that are not yet, as a worker does."""
    fresh = JobDir.open(job.path)
    for info in list(fresh.pending_shards() if shards is None else shards):
        claim = fresh.claim(info.shard, worker="w1")
        work = Workload(fresh, info.shard, claim=claim)
        done = {row for table in work.saved for row in table["row"].to_pylist()}
        left = [position for position, row in enumerate(work.rows) if row.request.row not in done]
        requests = [work.rows[position].request for position in left]
        completions = [_completion(request, answer(request)) for request in requests]
        carried = take_rows(work.carried, left)
        assert work.commit(work.join(build_table(completions, carried=carried, attempt=claim.attempt, worker="w1")))


def work_partly(job: JobDir, number: int) -> None:
    """Finish the first rows of the first shard, in a chunk."""
    fresh = JobDir.open(job.path)
    shard = read_shard(fresh.shard_path(0), carried=fresh.manifest.carried)
    attempt = fresh.claim_attempt(0, worker="w1")
    completions = [_completion(row.request, "text") for row in shard.rows[:number]]
    table = build_table(completions, carried=shard.carried.slice(0, number), attempt=attempt, worker="w1")
    assert write_file(fresh.chunk_path(0, attempt=attempt, uid="ab12", sequence=1), table)


def _completion(request: Request, answer: str | RowError) -> Completion:
    if isinstance(answer, RowError):
        return Completion(request, f"cmpl-{request.row}", 1_767_225_600, error=answer)
    choices = tuple(
        Choice(index, answer, FinishReason.STOP, Usage(5, 3, 1), 1.5) for index in range(len(request.prompts))
    )
    return Completion(request, f"cmpl-{request.row}", 1_767_225_600, choices)
