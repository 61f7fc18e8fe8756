"""Log-probabilities of generated tokens are those of the softmax, whatever the size of the vocabulary."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from batcher.errors import EngineError
from workers.engines.llama.sampling.logprobs import likeliest, log_sum_exp, token_logprob


def random_logits(vocab_size: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(vocab_size).normal(0, 4, vocab_size).astype(np.float32)


def piece(token: int) -> bytes:
    return b"%d" % token


@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
@pytest.mark.parametrize("vocab_size", [1, 3, 300, 6_000, 49_152, 262_144])
def test_a_token_and_the_likeliest_have_the_logarithms_of_their_probabilities(vocab_size: int, num_top: int) -> None:
    logits, token = random_logits(vocab_size), vocab_size // 3
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum())

    found = token_logprob(logits, token, num_top=num_top, piece=piece)

    assert (found.token, len(found.top)) == (piece(token), min(num_top, vocab_size))
    assert found.logprob is not None
    assert math.isclose(found.logprob, exact[token], abs_tol=1e-5)
    order = np.argsort(-logits, kind="stable")[:num_top]
    assert [token for token, _ in found.top] == [piece(int(one)) for one in order]
    assert np.allclose([value for _, value in found.top], exact[order], atol=1e-5)


@pytest.mark.parametrize("offset", [1000, -1000])
def test_logits_far_from_zero_neither_overflow_nor_vanish(offset: int) -> None:
    logits = np.full(600, offset, np.float32)
    assert math.isclose(log_sum_exp(logits), offset + math.log(600), rel_tol=1e-6)


def test_of_equal_logits_as_many_are_the_likeliest_as_were_asked_for() -> None:
    found = likeliest(np.zeros(3_000, np.float32), 5)
    assert len(set(found.tolist())) == 5


def test_logits_are_left_alone() -> None:
    logits = random_logits(2_000)
    before = logits.copy()
    token_logprob(logits, 0, num_top=5, piece=piece)
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_engine_error(broken: float) -> None:
    logits = np.zeros(600, np.float32)
    logits[7] = broken
    with pytest.raises(EngineError, match="GGUF"):
        log_sum_exp(logits)
