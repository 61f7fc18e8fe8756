"""What is drawn is distributed as documented: the softmax at a temperature, cut to the nucleus, and nothing else."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.types import SamplingParams
from workers.engines.llama.sampling.sampler import MIN_SHARED_VOCAB, NO_TOKEN, Draws, Sampler

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


def tokens(logits: npt.NDArray[np.float32], params: SamplingParams, num_draws: int) -> list[int]:
    """Drawn one after the other from one stream."""
    sampler, draws = Sampler(len(logits)), Draws(11)
    return [sampler.sample(logits[None], [params], [draws])[0] for _ in range(num_draws)]


def reference_tokens(logits: npt.NDArray[np.float32], params: SamplingParams, num_draws: int) -> list[int]:
    """What `tokens` has to give, by a sort and sums in float64: draw, and strike out from there if outside."""
    probabilities, draws = softmax(logits, params.temperature), Draws(11)
    in_nucleus = nucleus(probabilities, params.top_p) > 0
    rank = np.argsort(np.argsort(-logits, kind="stable"), kind="stable")

    def one() -> int:
        left = probabilities.copy()
        while True:
            running = left.cumsum()
            token = int(np.searchsorted(running, draws.next() * running[-1], side="right"))
            if in_nucleus[token]:
                return token
            left[rank >= rank[token]] = 0

    return [one() for _ in range(num_draws)]


def assert_same_but_for_rounding(found: list[int], expected: list[int]) -> None:
    """The weights are float32: between two neighbours a draw can fall either way, though it hardly ever does."""
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 1


class Constant(Draws):
    """Always the same number."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self._value = value

    def next(self) -> float:
        return self._value


def shaped(shape: str, vocab_size: int) -> npt.NDArray[np.float32]:
    """Logits of one row: a wide nucleus, one of few tokens, or one whose edge goes through tokens equally likely."""
    rng = np.random.default_rng(5)
    logits = rng.standard_normal(vocab_size) * 3
    if shape == "peaked":
        logits[rng.integers(vocab_size, size=10)] = rng.uniform(8, 18, 10)
    if shape == "tied":
        logits = rng.integers(0, 4, vocab_size) / 2
    return logits.astype(np.float32)


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


@pytest.mark.parametrize("top_p", [1.0, 0.99, 0.95, 0.9, 0.5, 0.05])
@pytest.mark.parametrize("vocab_size", [1, 255, 256, 257, 3000])
@pytest.mark.parametrize("shape", ["flat", "peaked", "tied"])
def test_every_draw_is_that_of_a_sort_in_double_precision(shape: str, vocab_size: int, top_p: float) -> None:
    logits, params = shaped(shape, vocab_size), SamplingParams(top_p=top_p)
    assert_same_but_for_rounding(tokens(logits, params, 200), reference_tokens(logits, params, 200))


@pytest.mark.parametrize("temperature", [0.01, 0.2, 0.7, 2.0, 50.0])
@pytest.mark.parametrize("offset", [0, 1000, -1000])
def test_draws_are_right_at_any_temperature_and_however_large_the_logits(temperature: float, offset: int) -> None:
    # Steps of 1/8 survive the offset in float32.
    logits = (np.round(shaped("flat", 600) * 8) / 8 + offset).astype(np.float32)
    for params in (SamplingParams(temperature=temperature), SamplingParams(temperature=temperature, top_p=0.9)):
        assert_same_but_for_rounding(tokens(logits, params, 100), reference_tokens(logits, params, 100))


