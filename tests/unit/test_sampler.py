"""What is drawn is distributed as documented: the softmax at a temperature, cut to the nucleus, and nothing else."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import EngineError
from batcher.types import SamplingParams
from workers.engine.sampler import Draws, Sampler

#: Quantile of the standard normal beyond which a sound sampler goes once in ten million runs.
FAR_OUT = 5.2


def softmax(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float64]:
    weights: npt.NDArray[np.float64] = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    weights /= weights.sum()
    return weights


def nucleus(probabilities: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.float64]:
    """The definition: sort, keep the smallest head that reaches top_p, renormalise."""
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = np.zeros_like(probabilities)
    kept[order[before < top_p]] = probabilities[order[before < top_p]]
    kept /= kept.sum()
    return kept


def frequencies(logits: npt.NDArray[np.float32], params: SamplingParams, num_draws: int) -> npt.NDArray[np.int64]:
    sampler, draws = Sampler(len(logits)), Draws(7)
    rows = logits[None, :]
    tokens = [sampler.sample(rows, [params], [draws])[0] for _ in range(num_draws)]
    return np.bincount(tokens, minlength=len(logits))


def assert_distributed_as(counts: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> None:
    """Pearson's chi-squared over the cells expected at least 5 times, the rest pooled; normal approximation."""
    assert counts[expected == 0].sum() == 0
    total = counts.sum()
    big = expected * total >= 5
    observed = np.append(counts[big], counts[~big].sum())
    wanted = np.append(expected[big], expected[~big].sum()) * total
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    chi2 = float(((observed - wanted) ** 2 / wanted).sum())
    degrees = len(wanted) - 1
    assert chi2 < degrees + FAR_OUT * np.sqrt(2 * degrees) + FAR_OUT**2


@pytest.fixture
def logits() -> npt.NDArray[np.float32]:
    """A vocabulary that is no multiple of the sampler's block, some tokens likely, a long tail."""
    return (np.random.default_rng(3).standard_normal(700) * 2).astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1.7])
def test_default_top_p_draws_from_the_whole_softmax(logits: npt.NDArray[np.float32], temperature: float) -> None:
    counts = frequencies(logits, SamplingParams(temperature=temperature), 20_000)
    assert_distributed_as(counts, softmax(logits, temperature))


@pytest.mark.parametrize("top_p", [0.95, 0.5, 0.1])
def test_top_p_draws_from_the_renormalised_nucleus(logits: npt.NDArray[np.float32], top_p: float) -> None:
    counts = frequencies(logits, SamplingParams(top_p=top_p), 20_000)
    assert_distributed_as(counts, nucleus(softmax(logits, 1.0), top_p))


def test_nothing_narrows_the_tail_at_the_documented_defaults() -> None:
    """Uniform logits: top_k 40 or any min_p would leave most of the vocabulary out."""
    counts = frequencies(np.zeros(1000, np.float32), SamplingParams(), 20_000)
    assert np.count_nonzero(counts) == 1000


def test_equally_likely_tokens_fill_the_nucleus_in_order() -> None:
    counts = frequencies(np.zeros(10, np.float32), SamplingParams(top_p=0.25), 1_000)
    assert np.flatnonzero(counts).tolist() == [0, 1, 2]


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(temperature=1e-30)])
def test_temperature_zero_takes_the_most_likely(logits: npt.NDArray[np.float32], params: SamplingParams) -> None:
    assert frequencies(logits, params, 5)[int(logits.argmax())] == 5


def test_tiny_top_p_takes_the_most_likely(logits: npt.NDArray[np.float32]) -> None:
    assert frequencies(logits, SamplingParams(top_p=1e-9), 20)[int(logits.argmax())] == 20


def test_same_seed_draws_the_same_and_another_does_not(logits: npt.NDArray[np.float32]) -> None:
    sampler = Sampler(len(logits))

    def tokens(seed: int) -> list[int]:
        draws = Draws(seed)
        return [sampler.sample(logits[None], [SamplingParams()], [draws])[0] for _ in range(50)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_engine_error(broken: float) -> None:
    logits = np.zeros((1, 8), np.float32)
    logits[0, 3] = broken
    with pytest.raises(EngineError, match="GGUF"):
        Sampler(8).sample(logits, [SamplingParams()], [Draws(0)])


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=600), st.integers(0), st.floats(0.01, 1.0))
def test_any_draw_is_a_token_of_the_nucleus(values: list[float], seed: int, top_p: float) -> None:
    logits = np.array(values, np.float32)
    token = Sampler(len(values)).sample(logits[None], [SamplingParams(top_p=top_p)], [Draws(seed)])[0]
    probabilities = softmax(logits, 1.0)
    # Weights are float32: tokens whose probabilities differ by less than its resolution are equally likely.
    more_likely = probabilities[probabilities > probabilities[token] * (1 + 1e-5)].sum()
    assert more_likely < top_p + 1e-5
