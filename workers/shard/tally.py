"""What one run of a shard has saved, for its line in the log."""

import time
from collections.abc import Callable

from batcher.jobdir.results import Counts
from batcher.words import counted


class ShardTally:
    """Adds up the rows that a run saves. `clock` is in seconds. Mutable."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.counts = Counts()
        self._clock = clock
        self._began_at = clock()

    def add(self, counts: Counts) -> None:
        """Take rows that were saved."""
        self.counts += counts

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens of these rows a second, from the beginning of the run."""
        elapsed_s = self._clock() - self._began_at
        return self.counts.completion_tokens / elapsed_s if elapsed_s > 0 else 0.0

    @property
    def fields(self) -> dict[str, float]:
        """The numbers, by the names that they have in a log of JSON."""
        return {
            "rows": self.counts.num_rows,
            "errors": self.counts.num_errors,
            "tokens": self.counts.completion_tokens,
            "tokens_per_s": round(self.tokens_per_s, 1),
        }

    @property
    def text(self) -> str:
        """`, 64 rows, 4,210 tokens, 512 tokens/s`; "" where nothing was saved."""
        counts = self.counts
        if not counts.num_rows:
            return ""
        errors = f" ({counted(counts.num_errors, 'error')})" if counts.num_errors else ""
        tokens = counted(counts.completion_tokens, "token")
        return f", {counted(counts.num_rows, 'row')}{errors}, {tokens}, {self.tokens_per_s:,.0f} tokens/s"