def test_a_row_draws_the_same_in_any_company() -> None:
    """Given rows of all kinds, each draws in a batch, its neighbours in any order, what it draws by itself."""
    kinds = [SamplingParams(temperature=t, top_p=p) for t in (0.0, 0.5, 1.0) for p in (1.0, 0.95, 0.3)]
    rows = np.stack([shaped(shape, 1000) for shape in ("flat", "peaked", "tied") for _ in kinds])
    params = kinds * 3
    alone = [
        [Sampler(1000).sample(row[None], [p], [draws])[0] for _ in range(5)]
        for row, p, draws in zip(rows, params, map(Draws, range(len(rows))), strict=True)
    ]

    for order in (np.arange(len(rows)), np.random.default_rng(1).permutation(len(rows))):
        sampler, draws = Sampler(1000), [Draws(int(seed)) for seed in order]
        steps = [sampler.sample(rows[order], [params[i] for i in order], draws) for _ in range(5)]

        assert [list(column) for column in zip(*steps, strict=True)] == [alone[i] for i in order]


def test_a_row_draws_the_same_whatever_the_row_before_was() -> None:
    """Given rows near to 0 and far from it in all orders, and temperatures that bring them nearer or farther."""
    # Steps of 1/8 survive the offset in float32.
    near = np.round(shaped("flat", 600) * 8) / 8
    rows = [(near + offset).astype(np.float32) for offset in (0, 30, 60, 150, -30, -60, -150)]
    cases = [(row, SamplingParams(temperature=t, top_p=p)) for row in rows for t, p in ((0.2, 1), (1, 1), (3, 0.9))]
    order = np.random.default_rng(2).integers(len(cases), size=300).tolist()
    sampler = Sampler(600)

    for seed, at in enumerate(order):
        row, params = cases[at]
        found = sampler.sample([row], [params], [Draws(seed)])

        assert found == Sampler(600).sample([row], [params], [Draws(seed)])


def mixed_step(vocab_size: int) -> tuple[npt.NDArray[np.float32], list[SamplingParams]]:
    """Rows for more threads than one, drawn in all ways."""
    rows = np.stack([shaped(shape, vocab_size) for shape in ("flat", "peaked", "tied", "flat")] * 3)
    kinds = [(1.0, 1.0, 0), (0.0, 1.0, 0), (0.7, 0.9, 0), (1.0, 1.0, 40)] * 3
    return rows, [SamplingParams(temperature=t, top_p=p, top_k=k) for t, p, k in kinds]


def test_threads_draw_what_one_draws() -> None:
    rows, params = mixed_step(MIN_SHARED_VOCAB)
    alone, shared = (Sampler(MIN_SHARED_VOCAB, num_threads=n) for n in (1, 4))
    draws = [[Draws(seed) for seed in range(len(rows))] for _ in range(2)]

    for _ in range(3):
        assert shared.sample(rows, params, draws[1]) == alone.sample(rows, params, draws[0])
    shared.close()


def test_threads_leave_no_broken_row_unnoticed() -> None:
    """Given one row that holds no number, whichever thread comes to it."""
    rows, params = mixed_step(MIN_SHARED_VOCAB)
    sampler = Sampler(MIN_SHARED_VOCAB, num_threads=4)
    for broken in range(len(rows)):
        step = rows.copy()
        step[broken, 77] = np.nan
        found = sampler.sample(step, params, [Draws(seed) for seed in range(len(rows))])
        assert [at for at, token in enumerate(found) if token == NO_TOKEN] == [broken]
    sampler.close()


def test_a_seed_draws_what_it_drew_in_earlier_versions() -> None:
    """So that a job that was begun by another version ends with the texts that it would have had."""
    logits = (np.arange(3_000) * 7919 % 1009 / 64).astype(np.float32)
    assert tokens(logits, SamplingParams(), 6) == [1709, 798, 581, 2467, 1451, 119]
    assert tokens(logits, SamplingParams(temperature=0.25), 6) == [1715, 785, 554, 2493, 1451, 99]
    assert tokens(logits, SamplingParams(top_p=0.5), 6) == [798, 1451, 119, 66, 1794, 1207]
    assert tokens(logits, SamplingParams(top_k=9), 6) == [1774, 765, 521, 2539, 1530, 277]


