"""What is made of rows that have no result yet, by the signs of life of the workers that hold them.

A sign says what an attempt has made so far, saved or not, and the chunks of that attempt say what of it is saved. Both
only grow, so the larger is what is known, and a sign that is a few seconds older than a chunk counts nothing twice.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from batcher.jobdir.heartbeats import HeldShard
from batcher.jobdir.manifest import Manifest, ShardInfo
from batcher.jobdir.results import Counts

#: Of the rows of a shard that are not done, at most so many count as done by the tokens that they have made.
_MOST = 0.99


@dataclass(frozen=True, slots=True)
class InFlight:
    """`num_tokens` completion tokens of rows without a result, of which `num_copied` were not computed.

    `work` is as many rows as are made of so many tokens, if a row takes `row_tokens`.
    """

    num_tokens: int = 0
    num_copied: int = 0
    work: float = 0.0
    row_tokens: float = 1.0


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An attempt that is under way: what it has made beyond its chunks, and the rows that it has left."""

    num_tokens: int
    num_copied: int
    num_left: int
    max_tokens: int


#: Of a shard: what is done of it, or only what the chunks of one attempt have.
Saved = Callable[[ShardInfo, int | None], Counts]


def measure(
    manifest: Manifest, held: Iterable[HeldShard], pending: dict[int, ShardInfo], done: Counts, saved: Saved
) -> InFlight:
    """What attempts at the shards that are `held` have made beyond `done`, in which all chunks are counted."""
    attempts = list(_attempts(held, pending, saved))
    num_tokens = sum(attempt.num_tokens for attempt in attempts)
    most = sum(attempt.max_tokens for attempt in attempts) / max(1, sum(attempt.num_left for attempt in attempts))
    row_tokens = most or manifest.defaults.max_tokens * manifest.num_choices / max(1, manifest.num_rows)
    if done.num_ok:
        # The mean of lifetimes of which some are not over yet: all that was lived, for each that has ended. Rows that
        # end early would make those in flight look nearly done.
        row_tokens = min(row_tokens, (done.completion_tokens + num_tokens) / done.num_ok)
    row_tokens = max(1.0, row_tokens)
    work = sum(min(attempt.num_tokens / row_tokens, _MOST * attempt.num_left) for attempt in attempts)
    return InFlight(num_tokens, sum(attempt.num_copied for attempt in attempts), work, row_tokens)


def _attempts(held: Iterable[HeldShard], pending: dict[int, ShardInfo], saved: Saved) -> Iterator[_Attempt]:
    last: dict[int, HeldShard] = {}
    for each in held:
        if each.shard in pending and (each.shard not in last or last[each.shard].attempt < each.attempt):
            last[each.shard] = each
    for shard, each in last.items():
        info = pending[shard]
        own, chunks = saved(info, each.attempt), saved(info, None)
        num_left = max(0, info.num_rows - chunks.num_rows)
        num_rows = max(1, num_left + own.num_rows)
        yield _Attempt(
            num_tokens=max(0, each.num_tokens - own.completion_tokens),
            num_copied=max(0, each.num_copied - own.copied_tokens),
            num_left=num_left,
            max_tokens=each.max_tokens * num_left // num_rows,
        )
