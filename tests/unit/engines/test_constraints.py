"""Completions that are held to a constraint, on the tiny model, whose own texts are random."""

import json
import queue
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import llguidance
import numpy as np
import numpy.typing as npt
import pytest

from batcher import constraints
from batcher.errors import EngineError
from batcher.types import Choice, Constraint, EngineConfig, ErrorCode, FinishReason, RowError, SamplingParams
from tests.support.tiny_engine import WAIT_S, complete, running
from workers.engines.base import SequenceRequest, SequenceResult
from workers.engines.llama import grammars
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.loader import load_engine
from workers.engines.llama.sampling.sampler import Draws, RowSampler

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 30}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}
OF_SCHEMA = constraints.json_schema(SCHEMA)


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[LlamaEngine]:
    with running(model) as engine:
        yield engine


def requests(constraint: Constraint, number: int = 16, **params: Any) -> list[SequenceRequest]:
    return [
        SequenceRequest(
            (row, 0), "hello", SamplingParams(constraint=constraint, **{"max_tokens": 64, **params}), seed=row
        )
        for row in range(number)
    ]


def choices(engine: LlamaEngine, constraint: Constraint, **params: Any) -> list[Choice]:
    found = [result.choice for result in complete(engine, requests(constraint, **params))]
    return [choice for choice in found if choice is not None]


def error(engine: LlamaEngine, constraint: Constraint, **params: Any) -> RowError:
    [result] = complete(engine, requests(constraint, 1, **params))
    assert result.error is not None
    return result.error


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_text_keeps_to_the_schema(engine: LlamaEngine, temperature: float) -> None:
    found = choices(engine, OF_SCHEMA, temperature=temperature)

    assert len(found) == 16
    for choice in found:
        jsonschema.validate(json.loads(choice.text), SCHEMA)
        assert choice.finish_reason is FinishReason.STOP
    assert len({choice.text for choice in found}) == 1 if not temperature else True


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (constraints.choice(["yes", "no", 'say "é"\n']), 'yes|no|say "é"\n'),
        (constraints.regex("[a-c]{3}-[0-9]{2}"), "[a-c]{3}-[0-9]{2}"),
        (constraints.grammar('start: "a"+ "." '), "a+[.]"),
        (constraints.grammar('root ::= "x" [0-9] [0-9]? "y"'), "x[0-9]{1,2}y"),
    ],
)
def test_every_text_is_one_that_the_constraint_allows(
    engine: LlamaEngine, constraint: Constraint, pattern: str
) -> None:
    for choice in choices(engine, constraint):
        if choice.finish_reason is FinishReason.STOP:
            assert re.fullmatch(pattern, choice.text), choice.text


def test_any_object_begins_like_one_and_is_one_if_it_ends(engine: LlamaEngine) -> None:
    for choice in choices(engine, constraints.JSON_OBJECT):
        assert choice.text.startswith("{")
        if choice.finish_reason is FinishReason.STOP:
            assert isinstance(json.loads(choice.text), dict)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (constraints.json_schema({"type": "objekt"}), "the json_schema can't be compiled: Invalid type: objekt"),
        (constraints.regex("(a"), "the regex can't be compiled: "),
        (constraints.grammar("root ::= nothing"), "the gbnf can't be compiled: "),
        (constraints.grammar("start: nothing"), "the lark can't be compiled: "),
        (constraints.grammar("root ::= root"), "the gbnf can't be compiled: no text can keep to it"),
    ],
)
def test_constraint_that_cannot_be_compiled_is_the_requests_fault(
    engine: LlamaEngine, constraint: Constraint, message: str
) -> None:
    found = error(engine, constraint)

    assert found.code is ErrorCode.INVALID_REQUEST
    assert found.message.startswith(message)


