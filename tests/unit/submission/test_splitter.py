"""Rows are distributed over shards: sizes, models, order, numbering."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.jobdir.manifest import ShardInfo
from batcher.jobdir.shards import Shard, ShardRow
from batcher.submission import splitter
from batcher.submission.carried import CarriedColumns, TableRow
from batcher.submission.readers.files import Origin
from batcher.submission.rows import RowBatch
from batcher.submission.splitter import MAX_OPEN_BYTES, MAX_SHARD_BYTES, Splitter
from batcher.types import ErrorCode, Request, RowError, SamplingParams, Tools

PARAMS = SamplingParams()
BAD = RowError(ErrorCode.INVALID_REQUEST, "bad")


def row(number: int, model: str | None = "m", num_prompts: int = 1) -> ShardRow:
    request = Request(number, f"row-{number}", model or "m", ("p",) * num_prompts, num_prompts > 1, PARAMS)
    return ShardRow(request, BAD if model is None else None)


def batch(rows: list[ShardRow], num_bytes: int = 10) -> RowBatch:
    carried = [{"n": r.request.row} for r in rows]
    return RowBatch(Origin("f", ":", range(1, len(rows) + 1)), rows, carried, [num_bytes] * len(rows))


def split(*batches: RowBatch, shard_rows: int | None = None) -> tuple[tuple[ShardInfo, ...], dict[int, Shard]]:
    written: dict[int, Shard] = {}

    def write(number: int, shard: Shard) -> None:
        assert number not in written
        written[number] = shard

    splits = Splitter(write, carried=CarriedColumns(), shard_rows=shard_rows)
    for one in batches:
        splits.add(one)
    return splits.finish(), written


def test_small_job_spreads_over_workers_and_a_big_one_has_few_files() -> None:
    sizes = {
        number: [info.num_rows for info in split(batch([row(i) for i in range(number)]))[0]]
        for number in (10, 100, 2000, 50_000)
    }
    assert sizes[10] == [10]
    assert sizes[100] == [32, 32, 32, 4]
    assert len(sizes[2000]) > 15
    assert max(sizes[50_000]) == 512
    assert len(sizes[50_000]) < 150


def test_shards_do_not_depend_on_how_the_rows_were_batched() -> None:
    rows = [row(i, "ab"[i % 3 == 0]) for i in range(1000)]
    whole = split(batch(rows))[0]
    assert split(*[batch(rows[i : i + 7]) for i in range(0, 1000, 7)])[0] == whole


def test_number_of_rows_can_be_fixed() -> None:
    assert [i.num_rows for i in split(batch([row(i) for i in range(7)]), shard_rows=3)[0]] == [3, 3, 1]


def test_large_rows_close_a_shard_early() -> None:
    infos, _ = split(batch([row(i) for i in range(10)], num_bytes=MAX_SHARD_BYTES // 2))
    assert [info.num_rows for info in infos] == [2] * 5


def test_shards_are_numbered_by_their_first_row_and_hold_one_model_each() -> None:
    infos, written = split(batch([row(0, "b"), row(1, None), row(2, "a", 3), row(3, "b", 2), row(4, None)]))
    assert infos == (ShardInfo(0, "b", 2, 3), ShardInfo(1, None, 2, 0), ShardInfo(2, "a", 1, 3))
    assert [[r.request.row for r in written[i].rows] for i in range(3)] == [[0, 3], [1, 4], [2]]
    assert written[0].carried.to_pydict() == {"n": [0, 3]}


def test_many_models_do_not_pile_up_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    splits = Splitter(lambda number, shard: None, carried=CarriedColumns(), shard_rows=None)
    for i in range(100):
        splits.add(batch([row(i, f"m{i}")], num_bytes=MAX_SHARD_BYTES - 1))
        held.append(sum(shard.num_bytes for shard in splits._open.values()))
    assert max(held) <= MAX_OPEN_BYTES
    assert len(splits.finish()) == 100


def test_few_rows_of_a_table_do_not_hold_all_of_it() -> None:
    table = pa.table({"n": range(1000)})
    rows = [row(i, "rare" if i % 500 == 3 else "m") for i in range(1000)]
    splits = Splitter(lambda number, shard: None, carried=CarriedColumns(), shard_rows=10_000)
    splits.add(RowBatch(Origin("f", ": row ", range(1, 1001)), rows, table, [1] * 1000))
    held = splits._open["rare"].carried
    assert [one.position for one in held if isinstance(one, TableRow)] == [0, 1]
    assert held[0].table["n"].to_pylist() == [3, 503]  # type: ignore[union-attr]


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", None]), max_size=40), max_size=6),
    st.none() | st.integers(1, 5),
    st.booleans(),
)
def test_every_row_is_in_one_shard_in_order_with_its_values(
    models: list[list[str | None]], shard_rows: int | None, is_table: bool
) -> None:
    batches = []
    number = 0
    for some in models:
        rows = [row(number + i, model) for i, model in enumerate(some)]
        number += len(rows)
        one = batch(rows)
        if is_table and rows:
            one = RowBatch(one.origin, rows, pa.table({"n": [r.request.row for r in rows]}), one.num_bytes)
        batches.append(one)
    infos, written = split(*batches, shard_rows=shard_rows)
    assert [info.shard for info in infos] == list(range(len(written)))
    seen: Counter[int] = Counter()
    for info in infos:
        shard = written[info.shard]
        numbers = [r.request.row for r in shard.rows]
        seen.update(numbers)
        assert numbers == sorted(numbers)
        assert len(numbers) == info.num_rows
        assert {None if r.error else r.request.model for r in shard.rows} == {info.model}
        assert shard.carried["n"].to_pylist() == numbers
    assert seen == Counter(range(number))


def test_bounds_make_sense_together() -> None:
    assert splitter.MIN_SHARD_ROWS <= splitter.MAX_SHARD_ROWS
    assert MAX_SHARD_BYTES < MAX_OPEN_BYTES


def test_longest_request_bounds_the_tokens_of_every_good_row() -> None:
    """By bytes: no token stands for less than one; two more for what a tokenizer puts in front."""
    prompts = {0: ("ab", "é" * 10), 1: ("x",), 2: ("refused " * 100,)}
    rows = [
        ShardRow(
            Request(number, f"row-{number}", "m", texts, len(texts) > 1, SamplingParams(max_tokens=10 + number)),
            BAD if number == 2 else None,
        )
        for number, texts in prompts.items()
    ]
    splits = Splitter(lambda number, shard: None, carried=CarriedColumns(), shard_rows=None)
    splits.add(batch(rows))
    assert splits.longest_request == 20 + 2 + 10


def test_choices_of_a_shard_are_those_that_its_results_will_have() -> None:
    request = Request(0, "a", "m", ("p", "q"), True, SamplingParams(n=3, best_of=5))
    assert split(batch([ShardRow(request)]))[0][0].num_choices == 6


def test_longest_request_has_room_for_what_is_put_around_the_prompt() -> None:
    def longest(**changes: Any) -> int:
        splits = Splitter(lambda number, shard: None, carried=CarriedColumns(), shard_rows=None)
        request = replace(Request(0, "a", "m", ("é",), False, SamplingParams(max_tokens=10)), **changes)
        splits.add(batch([ShardRow(request)]))
        return splits.longest_request

    assert longest() == 14
    assert longest(is_chat=True) == 14 + splitter.CHAT_EXTRA_TOKENS
    with_suffix = SamplingParams(max_tokens=10, suffix="end")
    assert longest(params=with_suffix) == 14 + 3 + splitter.INFILL_TOKENS
    with_tools = SamplingParams(max_tokens=10, tools=Tools("[{}]"))
    assert longest(is_chat=True, params=with_tools) == longest(is_chat=True) + 8 + splitter.TOOLS_EXTRA_TOKENS
    assert longest(is_token_ids=True, prompts=("[100000]", "[1,200000,3]")) == 3 + 10
