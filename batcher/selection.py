"""Which rows of an input a job has: all, the first, or a sample of them."""

from dataclasses import dataclass

from batcher.words import counted


@dataclass(frozen=True, slots=True)
class RowSelection:
    """The first `limit` rows of an input, or `sample` rows that are drawn from all of it; None: not so. Never both."""

    limit: int | None = None
    sample: int | None = None

    def __str__(self) -> str:
        if self.limit is not None:
            return "the first row" if self.limit == 1 else f"the first {self.limit:,} rows"
        if self.sample is not None:
            return f"a sample of {counted(self.sample, 'row')}"
        return "all rows"

    def find_shortage(self, num_rows: int) -> str:
        """What to say where an input gave so many rows only; "" where it had enough."""
        wanted = self.limit or self.sample or 0
        if wanted <= num_rows:
            return ""
        return f"the input has {counted(num_rows, 'row')}, fewer than {wanted:,}: all of them are taken"


#: The default.
ALL_ROWS = RowSelection()
