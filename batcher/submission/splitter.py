"""Validated rows -> shards, as they stream by.

A shard holds rows of one model in input order. How many: an eighth of the rows that came before it, at least 32 and at
most 512, so that a small job still spreads over workers and a big one has few files; or fewer, where they reach 4 MB.
Shards are numbered by their first row. Refused rows get shards of their own, with model None.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from batcher.arrow.tables import take_rows
from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.optional_columns import asked_fields
from batcher.jobdir.shards import Shard, ShardRow
from batcher.submission.carried import CarriedColumns, CarriedRow, TableRow
from batcher.submission.rows import RowBatch
from batcher.types import Request, SamplingParams

MIN_SHARD_ROWS = 32
MAX_SHARD_ROWS = 512
#: A shard whose rows reach this size is closed.
MAX_SHARD_BYTES = 4 << 20
#: With very many models, shards being filled are closed early rather than held in memory.
MAX_OPEN_BYTES = 32 << 20

#: Tokens that chat templates add of their own: a system message where there is none, the beginning of the answer.
CHAT_EXTRA_TOKENS = 256
#: What they say of functions that may be called, beside these.
TOOLS_EXTRA_TOKENS = 1536
#: The marks of prefix, suffix and middle, and a space that a tokenizer may put in front of the suffix.
INFILL_TOKENS = 4


@dataclass(slots=True)
class _OpenShard:
    """A shard being filled."""

    shard: int
    max_rows: int
    rows: list[ShardRow] = field(default_factory=list)
    carried: list[CarriedRow] = field(default_factory=list)
    num_bytes: int = 0


class Splitter:
    """Distributes rows over shards and hands each finished one to `write(number, shard)`. Mutable.

    `retries_truncated`: rows can be computed with twice their max_tokens.
    """

    def __init__(
        self,
        write: Callable[[int, Shard], None],
        *,
        carried: CarriedColumns,
        shard_rows: int | None,
        retries_truncated: bool = False,
    ) -> None:
        self._write = write
        self._retries_truncated = retries_truncated
        self._carried = carried
        self._shard_rows = shard_rows
        self._open: dict[str | None, _OpenShard] = {}
        self._infos: list[ShardInfo] = []
        self._num_opened = 0
        self._num_rows = 0
        #: Tokens that no prompt and its completion exceed together; see `_most_tokens`.
        self.longest_request = 0
        #: By name, the result columns that requests ask for themselves.
        self.asked: dict[str, pa.Field] = {}
        self._params: SamplingParams | None = None

    def _note_params(self, params: SamplingParams) -> None:
        """Have a place in the results for what requests with these parameters ask for."""
        # Most requests have those of the one before.
        self._params = params
        for column in asked_fields(params):
            if column.name not in self.asked:
                self.asked[column.name] = column
                self._carried.reserve(column.name)

    def add(self, batch: RowBatch) -> None:
        """Take the next rows of the input."""
        carried: list[CarriedRow]
        if isinstance(batch.carried, pa.Table):
            table = self._carried.rename(batch.carried)
            carried = [TableRow(table, position) for position in range(table.num_rows)]
        else:
            carried = list(batch.carried)
        for row, values, num_bytes in zip(batch.rows, carried, batch.num_bytes, strict=True):
            if row.request.params is not self._params:
                self._note_params(row.request.params)
            model = None if row.error is not None else row.request.model
            if model is not None:
                further = row.request.params.max_tokens if self._retries_truncated else 0
                self.longest_request = max(self.longest_request, _most_tokens(row.request) + further)
            shard = self._open.get(model) or self._open_shard(model)
            shard.rows.append(row)
            shard.carried.append(values)
            shard.num_bytes += num_bytes
            self._num_rows += 1
            if len(shard.rows) >= shard.max_rows or shard.num_bytes >= MAX_SHARD_BYTES:
                self._close(model)
        while sum(shard.num_bytes for shard in self._open.values()) > MAX_OPEN_BYTES:
            self._close(max(self._open, key=lambda model: self._open[model].num_bytes))
        if isinstance(batch.carried, pa.Table):
            for shard in self._open.values():
                _release_table(shard, table)

    def finish(self) -> tuple[ShardInfo, ...]:
        """Close the shards still open; what the manifest says of all of them, by number."""
        for model in list(self._open):
            self._close(model)
        return tuple(sorted(self._infos, key=lambda info: info.shard))

    def _open_shard(self, model: str | None) -> _OpenShard:
        max_rows = self._shard_rows or min(MAX_SHARD_ROWS, max(MIN_SHARD_ROWS, self._num_rows // 8))
        shard = self._open[model] = _OpenShard(self._num_opened, max_rows)
        self._num_opened += 1
        return shard

    def _close(self, model: str | None) -> None:
        shard = self._open.pop(model)
        self._write(shard.shard, Shard(tuple(shard.rows), self._carried.join(shard.carried)))
        num_choices = 0 if model is None else sum(row.request.num_choices for row in shard.rows)
        self._infos.append(ShardInfo(shard.shard, model, len(shard.rows), num_choices))


def _most_tokens(request: Request) -> int:
    """Tokens that none of the request's choices can exceed: a token stands for a byte at least.

    Two more, since a tokenizer may put a mark for the beginning and a space in front. Of a chat, the marks that a
    template puts around a message are fewer than the bytes of JSON that are around it here. Functions may be indented
    there, which takes twice as much at most. Token ids are counted.
    """
    if request.is_token_ids:
        return max(map(num_token_ids, request.prompts)) + request.params.max_tokens
    num_bytes = max(map(_num_bytes, request.prompts), default=0)
    if request.is_chat:
        num_bytes += CHAT_EXTRA_TOKENS
    if request.params.tools is not None:
        num_bytes += 2 * _num_bytes(request.params.tools.functions) + TOOLS_EXTRA_TOKENS
    if request.params.suffix:
        num_bytes += _num_bytes(request.params.suffix) + INFILL_TOKENS
    return num_bytes + 2 + request.params.max_tokens


def num_token_ids(prompt: str) -> int:
    """How many ids a prompt of token ids has, by its JSON text."""
    return prompt.count(",") + 1


def _num_bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def _release_table(shard: _OpenShard, table: pa.Table) -> None:
    """Copy the shard's rows out of the batch they came in, so that a few rows do not hold the whole batch in memory."""
    start = len(shard.carried)
    positions = []
    while start and isinstance(row := shard.carried[start - 1], TableRow) and row.table is table:
        start -= 1
        positions.append(row.position)
    if positions:
        kept = take_rows(table, positions[::-1])
        shard.carried[start:] = [TableRow(kept, position) for position in range(kept.num_rows)]