def test_vocabulary_without_an_end_of_texts_is_an_error_of_each_constraint(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(model) as engine:
        monkeypatch.setattr(engine._vocabulary, "is_end", np.zeros_like(engine._vocabulary.is_end))

        found = [error(engine, constraints.regex(text)) for text in ("a+", "b+")]

    assert [each.code for each in found] == [ErrorCode.INVALID_REQUEST] * 2
    assert all(each.message.startswith("the regex can't be compiled: ") for each in found)


WORDS = constraints.regex("(alpha|beta|gamma|delta)( (alpha|beta|gamma|delta)){5}")


def texts(engine: LlamaEngine, asked: list[SequenceRequest]) -> list[str]:
    found = [result.choice for result in complete(engine, asked)]
    return [choice.text for choice in found if choice is not None]


def counting(engine: LlamaEngine, call: Callable[[], object]) -> int:
    """The steps that the engine makes meanwhile."""
    before = engine.num_steps
    call()
    return engine.num_steps - before


def test_what_is_forced_takes_no_steps(engine: LlamaEngine) -> None:
    # Given a constraint with few choices between long parts that must come
    parts = constraints.regex("The answer to the question is (yes|no), and that is all there is to say about it[.!]")
    [asked] = requests(parts, 1)
    complete(engine, [asked])

    steps = counting(engine, lambda: complete(engine, [replace(asked, seed=99)]))

    # Then the prompt is computed together with the beginning, and the rest with the first choice
    [choice] = choices(engine, parts)[:1]
    assert choice.usage.completion_tokens > 40
    assert steps < 12


def test_text_is_the_same_whether_forced_tokens_come_at_once_or_one_by_one(engine: LlamaEngine) -> None:
    asked = requests(OF_SCHEMA)
    one_by_one = [replace(each, params=replace(each.params, logprobs=2)) for each in asked]

    plain, listed = complete(engine, asked), complete(engine, one_by_one)

    for one, other in zip(plain, listed, strict=True):
        assert one.choice is not None
        assert other.choice is not None
        assert one.choice.text == other.choice.text
        assert one.choice.usage.completion_tokens == other.choice.usage.completion_tokens
        assert other.choice.logprobs is not None
        assert b"".join(token.token for token in other.choice.logprobs).decode() == other.choice.text
        assert all(token.logprob is not None and token.logprob < 0 for token in other.choice.logprobs)


def test_text_that_reaches_max_tokens_is_cut_inside_of_what_is_forced(engine: LlamaEngine) -> None:
    whole = texts(engine, requests(OF_SCHEMA, 1))[0]
    for max_tokens in (1, 2, 5, 9):
        [choice] = choices(engine, OF_SCHEMA, max_tokens=max_tokens)[:1]
        assert choice.finish_reason is FinishReason.LENGTH
        assert choice.usage.completion_tokens == max_tokens
        assert whole.startswith(choice.text)


@pytest.mark.parametrize(
    "params",
    [
        {"stop": ("gamma",)},
        {"stop": ("a b",), "include_stop_str_in_output": True},
        {"min_tokens": 30},
        {"ignore_eos": True},
        {"bad_words": ("alpha",)},
        {"repetition_penalty": 1.5, "presence_penalty": 1.0},
        {"top_k": 2},
        {"min_p": 0.3},
        {"top_p": 0.5},
        {"logprobs": 3, "stop": ("delta",)},
    ],
)
def test_other_parameters_go_along_with_a_constraint(engine: LlamaEngine, params: dict[str, Any]) -> None:
    for choice in choices(engine, WORDS, **params):
        assert choice.finish_reason is FinishReason.STOP
        if "stop" not in params:
            assert re.fullmatch(WORDS.text, choice.text)
        else:
            assert any(each.startswith(choice.text) for each in _beginnings(choice.text))


def _beginnings(text: str) -> list[str]:
    """Texts of WORDS that could go on from this one."""
    words = ("alpha", "beta", "gamma", "delta")
    whole, _, last = text.rpartition(" ")
    return [f"{whole} {word}".lstrip() for word in words if word.startswith(last)]


def test_end_comes_only_where_the_constraint_lets_it(engine: LlamaEngine) -> None:
    # Given a bias that makes the model end its text as soon as it may
    ends = tuple((token, 100.0) for token in np.flatnonzero(engine._vocabulary.is_end).tolist())

    found = texts(
        engine, [replace(r, params=replace(r.params, logit_bias=ends)) for r in requests(constraints.regex("a{3,9}"))]
    )

    assert set(found) == {"aaa"}


def test_ignored_end_comes_where_nothing_else_may(engine: LlamaEngine) -> None:
    ends = tuple((token, 100.0) for token in np.flatnonzero(engine._vocabulary.is_end).tolist())

    assert {c.text for c in choices(engine, constraints.regex("a{3,9}"), logit_bias=ends, ignore_eos=True)} == {"a" * 9}


@pytest.mark.parametrize("params", [{}, {"logprobs": 1}, {"ignore_eos": True}, {"stop": ("z",)}])
def test_text_that_cannot_be_followed_any_further_is_an_error_and_no_whole_text(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
) -> None:
    # Given bounds in which a long text of it can't be followed: each request has a constraint of its own
    monkeypatch.setattr(grammars, "_STEP_LIMITS", grammars._STEP_LIMITS | {"step_lexer_fuel": 50})
    constraint = constraints.regex(f"(a|b)*a(a|b){{40}}{len(params)}{next(iter(params), '')}")

    found = error(engine, constraint, **params)

    assert found.code is ErrorCode.INVALID_REQUEST
    assert found.message.startswith("the constraint can't be kept to: lexer error: ")
    engine._scheduler.check_integrity()
    # Those that come later do not find what has reached its bound.
    monkeypatch.undo()
    assert len(choices(engine, constraint, **params)) == 16


#: Texts with little in common: a matcher that follows them all has as many states as all of them.
MANY = constraints.regex("|".join(f"{letter}[0-9]{{30}}{letter}" for letter in "abcdefgh"))


@pytest.mark.parametrize("params", [{}, {"logprobs": 1}, {"n": 1, "stop": ("z",)}], ids=str)
def test_rows_that_share_a_constraint_do_not_share_its_bound(
    model: Path, monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]
) -> None:
    # Given a bound that one text does not reach, but several together do
    monkeypatch.setattr(grammars, "_LEXER_STATES", 90)
    asked = requests(MANY, 32, **params)

    with running(model, num_slots=8) as engine:
        results = complete(engine, asked)
        num_anew = engine.stats().num_preempted
        engine._scheduler.check_integrity()

    found = [result.choice for result in results]
    assert num_anew, "the bound was reached"
    assert {result.error for result in results} == {None}
    for choice in found:
        assert choice is not None
        assert re.fullmatch(MANY.text, choice.text)
        assert choice.logprobs is None or "".join(one.token.decode() for one in choice.logprobs) == choice.text
    assert len({choice.text[0] for choice in found if choice is not None}) > 1


