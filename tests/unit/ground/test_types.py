"""The nouns: seeds that repeat, a taxonomy that is closed, data that can't be changed."""

from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher import types
from batcher.types import ErrorCode, Request, SamplingParams, Usage, splitmix64


def request(row: int, *, seed: int | None = None) -> Request:
    return Request(row, f"id-{row}", "m", ("p",), False, SamplingParams(seed=seed))


def test_documented_defaults() -> None:
    assert SamplingParams() == SamplingParams(max_tokens=16, temperature=1.0, top_p=1.0, stop=(), seed=None)


def test_splitmix64_gives_the_published_sequence() -> None:
    """The first outputs for seed 1234567, of the reference implementation (Vigna, splitmix64.c)."""
    gamma = 0x9E37_79B9_7F4A_7C15
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]

    assert [splitmix64(1234567 + i * gamma) for i in range(4)] == expected


def test_choices_of_a_job_draw_from_different_seeds() -> None:
    seeds = {request(row).choice_seed(index, job_seed=0) for row in range(2000) for index in range(3)}

    # 6000 draws of 32 bits: even one collision has a chance of 0.4%, and these are fixed.
    assert len(seeds) == 6000


@given(row=st.integers(0, 2**62), index=st.integers(0, 1000), job_seed=st.integers(0, 2**63 - 1))
def test_derived_seed_is_the_same_on_every_attempt(row: int, index: int, job_seed: int) -> None:
    first = request(row).choice_seed(index, job_seed=job_seed)

    assert first == request(row).choice_seed(index, job_seed=job_seed)
    assert 0 <= first < 2**32


@given(seed=st.integers(-(2**63), 2**63 - 1), index=st.integers(0, 1000))
def test_own_seed_counts_up_over_the_choices_whatever_the_row(seed: int, index: int) -> None:
    found = request(3, seed=seed).choice_seed(index, job_seed=1)

    assert found == request(4, seed=seed).choice_seed(index, job_seed=2) == (seed + index) % 2**32


def test_another_job_seed_draws_otherwise() -> None:
    assert request(0).choice_seed(0, job_seed=0) != request(0).choice_seed(0, job_seed=1)


def test_taxonomy_is_the_documented_one() -> None:
    assert {code: code.is_retriable for code in ErrorCode} == {
        "invalid_request": False,
        "context_length_exceeded": True,
        "model_not_found": True,
        "engine_error": True,
        "worker_crashed": True,
        "timeout": True,
        # It would be cut off at the same place.
        "truncated": False,
        "invalid_answer": True,
    }


def test_usage_adds_up() -> None:
    assert Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=4).total_tokens == 8


@pytest.mark.parametrize("cls", [cls for cls in vars(types).values() if isinstance(cls, type) and is_dataclass(cls)])
def test_every_noun_is_frozen_and_slotted(cls: type) -> None:
    assert "__slots__" in vars(cls)
    instance: object = object.__new__(cls)
    with pytest.raises(FrozenInstanceError):
        setattr(instance, fields(cls)[0].name, 1)
