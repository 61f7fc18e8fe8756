"""Requests as sequences and back: numbers, seeds, the best of several, the prompt in front."""

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from batcher.types import Choice, ErrorCode, FinishReason, Request, RowError, SamplingParams, TokenLogprob, Usage
from workers.engines.base import SequenceRequest, SequenceResult
from workers.shard.choices import Gathering, sequence_requests


def request(*prompts: str, **params: object) -> Request:
    return Request(3, "c", "m", prompts, True, replace(SamplingParams(), **params))  # type: ignore[arg-type]


def sequences(of: Request) -> list[SequenceRequest]:
    return list(sequence_requests(of, position=5, job_seed=1, timeout_s=None))


def answer(sequence: SequenceRequest, logprob: float = -1.0) -> SequenceResult:
    number = sequence.key[1]
    logprobs = None if sequence.params.logprobs is None else (TokenLogprob(b"t", logprob),)
    return SequenceResult(
        sequence.key,
        Choice(number, f" {sequence.prompt}-{number}", FinishReason.STOP, Usage(1, 1), 1.0, logprobs),
    )


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=4), st.integers(1, 4), st.randoms())
def test_each_prompt_gets_its_choices_in_order_of_index(prompts: list[str], n: int, order: random.Random) -> None:
    asked = request(*prompts, n=n)
    found = sequences(asked)
    gathering = Gathering(asked)
    shuffled = order.sample(found, len(found))

    ends = [gathering.add(answer(sequence)) for sequence in shuffled]

    assert ends == [False] * (len(found) - 1) + [True]
    choices = gathering.choices()
    assert [choice.index for choice in choices] == list(range(len(prompts) * n)) == list(range(asked.num_choices))
    assert [choice.text.rpartition("-")[0] for choice in choices] == [f" {p}" for p in prompts for _ in range(n)]
    assert len({sequence.seed for sequence in found}) == len(found)


def test_best_are_those_with_the_likeliest_tokens() -> None:
    asked = request("p", "q", n=2, best_of=3)
    gathering = Gathering(asked)
    for sequence, logprob in zip(sequences(asked), [-3.0, -1.0, -2.0, -1.0, -5.0, -0.5], strict=True):
        gathering.add(answer(sequence, logprob))

    choices = gathering.choices()

    assert [choice.text for choice in choices] == [" p-1", " p-2", " q-5", " q-3"]
    assert [choice.index for choice in choices] == [0, 1, 2, 3]
    assert all(choice.logprobs is None for choice in choices), "they were not asked for"


def test_echo_puts_the_prompt_in_front() -> None:
    asked = request("p", "q", echo=True)
    gathering = Gathering(asked)
    for sequence in sequences(asked):
        gathering.add(answer(sequence))

    choices = gathering.choices()
    assert [choice.text for choice in choices] == ["p p-0", "q q-1"]
    assert [choice.text[choice.num_echoed :] for choice in choices] == [" p-0", " q-1"]


def test_best_is_by_what_was_generated_and_not_by_the_prompt_before_it() -> None:
    asked = request("p", best_of=2, echo=True, logprobs=0)
    prompt = (TokenLogprob(b"p", None), TokenLogprob(b"q", -20.0))
    gathering = Gathering(asked)
    for sequence, generated in zip(sequences(asked), ([-1.0], [-1.5] * 30), strict=True):
        logprobs = (*prompt, *(TokenLogprob(b"t", value) for value in generated))
        choice = Choice(sequence.key[1], f"pq{len(generated)}", FinishReason.STOP, Usage(2, 1), 1.0, logprobs)
        gathering.add(SequenceResult(sequence.key, choice))

    (best,) = gathering.choices()

    assert best.text == "pq1", "echoed once, by the engine"
    assert best.logprobs == (*prompt, TokenLogprob(b"t", -1.0))


def test_one_failed_sequence_fails_the_request() -> None:
    asked = request("p", n=2)
    first, second = sequences(asked)
    gathering = Gathering(asked)

    gathering.add(SequenceResult(first.key, error=RowError(ErrorCode.TIMEOUT, "late")))
    assert gathering.add(answer(second))

    assert gathering.choices() == ()
    assert gathering.error == RowError(ErrorCode.TIMEOUT, "late")


def test_own_seed_is_that_of_the_first_sequence() -> None:
    assert [sequence.seed for sequence in sequences(request("p", seed=7, n=3))] == [7, 8, 9]