def test_logits_are_left_alone() -> None:
    logits = np.stack([shaped("flat", 300)] * 4)
    before = logits.copy()
    params = [SamplingParams(temperature=t, top_p=p) for t, p in ((0, 1), (1, 1), (0.5, 1), (1, 0.5))]
    Sampler(300).sample(logits, params, [Draws(seed) for seed in range(4)])
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("top_p", [1.0, 0.95])
def test_a_token_of_no_weight_is_never_drawn(uniform: float, top_p: float) -> None:
    """Given tokens that the model rules out, before, between and after the others, in blocks of their own as well."""
    logits = np.full(1500, -np.inf, np.float32)
    logits[300:900:3] = shaped("flat", 200)
    token = Sampler(1500).sample(logits[None], [SamplingParams(top_p=top_p)], [Constant(uniform)])[0]
    assert np.isfinite(logits[token])


def test_a_huge_temperature_leaves_all_tokens_alike(logits: npt.NDArray[np.float32]) -> None:
    counts = frequencies(logits, SamplingParams(temperature=1e6), 20_000)
    assert_distributed_as(counts, np.full(len(logits), 1 / len(logits)))


def test_equally_likely_tokens_fill_the_nucleus_in_order() -> None:
    counts = frequencies(np.zeros(10, np.float32), SamplingParams(top_p=0.25), 1_000)
    assert np.flatnonzero(counts).tolist() == [0, 1, 2]


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(temperature=1e-30)])
def test_temperature_zero_takes_the_most_likely(logits: npt.NDArray[np.float32], params: SamplingParams) -> None:
    assert frequencies(logits, params, 5)[int(logits.argmax())] == 5


@pytest.mark.parametrize("top_p", [1e-9, 5e-324])
def test_tiny_top_p_takes_the_most_likely(logits: npt.NDArray[np.float32], top_p: float) -> None:
    logits[600] = logits.max()
    assert frequencies(logits, SamplingParams(top_p=top_p), 20)[int(logits.argmax())] == 20


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(top_p=1e-9)])
def test_of_equally_likely_tokens_the_first_is_the_most_likely(params: SamplingParams) -> None:
    logits = np.zeros(1000, np.float32)
    logits[[300, 301, 700]] = 2.7
    assert tokens(logits, params, 20) == [300] * 20


def test_same_seed_draws_the_same_and_another_does_not(logits: npt.NDArray[np.float32]) -> None:
    sampler = Sampler(len(logits))

    def drawn(seed: int) -> list[int]:
        draws = Draws(seed)
        return [sampler.sample(logits[None], [SamplingParams()], [draws])[0] for _ in range(50)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams(), SamplingParams(top_p=0.9)])
def test_a_row_that_holds_no_number_gets_no_token(broken: float, params: SamplingParams) -> None:
    logits = np.zeros((2, 600), np.float32)
    logits[1, 599] = broken
    whole, spoiled = Sampler(600).sample(logits, [params] * 2, [Draws(0), Draws(1)])
    assert spoiled == NO_TOKEN
    assert 0 <= whole < 600


@pytest.mark.parametrize("params", [SamplingParams(temperature=0), SamplingParams()])
def test_a_row_that_rules_every_token_out_gets_none(params: SamplingParams) -> None:
    assert Sampler(8).sample(np.full((1, 8), -np.inf, np.float32), [params], [Draws(0)]) == [NO_TOKEN]


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=600), st.integers(0), st.floats(0.01, 1.0))
def test_any_draw_is_a_token_of_the_nucleus(values: list[float], seed: int, top_p: float) -> None:
    logits = np.array(values, np.float32)
    token = Sampler(len(values)).sample(logits[None], [SamplingParams(top_p=top_p)], [Draws(seed)])[0]
    probabilities = softmax(logits, 1.0)
    # Weights are float32: tokens whose probabilities differ by less than its resolution are equally likely.
    more_likely = probabilities[probabilities > probabilities[token] * (1 + 1e-5)].sum()
    assert more_likely < top_p + 1e-5
