"""The dry run of a submit: what is in an input, and what would become of it."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from batcher.submission.bad_rows import BadRowsWatch
from batcher.submission.carried import CarriedColumns
from batcher.submission.rows import RowBatch
from batcher.submission.source import NUM_LISTED, Input, Source, SubmitOptions
from batcher.submission.splitter import Splitter
from batcher.types import Request, RowError

#: Of each request the tokens of each prompt, or the error that the engine of its model would give it.
Examine = Callable[[Sequence[Request]], Iterable[tuple[int, ...] | RowError]]


@dataclass(frozen=True, slots=True)
class TokenTotals:
    """Tokens the good rows take. `num_at_most` adds max_tokens to the prompts for every completion that is made."""

    num_prompt_tokens: int
    num_at_most: int
    longest_prompt: int


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What a dry run found. `bad` lists the first bad rows by file and line; `models` counts the rows of each model.

    Of the bad rows `num_refused` are so by the input alone; the others are valid requests that their model could not
    complete. `error_codes` counts all of them. `refusal` is why there would be no job, if all rows have one mistake.
    """

    num_rows: int
    num_ok: int
    num_bad: int
    num_refused: int
    num_choices: int
    num_prompt_chars: int
    error_codes: dict[str, int]
    bad: tuple[str, ...]
    models: dict[str, int]
    carried: pa.Schema
    tokens: TokenTotals | None
    refusal: str | None


def validate(
    inputs: Sequence[Input],
    options: SubmitOptions,
    *,
    num_listed: int = NUM_LISTED,
    examine: Examine | None = None,
) -> ValidationReport:
    """Read and check `inputs` as submit would, and write nothing. Lists the first `num_listed` bad rows.

    Raises InputError for what would refuse the whole input, but for rows that all have the same mistake.
    """
    carried = CarriedColumns(optional=options.optional.names)
    splitter = Splitter(lambda number, shard: None, carried=carried, shard_rows=options.shard_rows)
    watch = BadRowsWatch(options.context_lengths)
    count = _Count(num_listed, examine)
    for batch in Source(inputs, options).scan():
        splitter.add(batch)
        watch.add(batch)
        count.add(batch)
    splitter.finish()
    return ValidationReport(
        num_rows=count.num_rows,
        num_ok=count.num_ok,
        num_bad=count.num_rows - count.num_ok,
        num_refused=count.num_refused,
        num_choices=count.num_choices,
        num_prompt_chars=count.num_chars,
        error_codes=dict(count.codes),
        bad=tuple(count.bad),
        models=dict(count.models),
        carried=carried.schema,
        tokens=None if examine is None else TokenTotals(count.num_prompt_tokens, count.num_at_most, count.longest),
        refusal=None if options.allow_bad_rows else watch.find(is_strict=options.strict),
    )


class _Count:
    """What the rows add up to. Mutable."""

    def __init__(self, num_listed: int, examine: Examine | None) -> None:
        self._num_listed = num_listed
        self._examine = examine
        self.num_rows = self.num_ok = self.num_refused = self.num_choices = self.num_chars = 0
        self.num_prompt_tokens = self.num_at_most = self.longest = 0
        self.codes: Counter[str] = Counter()
        self.bad: list[str] = []
        self.models: Counter[str] = Counter()

    def add(self, batch: RowBatch) -> None:
        self.num_rows += len(batch.rows)
        good = [row.request for row in batch.rows if row.error is None]
        examined = iter(self._examine(good) if self._examine else [()] * len(good))
        for position, row in enumerate(batch.rows):
            request = row.request
            if row.error is not None:
                self.num_refused += 1
                self._add_bad(row.error, row.error.message)
                continue
            counts = next(examined)
            if isinstance(counts, RowError):
                self._add_bad(counts, f"{batch.origin.source(position)}: {counts.message}")
                continue
            self.num_ok += 1
            self.models[request.model] += 1
            self.num_choices += request.num_choices
            self.num_chars += sum(map(len, request.prompts))
            self.num_prompt_tokens += sum(counts)
            self.num_at_most += sum(counts) + request.num_sequences * request.params.max_tokens
            self.longest = max(self.longest, *counts, 0)

    def _add_bad(self, error: RowError, message: str) -> None:
        self.codes[error.code.value] += 1
        if len(self.bad) < self._num_listed:
            self.bad.append(message)
