"""Identifiers: what is an id and what a model's name, and ids of responses that no other row or job has."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.broker.client import queue_name
from batcher.errors import InputError
from batcher.ids import (
    ID_PATTERN,
    check_id,
    check_model_name,
    completion_id,
    encode_name,
    is_model_name,
    new_job_id,
    response_digits,
)

MODEL_NAMES = [
    "gemma3:27b",
    "Qwen/Qwen3-0.6B",
    "org/name@rev",
    "a",
    "x" * 256,
    "modèle",
    "名前",
    "a=b",
    "-x",
    "..",
    "%2F",
]

model_names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=256)


@pytest.mark.parametrize("value", ["a", "A.b_c-1", "0", "x" * 128])
def test_usable_ids(value: str) -> None:
    assert check_id(value, what="job id") == value


@pytest.mark.parametrize(
    "value", ["", ".", "..", "-a", "_a", "a/b", "a b", "x" * 129, "é", "a\n", "a\x00", "a:b", "a*"]
)
def test_unusable_ids_are_refused_with_the_rule(value: str) -> None:
    with pytest.raises(InputError, match=r"job id .* is not usable: letters, digits"):
        check_id(value, what="job id")


@given(st.text(max_size=140))
def test_a_usable_id_is_always_a_plain_file_name(value: str) -> None:
    if ID_PATTERN.match(value):
        assert Path(value).name == value
        assert value.isascii()
        assert value.isprintable()
        assert value not in (".", "..")


@pytest.mark.parametrize("value", MODEL_NAMES)
def test_names_of_the_api_are_model_names(value: str) -> None:
    assert check_model_name(value) == value


@pytest.mark.parametrize(
    "value", ["", " ", "a b", "a\n", "a\tb", "a\x00", "a\u00a0b", "a\u200bb", "x" * 257, "\ud800", "a\u2028"]
)
def test_what_is_no_model_name_is_refused_with_the_rule(value: str) -> None:
    with pytest.raises(InputError, match=r"model name .* is not usable: use 1 to 256 printable characters"):
        check_model_name(value)


@given(st.lists(model_names, min_size=2, max_size=2, unique=True))
def test_names_stay_apart_as_keys_and_need_no_escape_there(names: list[str]) -> None:
    encoded = [encode_name(name) for name in names]
    assert all(is_model_name(name) for name in names)
    assert len(set(encoded)) == 2
    assert all(text.isascii() and not set(text) & set("/:=@ *\x06\x16,") for text in encoded)


@given(st.from_regex(ID_PATTERN))
def test_queue_of_a_name_that_is_an_id_is_called_as_ever(name: str) -> None:
    assert queue_name(name, scope="here") == f"batcher.here.{name}"


def test_response_digits_are_24_of_a_row_of_a_job() -> None:
    digits = {response_digits(uid, row) for uid in ("a", "b", "a 1") for row in range(20)}
    assert len(digits) == 60
    assert all(len(each) == 24 and int(each, 16) >= 0 for each in digits)
    assert response_digits("a", 1) == response_digits("a", 1)


@pytest.mark.parametrize(("is_chat", "expected"), [(False, "cmpl-1f"), (True, "chatcmpl-1f")])
def test_completion_id_says_what_it_is_of(is_chat: bool, expected: str) -> None:
    assert completion_id("1f", is_chat=is_chat) == expected


def test_default_job_id_is_the_day_and_four_letters() -> None:
    before, found, after = datetime.now(UTC), new_job_id(), datetime.now(UTC)

    assert re.fullmatch(r"\d{8}-[a-z]{4}", found)
    assert found[:8] in {f"{before:%Y%m%d}", f"{after:%Y%m%d}"}
    assert ID_PATTERN.fullmatch(found)