def test_choice_whose_whole_text_is_forced_needs_no_model(engine: LlamaEngine) -> None:
    for choice in choices(engine, constraints.choice(["the only one"])):
        assert (choice.text, choice.finish_reason) == ("the only one", FinishReason.STOP)


def test_equal_requests_with_other_constraints_are_no_twins(engine: LlamaEngine) -> None:
    [one], [other] = requests(constraints.choice(["a", "b"]), 1), requests(constraints.choice(["c", "d"]), 1)

    first, second = texts(engine, [one, replace(other, key=(1, 0))])

    assert first in "ab"
    assert second in "cd"


def test_preempted_text_goes_on_in_its_constraint(model: Path) -> None:
    # Given batch rows in all slots, stepped by hand, and what they are if nobody comes between
    asked = requests(constraints.regex("[a-z]{40}[0-9]{3}"), 4)
    live = [replace(r, key=(100 + r.key[0], 0), is_live=True, client="c") for r in requests(OF_SCHEMA, 4)]
    config = EngineConfig(num_slots=4, num_threads=1, context_length=512, is_deduplicating=False)
    engine = load_engine("tiny", model, config)
    results: list[SequenceResult | EngineError] = []

    def step() -> None:
        engine._wait_for_work()
        engine.step()
        engine._scheduler.check_integrity()

    def finish(some: list[SequenceRequest]) -> dict[tuple[int, int], str]:
        while len(results) < len(some):
            step()
        found = {r.key: r.choice.text for r in results if isinstance(r, SequenceResult) and r.choice is not None}
        results.clear()
        return found

    engine.submit([*asked, *live], results.append)
    alone = finish([*asked, *live])

    # When live ones take their slots
    engine.submit(asked, results.append)
    for _ in range(10):
        step()
    engine.submit(live, results.append)
    between = finish([*asked, *live])
    num_preempted = engine.stats().num_preempted
    engine.close()

    # Then they go on where they were
    assert num_preempted > 0
    assert between == alone


