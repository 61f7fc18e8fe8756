"""Every sampling parameter, alone and together: an engine says what decoding by the definitions says."""

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import EngineError
from batcher.types import MIN_TEMPERATURE, Choice, SamplingParams
from tests.support.plain_decoding import LIKELY, TableModel, decode_plainly
from tests.unit.engines.test_engine_property import STEMS, SYSTEM, check, make_engine
from tests.unit.engines.test_sharing import other_value
from workers.engines.base import SequenceDelta, SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.twins import DRAWING, UNSHAPING

words = st.text(" ABC", min_size=1, max_size=3)

all_params = st.builds(
    SamplingParams,
    max_tokens=st.integers(1, 25),
    temperature=st.sampled_from([0.0, 0.0, 1.0, 0.6, 2.0]),
    top_p=st.sampled_from([1.0, 1.0, 0.7, 0.0]),
    top_k=st.sampled_from([0, 0, 0, 1, 3, 1000]),
    min_p=st.sampled_from([0.0, 0.0, 0.2, 1.0]),
    stop=st.lists(words, max_size=2).map(tuple),
    stop_token_ids=st.lists(st.sampled_from(LIKELY), max_size=2).map(tuple),
    min_tokens=st.sampled_from([0, 0, 1, 5, 30]),
    ignore_eos=st.booleans(),
    include_stop_str_in_output=st.booleans(),
    bad_words=st.lists(words.filter(str.strip), max_size=3).map(tuple),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3, 0.5]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.25, -0.5]),
    logit_bias=st.dictionaries(st.sampled_from(LIKELY), st.sampled_from([-4.0, 2.0]), max_size=2).map(
        lambda bias: tuple(bias.items())
    ),
    logprobs=st.sampled_from([None, None, 0]),
)


@dataclass
class Heard:
    """What came of the prompts of one caller, by their number."""

    choices: dict[int, Choice] = field(default_factory=dict)
    deltas: dict[int, str] = field(default_factory=lambda: defaultdict(str))
    logprobs: dict[int, list[float | None]] = field(default_factory=lambda: defaultdict(list))

    def take(self, result: SequenceResult | EngineError) -> None:
        assert isinstance(result, SequenceResult)
        assert result.choice is not None, result.error
        self.choices[result.key[0]] = result.choice

    def hear(self, delta: SequenceDelta) -> None:
        self.deltas[delta.key[0]] += delta.text
        self.logprobs[delta.key[0]].extend(each.logprob for each in delta.logprobs or ())


def submit(engine: LlamaEngine, prompts: list[tuple[str, SamplingParams]], *, is_live: bool = False) -> Heard:
    heard = Heard()
    requests = [
        SequenceRequest((n, 0), prompt, params, seed=n, is_live=is_live) for n, (prompt, params) in enumerate(prompts)
    ]
    engine.submit(requests, heard.take, on_delta=heard.hear if is_live else None)
    return heard


def complete(prompts: list[tuple[str, SamplingParams]], *, slots: int = 2) -> list[Choice]:
    """The choices of prompts on an engine of their own, in order."""
    model = TableModel(num_slots=slots)
    engine = make_engine(model, slots=slots, batch=64, is_deduplicating=True, is_sharing=True)
    heard = submit(engine, prompts)
    while engine.is_busy:
        engine._wait_for_work()
        engine.step()
        check(engine, model)
    return [heard.choices[n] for n in range(len(prompts))]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 8),
            st.booleans(),
            st.lists(st.tuples(st.sampled_from(STEMS), words, all_params), min_size=1, max_size=4),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 5),
    st.booleans(),
)
def test_every_completion_is_that_of_the_definitions(
    arrivals: list[tuple[int, bool, list[tuple[str, str, SamplingParams]]]], slots: int, is_sharing: bool
) -> None:
    """Given rows and live requests that take their slots, whatever their parameters, each gets what it would alone."""
    model = TableModel(num_slots=slots, can_cut=is_sharing)
    engine = make_engine(model, slots=slots, batch=max(32, slots), is_deduplicating=True, is_sharing=is_sharing)
    given_prompts = [[(upper(stem + word), params) for stem, word, params in each] for _, _, each in arrivals]
    heard: list[Heard] = []
    for (delay, is_live, _), prompts in zip(arrivals, given_prompts, strict=True):
        for _ in range(delay):
            if engine.is_busy:
                engine._wait_for_work()
                engine.step()
                check(engine, model)
        heard.append(submit(engine, prompts, is_live=is_live))
    while engine.is_busy:
        engine._wait_for_work()
        engine.step()
        check(engine, model)

    for (_, is_live, _), prompts, each in zip(arrivals, given_prompts, heard, strict=True):
        for n, (prompt, params) in enumerate(prompts):
            expected, choice = decode_plainly(prompt, params, seed=n), each.choices[n]
            assert (choice.text, choice.finish_reason) == (expected.text, expected.reason)
            assert choice.usage.completion_tokens == len(expected.tokens)
            if params.logprobs is not None:
                found = [token.logprob for token in choice.logprobs or ()]
                assert found == pytest.approx(expected.logprobs, abs=1e-5), "they are the model's own"
                assert not is_live or each.logprobs[n] == found
            assert not is_live or each.deltas[n] == choice.text


