"""Answers that call functions, on the tiny model, whose own texts are random: held to their schemas, and read."""

import itertools
import json
import queue
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher import constraints
from batcher.errors import EngineError
from batcher.types import Choice, FinishReason, FunctionCall, SamplingParams, Tools
from tests.support.tiny_engine import WAIT_S, complete, running
from tests.support.tiny_gguf import CHAT_TEMPLATE, write_tiny_gguf
from tests.unit.engines.test_tool_formats import FOUND
from workers.engines.base import SequenceDelta, SequenceRequest, SequenceResult
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.tools.format import PLAIN, CallFormat, Slot
from workers.engines.llama.tools.reader import CallReader, Read

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "default": {
            "type": "object",
            "properties": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["days"],
        },
    },
    "required": ["city", "default"],
}
FUNCTIONS = [
    {"name": "forecast", "description": "", "parameters": CITY},
    {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}},
]
#: An argument that no schema names is none.
CLOSED: dict[str, Any] = {
    "forecast": {
        **CITY,
        "properties": {key: {**value, "additionalProperties": False} for key, value in CITY["properties"].items()},
        "additionalProperties": False,
    },
    "now": {"type": "object", "additionalProperties": False},
}
REQUIRED = Tools(json.dumps(FUNCTIONS), is_required=True)
AUTO = Tools(json.dumps(FUNCTIONS))
CHAT = json.dumps([{"role": "user", "content": "hello"}])
FORMATS = {"plain": PLAIN} | {style: found for style, (_, found) in FOUND.items()}


@pytest.fixture(scope="module", params=["plain", "hermes", "llama", "mistral", "functionary", "compact"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaEngine]:
    path = tmp_path_factory.mktemp("tools") / "tiny.gguf"
    write_tiny_gguf(path, chat_template=CHAT_TEMPLATE if request.param == "plain" else FOUND[request.param][0])
    with running(path, context_length=2048) as engine:
        yield engine


def requests(tools: Tools, *, number: int = 8, **params: Any) -> list[SequenceRequest]:
    sampling = replace(SamplingParams(max_tokens=200, tools=tools), **params)
    return [SequenceRequest((row, 0), CHAT, sampling, seed=row, is_chat=True) for row in range(number)]


def choices(engine: LlamaEngine, tools: Tools, **params: Any) -> list[Choice]:
    found = complete(engine, requests(tools, **params))
    assert [result.error for result in found] == [None] * len(found)
    return [result.choice for result in found if result.choice is not None]


def check_call(call: FunctionCall) -> None:
    jsonschema.validate(json.loads(call.arguments), CLOSED[call.name])


def test_every_answer_calls_a_function_where_one_must(engine: LlamaEngine) -> None:
    found = choices(engine, REQUIRED)

    for choice in found:
        assert choice.call is not None
        check_call(choice.call)
        assert (choice.text, choice.finish_reason) == ("", FinishReason.TOOL_CALLS)


def test_named_function_is_called(engine: LlamaEngine) -> None:
    found = choices(engine, Tools(json.dumps(FUNCTIONS), is_required=True, name="now"), number=3)

    assert [choice.call for choice in found] == [FunctionCall("now", "{}")] * 3


@pytest.mark.parametrize("more", [{}, {"parameters": {}}, {"parameters": {"type": "object"}}], ids=str)
def test_function_that_says_nothing_of_arguments_gets_none(engine: LlamaEngine, more: dict[str, Any]) -> None:
    functions = [{"name": "now", "description": "", **more}]

    [found] = choices(engine, Tools(json.dumps(functions), is_required=True), number=1)

    assert found.call == FunctionCall("now", "{}")


def test_answer_that_need_not_call_may_be_text(engine: LlamaEngine) -> None:
    for choice in choices(engine, AUTO, max_tokens=20):
        # The model's words are random: none is the mark of a call.
        assert choice.call is None
        assert choice.finish_reason is not FinishReason.TOOL_CALLS
        assert choice.text


def test_answer_that_is_no_call_keeps_to_a_schema(engine: LlamaEngine) -> None:
    for choice in choices(engine, AUTO, constraint=constraints.json_schema(CITY)):
        if choice.call is not None:
            check_call(choice.call)
        else:
            jsonschema.validate(json.loads(choice.text), CLOSED["forecast"])


def test_call_that_is_cut_off_has_what_there_is(engine: LlamaEngine) -> None:
    tools = Tools(json.dumps(FUNCTIONS), is_required=True, name="forecast")
    whole = [choice.call for choice in choices(engine, tools, temperature=0, number=1)]
    assert whole[0] is not None

    found = [choices(engine, tools, temperature=0, number=1, max_tokens=number)[0] for number in range(1, 80, 2)]

    cut = [choice for choice in found if choice.finish_reason is FinishReason.LENGTH]
    assert cut
    for choice in cut:
        assert choice.text == ""
        assert choice.call is None or whole[0].arguments.startswith(choice.call.arguments)
    assert any(choice.call is not None and choice.call.arguments for choice in cut)


def test_deltas_are_the_choice_in_pieces(engine: LlamaEngine) -> None:
    inbox: queue.SimpleQueue[SequenceDelta | SequenceResult | EngineError] = queue.SimpleQueue()
    asked = [*requests(REQUIRED), *requests(AUTO, number=4, max_tokens=20)]
    asked = [replace(each, key=(at, 0), is_live=True) for at, each in enumerate(asked)]
    engine.submit(asked, inbox.put, on_delta=inbox.put)
    deltas: dict[tuple[int, int], list[SequenceDelta]] = {}
    results: list[SequenceResult] = []
    while len(results) < len(asked):
        item = inbox.get(timeout=WAIT_S)
        assert not isinstance(item, EngineError)
        if isinstance(item, SequenceDelta):
            deltas.setdefault(item.key, []).append(item)
        else:
            results.append(item)

    for result in results:
        assert result.choice is not None
        pieces = deltas.get(result.key, [])
        assert "".join(piece.text for piece in pieces) == result.choice.text
        calls = [piece.call for piece in pieces if piece.call is not None]
        assert [call.name for call in calls[1:]] == [""] * len(calls[1:])
        assert together(calls) == result.choice.call


def test_equal_requests_have_equal_calls(engine: LlamaEngine) -> None:
    found = choices(engine, REQUIRED, temperature=0)

    assert len({choice.call for choice in found}) == 1


def test_schema_that_can_not_be_kept_to_is_the_requests_fault(engine: LlamaEngine) -> None:
    wrong = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {"a": {"type": "strin"}}}}

    [result] = complete(engine, requests(Tools(json.dumps([FUNCTIONS[1], wrong])), number=1))

    assert result.error is not None
    assert result.error.message.startswith("the tools can't be compiled: ")
    assert "strin" in result.error.message


