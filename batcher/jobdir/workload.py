"""What an attempt of a shard has to do, what is finished of it already, and how it is committed.

A shard without a part is committed by creating it: of several attempts the first wins. Where `retries` are open, it has
one. Then only their rows are to do, the others are taken from it, and the new part takes its place if it is still the
one that was read: of several attempts one wins here, too. In this order, so that a crash between any two steps loses
nothing and shows readers nothing unfinished:

1. the rows that are about to be replaced are kept as `earlier/part-00007-0002.parquet`;
2. `_SUCCESS` goes, should it be there;
3. the new part takes the place of the old one, with the numbers of its retries in its footer;
4. the retries are closed. Who finds them open beside such a part does just that.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from batcher.errors import CorruptFileError
from batcher.jobdir.folder import Claim, JobDir, unset_success
from batcher.jobdir.listing import AttemptFiles, ChunkFile
from batcher.jobdir.results import job_schema, join_tables, read_chunks, read_retries, read_rows, seal_rows, write_file
from batcher.jobdir.retries import Retry, apply, close_shard, read_retry
from batcher.jobdir.sealed import MissingFileError
from batcher.jobdir.shards import ShardRow, read_shard


@dataclass(frozen=True, slots=True)
class _Part:
    """A part that is to be replaced, as it was read. `answered` are the retries whose answers it holds."""

    version: str
    table: pa.Table
    answered: frozenset[int]


class Workload:
    """The work on a shard as one attempt finds it. For one thread.

    `rows` are those of the shard, as they are asked now, and `carried` has one row for each. `saved` are the tables of
    finished rows, the first that has a row goes before the others; `chunks` are the files to delete once the shard is
    committed.
    """

    def __init__(self, job: JobDir, shard: int, *, claim: Claim) -> None:
        """Read it, for the attempt of `claim`. Raises StorageError, CorruptFileError among them."""
        self._job, self._shard = job, shard
        self._schema = job_schema(job.manifest)
        info = job.manifest.shards[shard]
        found = read_shard(job.shard_path(shard), carried=job.manifest.carried, num_rows=info.num_rows, store=job.store)
        self.rows: tuple[ShardRow, ...] = found.rows
        self.carried = found.carried
        self.chunks: list[ChunkFile] = []
        self.saved: list[pa.Table] = []
        self._open: tuple[Retry, ...] = ()
        self._answered: frozenset[int] = frozenset()
        self._part: _Part | None = None
        # What has a chunk, or is to run again, was claimed before.
        if claim.attempt > 1:
            self._read_left(claim.earlier)

    def _read_left(self, earlier: AttemptFiles) -> None:
        """Read what earlier attempts and retries have left; `earlier` is a listing from before."""
        job, shard = self._job, self._shard
        self._open = tuple(self._read_open())
        # Those before an open one may have been answered since that listing.
        answered = job.list_attempts(shard).retries if self._open else earlier.retries
        closed = [read_retry(path, store=job.store) for path in answered.values()]
        self._answered = frozenset(answered)
        self.rows = apply([*closed, *(one for one in self._open if one.number not in answered)], self.rows)
        self.chunks = job.chunks(shard)
        last = max((one.number for one in self._open), default=0)
        if self._open:
            self._read_part()
        chunks = [chunk.path for chunk in self.chunks if chunk.attempt > last]
        self.saved += read_chunks(chunks, self._schema, store=job.store)

    def _read_open(self) -> Iterable[Retry]:
        for number in self._job.open_retries(self._shard):
            try:
                yield read_retry(self._job.retry_path(self._shard, number), store=self._job.store)
            except FileNotFoundError:
                continue

    def _read_part(self) -> None:
        """Keep of the part the rows that are not asked again. One that was lost leaves all rows to do."""
        path, store = self._job.part_path(self._shard), self._job.store
        found = store.head(path)
        if found is None:
            return
        try:
            table, answered = read_rows(path, self._schema, store=store), read_retries(path, store=store)
        except MissingFileError:
            return
        self._part = _Part(found.version, table, answered)
        self.saved.append(table.filter(pc.invert(self._is_asked_again(table))))

    def _is_asked_again(self, table: pa.Table) -> pa.ChunkedArray:
        asked = sorted({row for one in self._open for row in one.rows})
        return pc.is_in(table["row"], value_set=pa.array(asked, pa.int64()))

    def finish_commit(self) -> bool:
        """Whether nothing is left but to say so, as an attempt died right after it had replaced the part. Says so."""
        numbers = [one.number for one in self._open]
        if not numbers or self._part is None or not self._part.answered.issuperset(numbers):
            return False
        close_shard(self._job, self._shard, numbers)
        return True

    def is_decided(self) -> bool:
        """Whether another attempt has committed the shard since."""
        job, shard = self._job, self._shard
        if self._open:
            return not all(job.has(job.retry_path(shard, one.number)) for one in self._open)
        return job.has(job.part_path(shard))

    def join(self, finished: pa.Table) -> pa.Table:
        """The rows of the shard, in order, of what is saved and of those that are `finished` since."""
        return join_tables([*self.saved, finished], self._schema)

    def commit(self, table: pa.Table) -> bool:
        """Make `table` the part of the shard. Returns False where another attempt was first. Raises StorageError."""
        job, part = self._job, self._job.part_path(self._shard)
        numbers = [one.number for one in self._open]
        data = seal_rows(table, retries=self._answered.union(numbers))
        if not numbers:
            return job.store.create(part, data, guard=job.check_exists)
        if self._part is not None:
            before = self._part.table.filter(self._is_asked_again(self._part.table))
            kept = job.earlier_path(self._shard, max(numbers))
            write_file(kept, before, guard=job.check_exists, store=job.store)
        unset_success(job)
        version = self._part.version if self._part is not None else None
        while not self._put(data, version):
            # Another was first, or has moved the part aside as damaged, or put it back. In this order: while our retry
            # is open, no part of a later one can be there.
            found = job.store.head(part)
            version = found.version if found is not None else None
            if self.is_decided() or self._is_answered():
                return False
        close_shard(job, self._shard, numbers)
        return True

    def _is_answered(self) -> bool:
        """Whether another attempt has replaced the part, and has yet to say so."""
        try:
            answered = read_retries(self._job.part_path(self._shard), store=self._job.store)
        except CorruptFileError:
            return False
        return answered.issuperset(one.number for one in self._open)

    def _put(self, data: bytearray, version: str | None) -> bool:
        """Give the part this content, if it is in this version; None: if there is none."""
        job, part = self._job, self._job.part_path(self._shard)
        if version is None:
            return job.store.create(part, data, guard=job.check_exists)
        job.check_exists()
        return job.store.replace_if(part, data, version=version)
