"""Repeated custom_ids are found, exactly, and named with both their sources."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import InputError
from batcher.submission import custom_ids
from batcher.submission.custom_ids import CustomIds
from batcher.submission.readers.files import Origin


def check(*batches: tuple[Sequence[str], Origin]) -> None:
    with CustomIds() as ids:
        for names, origin in batches:
            ids.add(names, origin)
        ids.check()


def test_different_ids_pass() -> None:
    check((["a", "b"], Origin("x", ":", range(1, 3))), (["c", "A"], Origin("y", ":", range(1, 3))))


def test_repeated_id_is_named_with_both_rows() -> None:
    with pytest.raises(InputError, match=r"^custom_id 'b' is used twice, by x\.jsonl:4 and y\.parquet: row 1; "):
        check(
            (["a"], Origin("x.jsonl", ":", range(1, 2))),
            (["b", "c"], Origin("x.jsonl", ":", [4, 7])),
            (["d"], Origin("x.jsonl", ":", range(8, 9))),
            (["b"], Origin("y.parquet", ": row ", range(1, 2))),
        )


@given(st.lists(st.lists(st.text(max_size=2), min_size=1, max_size=5), max_size=8))
def test_answer_is_that_of_a_set(batches: list[list[str]]) -> None:
    flat = [name for names in batches for name in names]
    numbered = [(names, Origin("f", ":", range(1, len(names) + 1))) for names in batches]
    if len(set(flat)) == len(flat):
        check(*numbered)
    else:
        with pytest.raises(InputError, match="is used twice"):
            check(*numbered)


def test_ids_of_equal_hash_are_no_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom_ids, "hash", lambda name: len(name), raising=False)
    check((["a", "b", "cc", "dd"], Origin("f", ":", range(1, 5))))
    with pytest.raises(InputError, match="f:2 and f:4"):
        check((["a", "b", "cc", "b"], Origin("f", ":", range(1, 5))))


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=5), min_size=1, max_size=6))
def test_every_row_is_traced_to_its_line(gaps: list[list[int]]) -> None:
    sources = custom_ids._Sources()
    expected: list[str] = []
    number = 0
    for batch in gaps:
        numbers = []
        for gap in batch:
            number += gap
            numbers.append(number)
        is_unbroken = numbers == list(range(numbers[0], numbers[-1] + 1))
        sources.add(Origin("f", ":", range(numbers[0], numbers[-1] + 1) if is_unbroken else numbers))
        expected.extend(f"f:{n}" for n in numbers)
    assert [sources.find(row) for row in range(len(expected))] == expected


def test_unbroken_lines_take_no_memory_by_row() -> None:
    sources = custom_ids._Sources()
    for start in range(1, 1001, 10):
        sources.add(Origin("f", ":", range(start, start + 10)))
    assert len(sources._runs) == 1