def upper(text: str) -> str:
    """The text in the characters that the model has."""
    return text.upper()


def test_repetition_penalty_counts_the_prompt_and_what_came_before_a_row_gave_way() -> None:
    """Given a row with penalties that leaves its only slot to a live request, it goes on as if it had not."""
    model = TableModel(num_slots=1)
    engine = make_engine(model, slots=1, batch=64, is_deduplicating=True, is_sharing=True)
    params = SamplingParams(max_tokens=20, repetition_penalty=1.5, frequency_penalty=0.5, ignore_eos=True, min_tokens=9)
    prompt = upper(SYSTEM) + "ABC"
    row = submit(engine, [(prompt, params)])
    for _ in range(7):
        engine._wait_for_work()
        engine.step()
    submit(engine, [(upper(SYSTEM) + "CAB", params)], is_live=True)
    while engine.is_busy:
        engine._wait_for_work()
        engine.step()
        check(engine, model)

    assert engine.stats().num_preempted == 1
    assert row.choices[0].text == decode_plainly(prompt, params, seed=0).text
    assert row.choices[0].text != decode_plainly(prompt, replace(params, repetition_penalty=1.0), seed=0).text
    assert row.choices[0].text != decode_plainly("C", params, seed=0).text


def test_request_that_rules_every_token_out_does_not_end_the_engine() -> None:
    everything = tuple(range(97))
    mute = SamplingParams(max_tokens=6, temperature=0.01, min_tokens=4, stop_token_ids=everything)
    silenced = SamplingParams(
        max_tokens=6, temperature=0, bad_words=tuple(map(chr, range(33, 97))), logit_bias=((32, -100),)
    )

    first, second, other = complete([("AB", mute), ("AB", silenced), ("AB", SamplingParams(max_tokens=6))])

    assert first.usage.completion_tokens == 5, "after min_tokens the first that comes is one to stop at"
    assert second.usage.completion_tokens <= 6
    assert other.text == decode_plainly("AB", SamplingParams(max_tokens=6), seed=2).text


@pytest.mark.parametrize("name", sorted((UNSHAPING | DRAWING) - {"suffix"}))
def test_parameters_that_twins_may_differ_in_change_no_completion(name: str) -> None:
    """Given prompts that are no chats, as a chat's parameters shape its prompt, and a suffix would, too."""
    params = SamplingParams(max_tokens=20, temperature=1.0 if name in UNSHAPING else 0.0)
    value: Any = MIN_TEMPERATURE / 2 if name == "temperature" else other_value(getattr(params, name))

    one, other = (complete([("ABC", each)] * 4) for each in (params, replace(params, **{name: value})))

    assert [choice.text for choice in one] == [choice.text for choice in other]


@pytest.mark.parametrize("penalty", [5e-324, 1e-30, 1e30, 1.7e308])
def test_absurd_penalty_is_no_broken_model(penalty: float) -> None:
    params = [SamplingParams(max_tokens=6, temperature=t, repetition_penalty=penalty) for t in (0.0, 1e-5, 1.0)]
    assert len(complete([("AB", each) for each in params])) == 3


def errors_of(**params: Any) -> list[str]:
    engine = make_engine(TableModel(num_slots=1), slots=1, batch=64, is_deduplicating=True, is_sharing=True)
    found: list[str] = []

    def take(result: SequenceResult | EngineError) -> None:
        assert isinstance(result, SequenceResult)
        assert result.error is not None
        assert result.error.code == "invalid_request"
        found.append(result.error.message)

    engine.submit([SequenceRequest((0, 0), "AB", SamplingParams(**params))], take)
    return found


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stop_token_ids": (3, 97)}, "stop_token_ids has the token 97; the model's go from 0 to 96"),
        ({"stop_token_ids": (-1,)}, "stop_token_ids has the token -1; the model's go from 0 to 96"),
        ({"logit_bias": ((97, 1.0),)}, "logit_bias has the token 97; the model's go from 0 to 96"),
        ({"bad_words": ("A", "  ")}, "bad_words has '  ', which is no token of the model; leave it out"),
        ({"bad_words": ("A" * 20_001,)}, "bad_words has 20,001 characters in all; give at most 20,000"),
    ],
)
def test_what_the_vocabulary_does_not_have_is_the_rows_error(params: dict[str, Any], message: str) -> None:
    assert errors_of(**params) == [message]


def test_rows_with_the_same_bad_words_tokenize_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TableModel(num_slots=1)
    engine = make_engine(model, slots=1, batch=64, is_deduplicating=True, is_sharing=True)
    tokenize, seen = model.vocabulary.tokenize, []

    def note(text: str, *, adds_bos: bool = True) -> "np.ndarray[Any, np.dtype[np.int32]]":
        seen.append(text)
        return tokenize(text, adds_bos=adds_bos)

    monkeypatch.setattr(model.vocabulary, "tokenize", note)
    # Equal, but not the same object, as rows have them.
    submit(engine, [("AB", SamplingParams(bad_words=tuple(map(str.upper, ("cab", " abc"))))) for _ in range(5)])

    assert [text for text in seen if text != "AB"] == ["CAB", " CAB", "ABC", " ABC"]
