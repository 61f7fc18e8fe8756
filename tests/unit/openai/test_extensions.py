"""Fields of bodies that OpenAI does not document: they become parameters, and variables of chat templates."""

import json
from dataclasses import replace
from typing import Any

import pytest

from batcher.openai.bodies import parse_body
from batcher.types import Request, SamplingParams

TEXT: dict[str, Any] = {"model": "m", "prompt": "x"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def parse(body: dict[str, Any]) -> Request:
    return parse_body(json.dumps(body).encode(), is_chat="messages" in body, models=("m",), max_prompts=1).request


def test_body_takes_what_the_ecosystem_sends() -> None:
    given: dict[str, Any] = {"top_k": -1, "min_p": 0.1, "repeat_penalty": 1.1, "repetition_penalty": 1.1}
    given |= {"min_tokens": 3, "ignore_eos": True, "stop_token_ids": [7, 5, 7], "include_stop_str_in_output": True}
    given |= {"bad_words": ["x", "y", "x"]}
    expected = SamplingParams(
        min_p=0.1,
        repetition_penalty=1.1,
        min_tokens=3,
        ignore_eos=True,
        stop_token_ids=(7, 5),
        include_stop_str_in_output=True,
        bad_words=("x", "y"),
    )
    assert parse(TEXT | given).params == expected
    chat = parse(CHAT | given | {"max_tokens": 16}).params
    assert chat == replace(expected, reasoning="split")
    assert parse(TEXT | {"top_k": 40}).params.top_k == 40


def test_template_gets_the_thoughts_in_a_message_and_nothing_that_is_about_services() -> None:
    answer = {"role": "assistant", "content": "5", "reasoning_content": "2 + 3", "thinking": "hm"}
    about_services: dict[str, Any] = {
        "refusal": None,
        "annotations": [],
        "provider_specific_fields": {"x": 1},
        "cache_control": {},
    }
    messages = [answer | about_services, {"role": "user", "content": "x"}]

    [prompt] = parse(CHAT | {"messages": messages}).prompts

    assert json.loads(prompt) == [answer, messages[1]]


@pytest.mark.parametrize(
    ("given", "opens", "goes_on", "variables"),
    [
        ({}, True, False, ""),
        ({"add_generation_prompt": False}, False, False, ""),
        ({"continue_final_message": True}, False, True, ""),
        ({"continue_final_message": True, "add_generation_prompt": False}, False, True, ""),
        ({"chat_template_kwargs": {}}, True, False, ""),
        ({"chat_template_kwargs": {"b": [1], "a": "é"}}, True, False, '{"a":"é","b":[1]}'),
        ({"reasoning_effort": "low"}, True, False, '{"enable_thinking":true,"reasoning_effort":"low"}'),
        ({"reasoning_effort": "none"}, True, False, '{"enable_thinking":false,"reasoning_effort":"none"}'),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}, "verbosity": "low"},
            *(True, False, '{"enable_thinking":true,"reasoning_effort":"none","verbosity":"low"}'),
        ),
    ],
)
def test_chat_says_how_its_template_is_written(
    given: dict[str, Any], opens: bool, goes_on: bool, variables: str
) -> None:
    params = parse(CHAT | given).params
    assert (params.add_generation_prompt, params.continue_final_message) == (opens, goes_on)
    assert params.chat_template_kwargs == variables