def test_slow_constraint_holds_up_nobody_else(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a constraint whose compilation does not end, and one that is compiled
    choices(engine, OF_SCHEMA)
    may_go_on, is_at_it = threading.Event(), threading.Event()
    real = grammars._compile

    def slow(constraint: Constraint, tokenizer: Any) -> Any:
        if constraint.text == "slow|row":
            is_at_it.set()
            assert may_go_on.wait(WAIT_S)
        return real(constraint, tokenizer)

    monkeypatch.setattr(grammars, "_compile", slow)
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    engine.submit(requests(constraints.regex("slow|row"), 1), inbox.put)
    assert is_at_it.wait(WAIT_S)

    # When others come, they are answered
    plain = SequenceRequest((1, 0), "hello", SamplingParams(max_tokens=4))
    assert complete(engine, [plain])[0].choice is not None
    assert len(choices(engine, OF_SCHEMA)) == 16
    assert inbox.empty()

    # Then it is as well
    may_go_on.set()
    result = inbox.get(timeout=WAIT_S)
    assert isinstance(result, SequenceResult)
    assert result.choice is not None


def test_request_that_is_cancelled_while_its_constraint_is_compiled_is_never_begun(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, is_at_it = threading.Event(), threading.Event()
    real = grammars._compile

    def slow(constraint: Constraint, tokenizer: Any) -> Any:
        if constraint.text == "left|alone":
            is_at_it.set()
            assert may_go_on.wait(WAIT_S)
        return real(constraint, tokenizer)

    monkeypatch.setattr(grammars, "_compile", slow)
    begun: list[SequenceRequest] = []
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    ticket = engine.submit(requests(constraints.regex("left|alone"), 1), inbox.put, on_start=begun.append)
    assert is_at_it.wait(WAIT_S)
    ticket.cancel()
    # The engine has looked for what is to be dropped, and found nothing.
    complete(engine, [SequenceRequest((1, 0), "hello", SamplingParams(max_tokens=4))])
    may_go_on.set()

    # What is compiled behind it comes to the engine behind it
    assert choices(engine, constraints.regex("behind it"), number=1)
    assert not begun
    assert inbox.empty()


def test_engine_that_closes_answers_those_whose_constraint_is_not_compiled(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_at_it, may_go_on = threading.Event(), threading.Event()

    def slow(constraint: Constraint, tokenizer: Any) -> Any:
        is_at_it.set()
        assert may_go_on.wait(WAIT_S)
        raise grammars.GrammarError("never")

    monkeypatch.setattr(grammars, "_compile", slow)
    inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
    with running(model) as engine:
        engine.submit(requests(OF_SCHEMA, 3), inbox.put)
        assert is_at_it.wait(WAIT_S)
        closing = threading.Thread(target=engine.close)
        closing.start()
        assert isinstance(inbox.get(timeout=WAIT_S), EngineError)
        may_go_on.set()
        closing.join(WAIT_S)
    assert inbox.empty()


def test_compiled_constraints_are_kept_as_far_as_they_took_little_time(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given constraints each of which takes 0.4 s
    real, compiled = grammars._compile, []

    def slow(constraint: Constraint, tokenizer: Any) -> Any:
        compiled.append(constraint.text)
        found = real(constraint, tokenizer)
        found.seconds = 0.4
        return found

    monkeypatch.setattr(grammars, "_compile", slow)
    all_of_them = grammars.Grammars(engine._vocabulary)
    one, two, three = (constraints.regex(text) for text in ("one", "two", "three"))
    for constraint in (one, two, one, three, one):
        all_of_them.compile(constraint)
        assert all_of_them.find(constraint) is not None

    # Then the one that was used longest ago goes, and what is used now counts
    assert compiled == ["one", "two", "three"]
    assert all_of_them.find(two) is None
    held = [all_of_them.find(one), all_of_them.find(three)]
    for number in range(3):
        assert all_of_them.has_room
        extra = constraints.regex(f"extra {number}")
        all_of_them.compile(extra)
        held.append(all_of_them.find(extra))
    assert not all_of_them.has_room
    held.clear()
    assert all_of_them.has_room


def test_long_strings_of_a_schema_can_be_followed_to_their_end() -> None:
    # Given strings whose bounds differ, so that none shares what is known of another
    properties = {f"p{number}": {"type": "string", "maxLength": 1000 + number} for number in range(15)}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    tokenizer = llguidance.LLTokenizer("byte")
    matching = grammars.Matching(grammars._compile(constraints.json_schema(schema), tokenizer))
    text = json.dumps(dict.fromkeys(properties, 'é"漢a' * 240), ensure_ascii=False)

    for byte in text.encode():
        matching.matcher.compute_bitmask()
        matching.follow(byte)
        assert not matching.problem

    assert matching.is_complete


def test_masked_draws_have_the_renormalised_probabilities() -> None:
    # Given logits by hand, and a constraint that leaves some of the tokens, few or many
    rng = np.random.default_rng(7)
    size = 4096
    logits = rng.normal(0, 2, size).astype(np.float32)
    for allowed in (np.array([3, 70, 500, 4095]), np.arange(0, size, 3)):
        mask = np.zeros(size // 32, np.uint32)
        np.bitwise_or.at(mask, allowed // 32, (1 << (allowed % 32)).astype(np.uint32))
        for params in (SamplingParams(temperature=1.5), SamplingParams(temperature=0.7, top_p=0.8, top_k=40)):
            expected = _probabilities(logits, allowed, params)

            sampler, draws = RowSampler(size), Draws(11)
            drawn = np.bincount([sampler.sample(logits, params, draws, mask) for _ in range(20_000)], minlength=size)

            # Then each is drawn as often as its share of what is left says, within five deviations
            deviation = np.sqrt(20_000 * expected * (1 - expected)) + 1e-9
            assert (np.abs(drawn - 20_000 * expected) <= 5 * deviation + 1).all()
            assert drawn[expected == 0].sum() == 0
            assert int(RowSampler(size).sample(logits, replace(params, temperature=0), draws, mask)) == int(
                allowed[logits[allowed].argmax()]
            )


def _probabilities(
    logits: npt.NDArray[np.float32], allowed: npt.NDArray[Any], params: SamplingParams
) -> npt.NDArray[Any]:
    weights = np.zeros(len(logits))
    weights[allowed] = np.exp(logits[allowed].astype(np.float64) / params.temperature)
    order = np.argsort(-weights, kind="stable")
    if params.top_k:
        weights[order[params.top_k :]] = 0
    share = weights[order] / weights.sum()
    weights[order[np.cumsum(share) - share >= params.top_p]] = 0
    found: npt.NDArray[Any] = weights / weights.sum()
    return found
