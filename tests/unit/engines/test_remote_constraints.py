"""What every text must be, in the words of each server behind a URL."""

from dataclasses import replace

import pytest

from batcher import constraints
from batcher.types import Constraint
from tests.support.dialect_shapes import chat, server_of
from tests.support.openai_server import completion
from tests.support.remote_engine import GREEDY, ask, choice_of, engine_at, error_of, prompts
from workers.engines.remote.constraints import constraint_fields
from workers.engines.remote.dialects import ALL, BATCHER, GENERIC, LLAMA_SERVER, OLLAMA, SGLANG, VLLM, Dialect

SCHEMA = constraints.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
CHOICE = constraints.choice(["<A>", 'say "no"'])
REGEX = constraints.regex("[a-z]+")
GBNF = constraints.grammar('root ::= "a"')
LARK = constraints.grammar('start: "a"')

#: The field that says it, by dialect, of prompts and of chats; None: it can't be said.
SAID: dict[str, dict[Constraint, tuple[str | None, str | None]]] = {
    VLLM.name: {
        SCHEMA: ("response_format", "response_format"),
        constraints.JSON_OBJECT: ("response_format", "response_format"),
        **dict.fromkeys((CHOICE, REGEX, GBNF, LARK), ("structured_outputs", "structured_outputs")),
    },
    BATCHER.name: {
        SCHEMA: ("response_format", "response_format"),
        constraints.JSON_OBJECT: ("response_format", "response_format"),
        **dict.fromkeys((CHOICE, REGEX, GBNF, LARK), ("structured_outputs", "structured_outputs")),
    },
    SGLANG.name: {
        SCHEMA: ("json_schema", "response_format"),
        constraints.JSON_OBJECT: (None, "response_format"),
        CHOICE: ("regex", "regex"),
        REGEX: ("regex", "regex"),
        GBNF: ("ebnf", "ebnf"),
        LARK: (None, None),
    },
    LLAMA_SERVER.name: {
        SCHEMA: ("json_schema", "json_schema"),
        constraints.JSON_OBJECT: ("json_schema", "json_schema"),
        CHOICE: ("grammar", "grammar"),
        GBNF: ("grammar", "grammar"),
        **dict.fromkeys((REGEX, LARK), (None, None)),
    },
    OLLAMA.name: {
        SCHEMA: (None, "response_format"),
        constraints.JSON_OBJECT: (None, "response_format"),
        **dict.fromkeys((CHOICE, REGEX, GBNF, LARK), (None, None)),
    },
    GENERIC.name: {
        SCHEMA: ("response_format", "response_format"),
        constraints.JSON_OBJECT: ("response_format", "response_format"),
        **dict.fromkeys((CHOICE, REGEX, GBNF, LARK), (None, None)),
    },
}


@pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("is_chat", [False, True])
def test_constraint_goes_out_in_the_words_of_the_server_or_its_row_is_an_error(dialect: Dialect, is_chat: bool) -> None:
    server = server_of(dialect)
    with server.running(), engine_at(server, num_slots=1) as engine:
        for constraint, fields in SAID[dialect.name].items():
            params = replace(GREEDY, constraint=constraint)
            [result] = ask(engine, chat(params) if is_chat else prompts(["A"], params)[0])
            if fields[is_chat] is None:
                assert error_of(result).message.startswith(f"{constraint.kind.value}: {dialect.name} at ")
            else:
                assert choice_of(result).text == "<A>"
                assert fields[is_chat] in server.seen[-1].body


def test_each_kind_of_constraint_is_in_the_table_of_each_dialect() -> None:
    assert set(SAID) == {dialect.name for dialect in ALL}
    kinds = {constraint.kind for constraint in SAID[VLLM.name]}
    assert all({constraint.kind for constraint in found} == kinds for found in SAID.values())
    assert kinds == {each.kind for each in (SCHEMA, constraints.JSON_OBJECT, CHOICE, REGEX, GBNF, LARK)}


def test_choices_are_quoted_for_the_grammar_of_llama_server() -> None:
    assert constraint_fields(CHOICE, LLAMA_SERVER, is_chat=False) == {"grammar": r'root ::= "<A>" | "say \x22no\x22"'}


def test_text_that_is_none_of_the_choices_is_an_error() -> None:
    server = server_of(VLLM, lambda asked: completion(asked, text="perhaps"))
    with server.running(), engine_at(server) as engine:
        [result] = ask(engine, *prompts(["A"], replace(GREEDY, constraint=CHOICE)))

    assert error_of(result).message.startswith("choice: ")
