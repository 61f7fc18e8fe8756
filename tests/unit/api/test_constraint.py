"""The options that say what every text of a job must be."""

from pathlib import Path
from typing import Any

import pydantic
import pytest

from batcher import constraints
from batcher.api.options import RunOptions, check_options, submit_options
from batcher.errors import InputError
from batcher.types import Constraint

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
TEXT = '{"type": "object", "properties": {"a": {"type": "integer"}}}'
GBNF = 'root ::= "a"'


def constraint_of(**options: Any) -> Constraint | None:
    checked = check_options("run", RunOptions, options)
    return submit_options(checked, default_model="m", known_models=None, context_lengths={}).params.constraint


def test_schema_is_an_object_its_text_a_file_or_a_model_of_pydantic(tmp_path: Path) -> None:
    class Answer(pydantic.BaseModel):
        a: int

    file = tmp_path / "s.json"
    file.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())

    expected = constraints.json_schema(SCHEMA)
    assert constraint_of(json_schema=SCHEMA) == expected
    assert constraint_of(json_schema=TEXT) == expected
    assert constraint_of(json_schema=str(file)) == expected
    assert constraint_of(json_schema=file) == expected
    assert constraint_of(json_schema=Answer) == constraints.json_schema(Answer.model_json_schema())
    assert constraint_of(json_schema="true") == constraints.json_schema({})
    assert constraint_of() is None


def test_choice_regex_and_grammar(tmp_path: Path) -> None:
    file = tmp_path / "g.gbnf"
    file.write_text(GBNF)

    assert constraint_of(choice=["a", "b"]) == constraints.choice(["a", "b"])
    assert constraint_of(regex="a+") == constraints.regex("a+")
    assert constraint_of(grammar='start : "x"') == constraints.grammar('start : "x"')
    assert constraint_of(grammar=GBNF) == constraint_of(grammar=file) == constraints.grammar(GBNF)


def test_choice_can_be_scored() -> None:
    assert constraint_of(choice=["a", "b"], scores=True) == constraints.scored_choice(["a", "b"])
    assert constraint_of(choice=["a", "b"], scores=False) == constraints.choice(["a", "b"])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"scores": True}, "scores is given without choice"),
        ({"scores": True, "regex": "a"}, "scores has no effect with regex; give choice"),
        ({"scores": True, "choice": ["a"], "top_p": 0.5}, "top_p has no effect where labels are scored"),
        ({"json_schema": "nothing.json"}, "json_schema nothing.json: cannot read the file: No such file"),
        ({"json_schema": '{"a"'}, "json_schema is no JSON"),
        ({"json_schema": "false"}, "json_schema is false; use a JSON schema, which is an object, or true"),
        ({"json_schema": {"type": "objekt"}}, "json_schema can't be compiled: Invalid type: objekt"),
        ({"json_schema": int}, "json_schema is the class int; of classes only models of pydantic have a schema"),
        ({"choice": ["a", ""]}, "choice is "),
        ({"choice": "yes"}, 'choice is "yes"'),
        ({"regex": "(a"}, "regex can't be compiled: "),
        ({"grammar": "root ::= b"}, "grammar can't be compiled: "),
        ({"regex": "a", "choice": ["a"]}, "choice and regex are both given"),
    ],
)
def test_what_no_text_can_be_held_to_is_refused_before_the_job(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match="^" + problem.replace("(", r"\(")):
        constraint_of(**options)


def test_reason_why_a_regular_expression_is_none_is_told() -> None:
    with pytest.raises(InputError, match="unclosed group"):
        constraint_of(regex="(a")
    with pytest.raises(InputError, match="look-around, including look-ahead"):
        constraint_of(json_schema={"type": "string", "pattern": "(?=a)b"})
