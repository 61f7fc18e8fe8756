"""What bodies say of functions: checked by its place, and the same live, in a line and in a row."""

import json
from itertools import count
from typing import Any

import pyarrow as pa
import pytest

from batcher import constraints
from batcher.errors import InvalidBodyError
from batcher.openai.bodies import parse_body
from batcher.submission.readers.files import LineBatch, Origin, TableBatch
from batcher.submission.rows import RowParser
from batcher.types import SamplingParams, Tools

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FUNCTION = {"name": "find", "description": "Finds.", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
NAMED = {"type": "function", "function": {"name": "find"}}
TOLD = json.dumps([FUNCTION], separators=(",", ":"))


def parse(**fields: Any) -> SamplingParams:
    data = json.dumps(CHAT | fields).encode()
    return parse_body(data, is_chat=True, models=["m"], max_prompts=9).request.params


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        (None, Tools(TOLD)),
        ("auto", Tools(TOLD)),
        ("required", Tools(TOLD, is_required=True)),
        (NAMED, Tools(TOLD, is_required=True, name="find")),
        ("none", None),
    ],
)
def test_choice_says_whether_and_what_to_call(choice: Any, tools: Tools | None) -> None:
    assert parse(tools=[TOOL], tool_choice=choice).tools == tools
    assert tools is None or Tools.parse(str(tools)) == tools


def test_strict_and_parallel_calls_change_nothing() -> None:
    strict = {"type": "function", "function": FUNCTION | {"strict": True}}

    assert parse(tools=[strict], parallel_tool_calls=False) == parse(tools=[TOOL], parallel_tool_calls=True)


def test_function_without_parameters_takes_none() -> None:
    [told] = json.loads(str(parse(tools=[{"type": "function", "function": {"name": "now"}}]).tools).partition(" ")[2])

    assert told == {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}


@pytest.mark.parametrize(
    ("fields", "param", "remedy"),
    [
        ({"tools": {}}, "tools", "use objects such as"),
        ({"tools": [TOOL, {"type": "function"}]}, "tools[1].function", "use an object with name and parameters"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", 'only "function" is supported'),
        ({"tools": [{**TOOL, "x": 1}]}, "tools[0].x", "remove it"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name", "use 1 to 64 letters"),
        ({"tools": [{"type": "function", "function": {"name": 'a"b'}}]}, "tools[0].function.name", "use 1 to 64"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "give it once"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": "{}"}}]},
            "tools[0].function.parameters",
            "use a JSON schema",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"pattern": "a" * 20_000}}}]},
            "tools[0].function.parameters",
            "use at most 10,000",
        ),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", 'use "none", "auto", "required" or'),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.function", 'use "none"'),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "lose"}}},
            "tool_choice.function.name",
            "it is none of tools",
        ),
        ({"tool_choice": "required"}, "tool_choice", "give tools too"),
        ({"tool_choice": NAMED}, "tool_choice.function.name", "there are no tools"),
        ({"tools": [TOOL], "guided_choice": ["a", "b"]}, "tools", "give one of them"),
        ({"tools": [TOOL], "ignore_eos": True}, "tools", "give one of them"),
        ({"functions": [FUNCTION]}, "functions", "use tools"),
        ({"tools": [TOOL] * 129}, "tools", "use objects such as"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(fields: dict[str, Any], param: str, remedy: str) -> None:
    with pytest.raises(InvalidBodyError) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert str(caught.value).startswith(param)
    assert remedy in str(caught.value)


def test_tools_of_a_row_have_no_place_beside_a_choice_of_its_job_unless_it_lifts_that() -> None:
    params = SamplingParams(constraint=constraints.choice(["a", "b"]))
    parser = RowParser(params=params, default_model="m", known_models=None, fields=("tools", "response_format"))
    row = {"messages": CHAT["messages"], "tools": [TOOL]}
    lines = [row, row | {"response_format": {"type": "text"}}, row | {"response_format": {"type": "json_object"}}]

    refused, *taken = parser.parse(
        LineBatch(Origin("f", ":", range(1, 4)), [json.dumps(line).encode() for line in lines]), numbers=count()
    ).rows

    assert refused.error is not None
    assert "tools can't be given with a choice that texts must keep to" in refused.error.message
    assert [row.error for row in taken] == [None, None]
    assert [row.request.params.constraint for row in taken] == [None, constraints.JSON_OBJECT]


def test_rows_have_tools_as_json_or_its_text_in_lines_and_tables() -> None:
    parser = RowParser(params=SamplingParams(), default_model="m", known_models=None, fields=("tools", "tool_choice"))
    lines = [{"messages": CHAT["messages"], "tools": [TOOL], "tool_choice": NAMED}, {"messages": CHAT["messages"]}]
    table = {
        "messages": pa.array([CHAT["messages"]] * 3),
        "tools": pa.array([json.dumps([TOOL])] * 2 + [None]),
        "tool_choice": pa.array([json.dumps(NAMED), "required", None]),
    }
    columns = list(table)

    in_lines = parser.parse(
        LineBatch(Origin("f", ":", range(1, 3)), [json.dumps(line).encode() for line in lines]), numbers=count()
    ).rows
    in_table = parser.parse(
        TableBatch(Origin("f", ": row ", range(3)), pa.table(list(table.values()), columns)), numbers=count()
    ).rows

    named, required = Tools(TOLD, is_required=True, name="find"), Tools(TOLD, is_required=True)
    assert [row.error for row in (*in_lines, *in_table)] == [None] * 5
    assert [row.request.params.tools for row in in_lines] == [named, None]
    assert [row.request.params.tools for row in in_table] == [named, required, None]
