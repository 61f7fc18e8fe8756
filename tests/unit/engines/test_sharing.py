"""What requests have in common is computed once, on a real llama.cpp context: prefixes, and requests that are equal."""

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from batcher.errors import EngineError
from batcher.types import MIN_TEMPERATURE, Choice, FinishReason, SamplingParams, Usage
from tests.support.tiny_engine import choices_of, running
from workers.engines.base import SequenceRequest, SequenceResult, Ticket
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.sequence import Sequence
from workers.engines.llama.twins import DRAWING, UNSHAPING, Twins

GREEDY = SamplingParams(max_tokens=12, temperature=0, seed=0)

#: Each is some 70 tokens of the tiny model, and the second begins like the first.
TEMPLATES = ("Classify the text. " * 4, "Classify the text. " * 4 + "Answer yes or no. " * 3, "Translate: " * 7)


@pytest.fixture
def engine(tiny: Path) -> Iterator[LlamaEngine]:
    with running(tiny) as engine:
        yield engine


def test_rows_of_templates_say_the_same_as_without_sharing(engine: LlamaEngine, tiny: Path) -> None:
    requests = [(f"{template}row {n}", GREEDY) for n in range(16) for template in TEMPLATES]

    shared = choices_of(engine, requests)
    with running(tiny, num_slots=1) as plain:
        plain._cache.is_sharing = False
        alone = choices_of(plain, requests)

    # Float order differs with the batch's composition, so a rare row may differ.
    assert sum(a.text == b.text for a, b in zip(shared, alone, strict=True)) >= 0.95 * len(requests)
    assert all(choice.usage.cached_tokens == 0 for choice in alone)
    num_computed_whole = sum(choice.usage.cached_tokens == 0 for choice in shared)
    assert num_computed_whole <= 2, "one for each beginning that no other has"
    assert all(a.usage.prompt_tokens == b.usage.prompt_tokens for a, b in zip(shared, alone, strict=True))


def test_prefix_is_still_there_when_the_next_shard_comes(engine: LlamaEngine) -> None:
    choices_of(engine, [(TEMPLATES[0] + "first", GREEDY)])
    (later,) = choices_of(engine, [(TEMPLATES[0] + "second", GREEDY)])
    assert later.usage.cached_tokens >= 70


def test_equal_prompts_with_other_seeds_share_the_prefill_and_draw_for_themselves(engine: LlamaEngine) -> None:
    found = choices_of(engine, [(TEMPLATES[0], SamplingParams(max_tokens=12, seed=seed)) for seed in range(6)])
    assert len({choice.text for choice in found}) == 6
    num_prompt = found[0].usage.prompt_tokens
    assert sorted(choice.usage.cached_tokens for choice in found) == [0] + 5 * [num_prompt - 1]


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(max_tokens=12, seed=7)])
def test_equal_requests_are_decoded_once(engine: LlamaEngine, params: SamplingParams) -> None:
    found = choices_of(engine, [("hello world", params)] * 20)

    assert len({choice.text for choice in found}) == 1
    assert engine.num_steps == 12
    num_prompt = found[0].usage.prompt_tokens
    assert sorted(choice.usage.cached_tokens for choice in found) == [0] + 19 * [num_prompt]
    assert all(choice.usage.completion_tokens == 12 for choice in found)

    (again,) = choices_of(engine, [("hello world", params)])
    assert (again.text, again.usage.cached_tokens) == (found[0].text, num_prompt)
    assert engine.num_steps == 12, "its answer was remembered"


def test_greedy_requests_are_equal_whatever_their_seeds(engine: LlamaEngine) -> None:
    found = choices_of(engine, [("hello", replace(GREEDY, seed=seed, top_p=0.5)) for seed in range(5)])
    assert len({choice.text for choice in found}) == 1
    assert engine.num_steps == 12


def test_without_deduplication_each_is_decoded(tiny: Path) -> None:
    with running(tiny, is_deduplicating=False) as engine:
        found = choices_of(engine, [("hello world", GREEDY)] * 4)
        assert all(choice.usage.cached_tokens == 0 for choice in found)


def make(prompt: list[int], results: list[SequenceResult | EngineError], **changes: object) -> Sequence:
    params = replace(GREEDY, **changes)  # type: ignore[arg-type]
    return Sequence(
        SequenceRequest((len(results), 0), "", params, seed=params.seed or 0),
        np.array(prompt, np.int32),
        results.append,
        Ticket(),
    )


CHOICE = Choice(0, "text", FinishReason.LENGTH, Usage(2, 3), 1.0)


def other_value(value: object) -> object:
    """A value that is not `value`, of its type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case tuple():
            return (*value, "x")
        case None:
            return 1
    raise AssertionError(f"how does a parameter like {value!r} differ?")


@pytest.mark.parametrize("name", [each.name for each in fields(SamplingParams)])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_requests_that_differ_in_a_parameter_are_twins_only_if_it_can_change_nothing(
    name: str, temperature: float
) -> None:
    """Given any parameter, also one that is new, requests that differ in it have one answer only if it is named."""
    params = replace(GREEDY, temperature=temperature)
    changes = {name: other_value(getattr(params, name))}
    if name == "temperature" and not temperature:
        changes = {name: MIN_TEMPERATURE / 2}
    twins = Twins()
    results: list[SequenceResult | EngineError] = []
    assert not twins.join(make([1, 2], results, temperature=temperature))

    is_twin = twins.join(make([1, 2], results, **({"temperature": temperature} | changes)))

    # By itself a seed draws; `make` gives it to the sequence as callers do.
    is_unshaping = name in UNSHAPING if name != "seed" else not temperature
    assert is_twin == (is_unshaping or (name in DRAWING and not temperature))


def test_prompts_that_differ_are_no_twins() -> None:
    twins = Twins()
    results: list[SequenceResult | EngineError] = []
    assert not twins.join(make([1, 2], results))
    assert not twins.join(make([1, 3], results))
    assert not twins.join(make([1, 2, 3], results))


@pytest.mark.parametrize("greedy", [{"top_p": 0.0}, {"top_k": 1}])
def test_requests_that_take_the_likeliest_are_equal_however_they_say_it(greedy: dict[str, object]) -> None:
    twins = Twins()
    results: list[SequenceResult | EngineError] = []
    assert not twins.join(make([1, 2], results))
    assert twins.join(make([1, 2], results, temperature=1.0, seed=3, **greedy))


def test_answers_used_least_are_forgotten_first() -> None:
    twins = Twins(max_remembered=2)
    results: list[SequenceResult | EngineError] = []
    for token in (1, 2):
        sequence = make([token], results)
        assert not twins.join(sequence)
        twins.settle(sequence, CHOICE)
    assert twins.join(make([1], results))
    third = make([3], results)
    assert not twins.join(third)
    twins.settle(third, CHOICE)

    assert twins.join(make([1], results))
    assert not twins.join(make([2], results))


def test_no_more_text_is_remembered_than_agreed() -> None:
    twins = Twins(max_chars=len(CHOICE.text))
    results: list[SequenceResult | EngineError] = []
    for token in (1, 2):
        sequence = make([token], results)
        assert not twins.join(sequence)
        twins.settle(sequence, CHOICE)
    assert not twins.join(make([1], results))
    assert twins.join(make([2], results))


def test_request_whose_first_twin_is_gone_is_decoded_itself() -> None:
    twins = Twins()
    results: list[SequenceResult | EngineError] = []
    first = make([1, 2], results)
    assert not twins.join(first)
    twins.drop(first)
    assert not twins.join(make([1, 2], results))
