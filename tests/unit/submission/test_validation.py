"""The dry run: it counts and refuses what a submit would, and writes nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from batcher.errors import InputError
from batcher.submission.validation import TokenTotals, validate
from batcher.types import ErrorCode, Request, RowError
from tests.support.submitted import make_options, names_in, write_lines


def count_words(request: Request) -> tuple[int, ...]:
    return tuple(len(prompt.split()) for prompt in request.prompts)


def test_validate_counts_what_submit_would_make_and_writes_nothing(tmp_path: Path) -> None:
    lines: Sequence[dict[str, Any] | bytes] = (
        {"prompt": "a b", "max_tokens": 5, "x": 1},
        {"prompt": ["c", "d e f"], "x": 0.5},
        b"bad",
        {"prompt": "p", "model": "nope"},
    )
    path = write_lines(tmp_path / "p.jsonl", *lines)
    before = names_in(tmp_path)

    report = validate([path], make_options(), num_listed=1, examine=lambda requests: map(count_words, requests))

    assert names_in(tmp_path) == before
    assert (report.num_rows, report.num_ok, report.num_bad, report.num_choices) == (4, 2, 2, 3)
    assert report.num_prompt_chars == 3 + 1 + 5
    assert report.bad == (f"{path}:3: not JSON (expected value at position 1); write one JSON object on each line",)
    assert report.models == {"tiny": 2}
    assert report.carried == pa.schema([("x", pa.float64())])
    assert report.tokens == TokenTotals(num_prompt_tokens=6, num_at_most=6 + 5 + 16 + 16, longest_prompt=3)
    assert validate([path], make_options()).tokens is None


def test_rows_that_their_model_could_not_complete_are_bad(tmp_path: Path) -> None:
    def examine(request: Request) -> tuple[int, ...] | RowError:
        if request.row == 1:
            return RowError(ErrorCode.CONTEXT_LENGTH_EXCEEDED, "too long")
        return count_words(request)

    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a b"}, {"prompt": "c d e"}, b"bad")

    report = validate([path], make_options(), examine=lambda requests: map(examine, requests))

    assert (report.num_ok, report.num_bad, report.num_refused, report.num_choices) == (1, 2, 1, 1)
    assert report.error_codes == {"context_length_exceeded": 1, "invalid_request": 1}
    assert report.bad[0] == f"{path}:2: too long"
    assert report.tokens == TokenTotals(num_prompt_tokens=2, num_at_most=2 + 16, longest_prompt=2)


def test_validate_refuses_what_submit_refuses(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", *[{"prompt": "p", "custom_id": "a"}] * 2)
    with pytest.raises(InputError, match="used twice"):
        validate([path], make_options())
    with pytest.raises(InputError, match="no such file"):
        validate([str(tmp_path / "nope")], make_options())
    with pytest.raises(InputError, match="no standard input"):
        validate(["-"], make_options())
