"""What is taken of a repository where no quantization is named."""

import pytest

from batcher.errors import ModelError
from batcher.models.choice import Candidate, choose
from batcher.models.weights import Weights

GB = 10**9
#: Of an 8B model, as it is published.
SIZES = {"Q2_K": 3.3, "Q4_K_M": 5.0, "Q5_K_M": 5.9, "Q6_K": 6.7, "Q8_0": 8.7, "BF16": 16.4}


def candidates(sizes: dict[str, float]) -> list[Candidate]:
    return [Candidate(Weights((f"m-{label}.gguf",), label), int(size * GB)) for label, size in sizes.items()]


@pytest.mark.parametrize(
    ("available", "label", "why"),
    [
        (64, "Q8_0", "the best up to 8 bits (8.7 GB, and weights may take two thirds of 64.0 GB of free memory)"),
        (13.05, "Q8_0", "the best up to 8 bits"),
        (13, "Q6_K", "the best that fits (6.7 GB, and weights may take two thirds of 13.0 GB of free memory)"),
        (8, "Q4_K_M", "the best that fits"),
        (5, "Q2_K", "the best that fits"),
    ],
)
def test_best_that_leaves_room_for_slots_is_taken(available: float, label: str, why: str) -> None:
    best, text = choose(candidates(SIZES), available=int(available * GB), repository="O/R")

    assert best.weights.label == label
    assert f"takes {label}, {why}" in text
    assert "hf:O/R:QUANT takes another" in text


def test_wide_weights_are_taken_where_there_are_no_others() -> None:
    best, _ = choose(candidates({"F32": 2, "F16": 1}), available=64 * GB, repository="O/R")

    assert best.weights.label == "F32"


def test_repository_of_which_nothing_fits_is_refused_with_the_smallest() -> None:
    with pytest.raises(ModelError, match=r"none of its 6 models fits: the smallest, Q2_K, has 3.3 GB, .* 4.0 GB"):
        choose(candidates(SIZES), available=4 * GB, repository="O/R")


def test_repository_of_several_models_asks_for_one() -> None:
    two = [*candidates({"Q8_0": 1}), Candidate(Weights(("other-Q8_0.gguf",), "Q8_0"), 2 * GB)]

    with pytest.raises(ModelError, match=r"which model.*Give hf:O/R/FILE.gguf, of m-Q8_0.gguf, other-Q8_0.gguf"):
        choose(two, available=64 * GB, repository="O/R")
