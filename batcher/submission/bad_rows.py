"""A mistake that ruins every row is told, rather than made a job of error rows.

A wrong column name or a model that nobody knows refuses each row of an input for the same reason. What tells one reason
from another is the code of the error, the field and the kind of the mistake, never the words of a message.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from batcher.jobdir.shards import ShardRow
from batcher.submission.rows import RefusedRow, RowBatch
from batcher.types import ErrorCode, Request

#: An input whose first rows, so many, all have the same mistake is not read further; a shorter one to its end.
NUM_ROWS = 1000

_INDEX = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a row is refused, apart from its number and its values. `param` is "" for the row as a whole."""

    code: ErrorCode
    param: str
    kind: str


class BadRowsWatch:
    """Sees the rows of an input in order, until one is good or has another mistake than the first. Mutable.

    `context_lengths` are those of the models that are known, in tokens: a row whose max_tokens alone are as many can't
    run there, although it is a valid request.
    """

    def __init__(self, context_lengths: Mapping[str, int]) -> None:
        self._context_lengths = context_lengths
        self._reason: Reason | None = None
        self._example = ""
        self._num_rows = 0
        self._is_over = False

    @property
    def is_certain(self) -> bool:
        """Whether so many rows have the mistake that the others need not be looked at."""
        return not self._is_over and self._num_rows >= NUM_ROWS

    def add(self, batch: RowBatch) -> None:
        """Look at the next rows of the input; at none, once it is known that they do not share a mistake."""
        if self._is_over or self._num_rows >= NUM_ROWS:
            return
        for position, row in enumerate(batch.rows[: NUM_ROWS - self._num_rows]):
            reason = self._reason_of(row)
            if reason is None or (self._reason is not None and reason != self._reason):
                self._is_over = True
                return
            if self._reason is None:
                self._reason = reason
                self._example = row.error.message if row.error else self._no_room(row, batch.origin.source(position))
            self._num_rows += 1

    def find(self, *, is_strict: bool) -> str | None:
        """Why no job is made of the rows so far, and the remedy, if all of them have the same mistake."""
        if self._is_over or not self._num_rows:
            return None
        if self._num_rows == 1:
            rows = "the only row is refused"
        else:
            which = f"the first {self._num_rows:,}" if self.is_certain else f"all {self._num_rows:,}"
            rows = f"{which} rows are refused for the same reason"
        remedy = "Correct that" + (
            "" if is_strict else ", or give --allow-bad-rows to have a job with these error rows"
        )
        return f"{rows}, so no job is made of them:\n  {self._example}\n{remedy}"

    def _reason_of(self, row: ShardRow) -> Reason | None:
        if row.error is not None:
            param = _INDEX.sub("[]", row.error.param or "")
            return Reason(row.error.code, param, row.kind if isinstance(row, RefusedRow) else "value")
        limit = self._context_lengths.get(row.request.model)
        if limit is not None and _leaves_no_room(row.request, limit):
            return Reason(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "max_tokens", "value")
        return None

    def _no_room(self, row: ShardRow, source: str) -> str:
        request = row.request
        return (
            f"{source}: max_tokens is {request.params.max_tokens}, which leaves no room for a prompt in the context of "
            f"{self._context_lengths[request.model]} tokens; use fewer, or a larger --ctx"
        )


def _leaves_no_room(request: Request, limit: int) -> bool:
    return not request.params.clips_max_tokens and request.params.max_tokens >= limit