def together(calls: list[FunctionCall]) -> FunctionCall | None:
    return FunctionCall(calls[0].name, "".join(call.arguments for call in calls)) if calls else None


def written(found: CallFormat, call: FunctionCall) -> str:
    slots = {Slot.NAME: call.name, Slot.ARGUMENTS: call.arguments, Slot.ID: "a1B2c3D4e"}
    return "".join(part if isinstance(part, str) else slots[part] for part in found.parts)


def read(reader: CallReader, text: str, cuts: list[int]) -> tuple[str, FunctionCall | None]:
    """What a reader gives of a text in pieces."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[start:end] for start, end in itertools.pairwise(places)]
    found: list[Read] = [reader.read(piece) for piece in pieces]
    text = "".join(each.text for each in found) + reader.finish()
    return text, together([each.call for each in found if each.call is not None])


texts = st.text(st.sampled_from('ab {}[]<>"\\\n\u00e9tool_call'), max_size=20)
objects = st.dictionaries(
    texts,
    st.recursive(
        texts | st.integers(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
        max_leaves=3,
    ),
    max_size=3,
)


@given(st.sampled_from(sorted(FORMATS)), texts, objects, st.lists(st.integers(0, 200), max_size=6))
def test_call_is_read_as_it_was_written_however_it_comes(
    style: str, before: str, arguments: dict[str, Any], cuts: list[int]
) -> None:
    found = FORMATS[style]
    call = FunctionCall("find_it", json.dumps(arguments))
    # A call without a mark is the whole answer.
    before = "" if not found.mark or found.mark in before + found.mark[:-1] else before

    text = before + written(found, call)

    assert read(CallReader(found, is_required=False), text, cuts) == (before.rstrip(), call)
    if not before:
        assert read(CallReader(found, is_required=True), text, cuts) == ("", call)


@given(st.sampled_from(sorted(FORMATS)), texts, st.lists(st.integers(0, 200), max_size=6))
def test_text_without_a_call_is_read_as_it_is(style: str, text: str, cuts: list[int]) -> None:
    found = FORMATS[style]
    if not (found.mark and found.mark in text):
        assert read(CallReader(found, is_required=False), text, cuts) == (text, None)


@given(st.sampled_from(sorted(FORMATS)), objects, st.integers(0, 200))
def test_what_there_is_of_a_call_is_read(style: str, arguments: dict[str, Any], end: int) -> None:
    found = FORMATS[style]
    call = FunctionCall("find_it", json.dumps(arguments))
    reader = CallReader(found, is_required=True)

    text, part = read(reader, written(found, call)[:end], [])

    assert part is None or (part.name == call.name and call.arguments.startswith(part.arguments))
    assert reader.is_complete == (end >= len(written(found, call)))
    assert reader.call == part
    assert text == ""
