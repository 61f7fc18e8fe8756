"""What a completion must be, said by the fields of OpenAI, vLLM and llama.cpp: the same constraint by whatever name."""

import json
from typing import Any

import pytest

from batcher import constraints
from batcher.errors import InvalidBodyError
from batcher.openai.bodies import parse_body
from batcher.types import Constraint, ConstraintKind

TEXT: dict[str, Any] = {"model": "m", "prompt": "x"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
SCHEMA = {"type": "object", "properties": {"b": {"type": "string"}, "a": {"enum": [1, None]}}}
OF_SCHEMA = Constraint(
    ConstraintKind.JSON_SCHEMA, '{"type":"object","properties":{"b":{"type":"string"},"a":{"enum":[1,null]}}}'
)
GBNF = 'root ::= "a" | "b"'
LARK = 'start: "a" | "b"'


def constraint_of(fields: dict[str, Any], *, is_chat: bool = False) -> Constraint | None:
    body = json.dumps((CHAT if is_chat else TEXT) | fields).encode()
    return parse_body(body, is_chat=is_chat, models=("m",), max_prompts=1).request.params.constraint


@pytest.mark.parametrize("is_chat", [False, True])
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, constraints.JSON_OBJECT),
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, OF_SCHEMA),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}}, OF_SCHEMA),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "strict": True, "schema": SCHEMA, "description": "d"},
                }
            },
            OF_SCHEMA,
        ),
        ({"structured_outputs": {"json": SCHEMA}}, OF_SCHEMA),
        ({"structured_outputs": {"json": json.dumps(SCHEMA, indent=2), "regex": None}}, OF_SCHEMA),
        ({"structured_outputs": {"json_object": True}}, constraints.JSON_OBJECT),
        ({"structured_outputs": {}}, None),
        ({"guided_json": SCHEMA}, OF_SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, OF_SCHEMA),
        ({"json_schema": SCHEMA}, OF_SCHEMA),
        ({"json_schema": True}, Constraint(ConstraintKind.JSON_SCHEMA, "{}")),
        ({"guided_json_object": False}, None),
        ({"guided_json_object": True}, constraints.JSON_OBJECT),
        ({"structured_outputs": {"choice": ["é", "b", "é"]}}, Constraint(ConstraintKind.CHOICE, '["é","b"]')),
        ({"guided_choice": ["é", "b"]}, Constraint(ConstraintKind.CHOICE, '["é","b"]')),
        ({"structured_outputs": {"regex": "[0-9]+"}}, Constraint(ConstraintKind.REGEX, "[0-9]+")),
        ({"guided_regex": "[0-9]+"}, Constraint(ConstraintKind.REGEX, "[0-9]+")),
        ({"structured_outputs": {"grammar": LARK}}, Constraint(ConstraintKind.LARK, LARK)),
        ({"guided_grammar": GBNF}, Constraint(ConstraintKind.GBNF, GBNF)),
        ({"grammar": GBNF}, Constraint(ConstraintKind.GBNF, GBNF)),
        ({"grammar": ""}, None),
        ({"structured_outputs": {"choice": ["a", "b"], "scores": True}}, constraints.scored_choice(["a", "b"])),
        ({"structured_outputs": {"choice": ["a", "b"], "scores": False}}, constraints.choice(["a", "b"])),
        # What says the same twice is no contradiction, nor is what asks for nothing.
        ({"guided_json": SCHEMA, "response_format": {"type": "json_object", "schema": SCHEMA}}, OF_SCHEMA),
        ({"guided_json": SCHEMA, "response_format": {"type": "text"}}, OF_SCHEMA),
    ],
)
def test_field_says_what_a_completion_must_be(
    fields: dict[str, Any], expected: Constraint | None, is_chat: bool
) -> None:
    assert constraint_of(fields, is_chat=is_chat) == expected


@pytest.mark.parametrize("reasoning", ["split", "keep", "off"])
def test_labels_of_a_chat_are_scored_whatever_becomes_of_thoughts(reasoning: str) -> None:
    fields = {"structured_outputs": {"choice": ["a", "b"], "scores": True}, "reasoning": reasoning}

    assert constraint_of(fields, is_chat=True) == constraints.scored_choice(["a", "b"])


DEEP: dict[str, Any] = {}
for _ in range(150):
    DEEP = {"not": DEEP}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": {}}, "response_format.type is missing; use "),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema is missing; use "),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n"}}},
            "response_format.json_schema.schema is missing; use ",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
            "response_format.json_schema.schema is an array; use a JSON schema, which is an object",
        ),
        ({"json_schema": False}, "json_schema is false; use a JSON schema"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json is no JSON (Expecting property name"),
        ({"structured_outputs": {"choice": "ab"}}, "structured_outputs.choice is no array; use an array of strings"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice is empty; "),
        ({"structured_outputs": {"choice": ["a", ""]}}, "structured_outputs.choice has what is no text; "),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex is empty; "),
        ({"structured_outputs": {"regex": 7}}, "structured_outputs.regex is a number; "),
        ({"structured_outputs": {"grammar": " "}}, "structured_outputs.grammar is empty; "),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs.json_object is neither true nor false; "),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs has regex and choice; give one"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag is not supported; use "),
        (
            {"structured_outputs": {"choice": ["a"], "scores": 1}},
            "structured_outputs.scores is neither true nor false; ",
        ),
        ({"structured_outputs": {"regex": "a", "scores": True}}, "structured_outputs.scores is true without choice; "),
        (
            {"structured_outputs": {"choice": [str(i) for i in range(1001)], "scores": True}},
            "structured_outputs.choice has 1,001 texts; use at most 1,000 with scores",
        ),
        (
            {"structured_outputs": {"choice": ["a"], "scores": True}, "top_p": 0.5},
            "top_p has no effect where labels are",
        ),
        ({"structured_outputs": {"choice": ["a"], "scores": True}, "n": 2}, "n has no effect where labels are scored"),
        ({"guided_choice": [7]}, "guided_choice[0] is 7; use an array of at most 10,000 strings"),
        ({"guided_json": DEEP}, "guided_json has more than 100 levels; "),
        ({"guided_regex": "a", "guided_json": {}}, "guided_json and guided_regex say both what the text must be; "),
        ({"grammar": "x" * 1_000_001}, 'grammar is "xxx'),
    ],
)
def test_field_that_says_nothing_that_can_be_kept_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidBodyError) as caught:
        constraint_of(fields)

    assert str(caught.value).startswith(message)
    assert caught.value.param is not None
    assert str(caught.value).startswith(caught.value.param)
