"""What top_k and min_p leave is drawn from exactly: against a sort in double precision, alone and with top_p."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batcher.types import SamplingParams
from tests.unit.engines.test_sampler import (
    Constant,
    assert_distributed_as,
    frequencies,
    nucleus,
    shaped,
    softmax,
    tokens,
)
from workers.engines.llama.sampling.narrowing import keep_few
from workers.engines.llama.sampling.sampler import NO_TOKEN, Draws, RowSampler, Sampler

Doubles = npt.NDArray[np.float64]


def narrowed(logits: npt.NDArray[np.float32], params: SamplingParams) -> Doubles:
    """The definition: softmax at the temperature, min_p, the first top_k of a stable sort, the nucleus of the rest."""
    probabilities = softmax(logits, params.temperature)
    kept = probabilities >= params.min_p * probabilities.max()
    if params.top_k:
        kept[np.argsort(-probabilities, kind="stable")[params.top_k :]] = False
    left = np.where(kept, probabilities, 0)
    left /= left.sum()
    return nucleus(left, params.top_p)


@pytest.mark.parametrize("vocab_size", [700, 12_000])
@pytest.mark.parametrize("shape", ["flat", "peaked", "tied"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=40),
        # 451.5 of 500 that are equally likely, where no rounding decides.
        SamplingParams(top_k=500, top_p=0.903),
        SamplingParams(min_p=0.05),
        SamplingParams(min_p=0.01, top_p=0.8, temperature=1.5),
        SamplingParams(top_k=7, min_p=0.2, top_p=0.95, temperature=0.7),
    ],
)
def test_draws_come_from_what_is_left(shape: str, params: SamplingParams, vocab_size: int) -> None:
    # Of 12,000 tokens a top_k of 40 is few, of 700 none; neither is a multiple of a block.
    logits = shaped(shape, vocab_size)
    num_draws = 4_000 if vocab_size < 1_000 else 1_000
    assert_distributed_as(frequencies(logits, params, num_draws), narrowed(logits, params))


#: Some tie exactly, none differ by so little that float32 could take one for the other.
small_logits = st.lists(st.integers(-40, 40).map(lambda step: step / 8), min_size=1, max_size=600)


@given(
    small_logits,
    st.integers(0, 20) | st.integers(0, 700),
    st.sampled_from([0.0, 0.0, 0.03, 0.3, 1.0]),
    st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]),
    st.sampled_from([1.0, 0.5, 2.0]),
    st.sampled_from([1, 1, 40]),
)
@example([0.0] * 600, 3, 0.0, 1.0, 1.0, 1)
@example([0.0] * 600, 3, 0.0, 1.0, 1.0, 40)
@example([0.0] * 600, 0, 1.0, 0.5, 1.0, 1)
@example([0.0, 1.0, 1.0, -5.0] * 100, 150, 0.3, 1.0, 1.0, 1)
def test_each_share_of_the_line_goes_to_its_token(
    values: list[float], top_k: int, min_p: float, top_p: float, temperature: float, distance: int
) -> None:
    """Given any logits, a draw at a point of [0, 1) is the token there in the running sum of what is left.

    Where that token is outside the nucleus, another inside it is drawn. With a `distance`, unlikely tokens lie between
    those of `values`.
    """
    logits = np.full(len(values) * distance, -12, np.float32)
    logits[::distance] = values
    params = SamplingParams(top_k=top_k, min_p=min_p, top_p=top_p, temperature=temperature)
    left = narrowed(logits, SamplingParams(top_k=top_k, min_p=min_p, temperature=temperature))
    running = left.cumsum()
    sampler = Sampler(len(logits))
    for point in np.linspace(0.003, 0.997, 15).tolist():
        token = sampler.sample(logits[None], [params], [Constant(point)])[0]
        if params.is_greedy:
            assert token == int(logits.argmax())
            continue
        assert left[token] > 0
        # The weights are float32: the nucleus may end a token earlier or later where its sum is just top_p.
        assert ahead_of(left, token) < top_p + 1e-5
        first, last = np.searchsorted(running, [point - 1e-5, point + 1e-5], side="right").tolist()
        if all(ahead_of(left, one) < top_p - 1e-5 for one in range(first, last + 1)):
            assert first <= token <= last


def ahead_of(probabilities: Doubles, token: int) -> float:
    """The sum of what comes before `token` in a stable sort."""
    more = probabilities > probabilities[token]
    return float(probabilities[more].sum() + probabilities[:token][probabilities[:token] == probabilities[token]].sum())


def test_exactly_top_k_are_left_of_equally_likely_tokens() -> None:
    counts = frequencies(np.zeros(1000, np.float32), SamplingParams(top_k=5), 500)
    assert np.flatnonzero(counts).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("vocab_size", [40, 700, 70_000])
def test_top_k_of_the_whole_vocabulary_or_more_changes_no_draw(vocab_size: int) -> None:
    logits = shaped("flat", vocab_size)
    for top_k in (vocab_size, vocab_size + 1, 10**9):
        assert tokens(logits, SamplingParams(top_k=top_k), 50) == tokens(logits, SamplingParams(), 50)


@pytest.mark.parametrize("top_k", [2, 155, 156, 300, 39_999])
def test_top_k_leaves_the_likeliest_of_a_large_vocabulary(top_k: int) -> None:
    # 156 whole blocks, so that small and large numbers are found in their own ways.
    logits = shaped("peaked", 40_000)
    kept = keep_few(logits, SamplingParams(top_k=top_k))
    if kept is not None:
        found = kept.tokens
    else:
        sampler = RowSampler(len(logits))
        sampler._weigh(logits, 1.0)
        sampler._strike_all_but(top_k)
        found = np.flatnonzero(sampler._weights)
    assert (kept is not None) == (top_k < 156)
    likeliest = np.sort(np.argsort(-softmax(logits, 1.0), kind="stable")[:top_k])
    assert found.tolist() == likeliest.tolist()


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("params", [SamplingParams(top_k=40), SamplingParams(min_p=0.05), SamplingParams(min_p=0.001)])
def test_a_broken_logit_of_a_large_vocabulary_gives_no_token(broken: float, params: SamplingParams) -> None:
    for at in (0, 20_000, 39_999):
        logits = shaped("flat", 40_000)
        logits[at] = broken
        assert Sampler(len(logits)).sample([logits], [params], [Draws(0)]) == [NO_TOKEN]


def test_a_row_that_rules_all_out_but_two_draws_those_of_a_large_vocabulary() -> None:
    logits = np.full(40_000, -np.inf, np.float32)
    logits[[3, 39_999]] = 1.0
    for params in (SamplingParams(top_k=40), SamplingParams(min_p=0.5), SamplingParams(top_k=40, top_p=0.9)):
        assert set(tokens(logits, params, 60)) == {3, 39_999}


@pytest.mark.parametrize("params", [SamplingParams(top_p=0.0), SamplingParams(top_k=1), SamplingParams(temperature=0)])
def test_one_token_left_is_the_likeliest_and_nothing_is_drawn(params: SamplingParams) -> None:
    logits, draws = shaped("tied", 600), Draws(3)
    assert Sampler(600).sample(logits[None], [params], [draws]) == [int(logits.argmax())]
    assert draws.next() == Draws(3).next()


def test_tokens_ruled_out_by_the_model_are_not_among_the_top() -> None:
    logits = np.full(1500, -np.inf, np.float32)
    logits[[5, 700]] = 1.0
    counts = frequencies(logits, SamplingParams(top_k=40, min_p=0.1), 200)
    assert np.flatnonzero(counts).tolist() == [5, 700]
