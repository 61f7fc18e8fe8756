"""The messages of a chat: what a body may hold, and what a model's template gets of it."""

import json
from typing import Any

import pytest

from batcher.errors import InvalidBodyError
from batcher.parameters import CONTENT_REMEDY
from batcher.protocol import ParsedBody, parse_body

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Ulm"}'}}


def parse(body: dict[str, Any]) -> ParsedBody:
    return parse_body(json.dumps(body).encode(), is_chat=True, models={"m"}, max_prompts=8)


def test_tool_calls_of_before_and_of_today_are_the_same_history() -> None:
    today = [
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "21", "tool_call_id": "call_1"},
    ]
    before = [
        today[0],
        {"role": "assistant", "function_call": CALL["function"]},
        {"role": "function", "name": "weather", "content": "21"},
    ]

    history, older = (json.loads(parse(CHAT | {"messages": m}).request.prompts[0]) for m in (today, before))

    assert history == today
    assert [message["role"] for message in older] == ["user", "assistant", "tool"]
    assert older[1]["content"] is None
    assert older[1]["tool_calls"] == [{key: CALL[key] for key in ("type", "function")}]
    assert older[2]["name"] == "weather"


def test_messages_are_normalized_to_what_templates_take() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
        {"role": "user", "name": "Zoë", "content": "hi"},
        {"role": "assistant", "content": "", "refusal": None, "tool_calls": [], "annotations": []},
        {"role": "tool", "content": "5", "tool_call_id": "c"},
    ]
    parsed = parse(CHAT | {"messages": messages})
    assert parsed.request.is_chat
    assert parsed.request.prompts == (
        '[{"role":"system","content":"Be\\nbrief."},{"role":"user","content":"hi","name":"Zoë"},'
        '{"role":"assistant","content":""},{"role":"tool","content":"5","tool_call_id":"c"}]',
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (CHAT | {"messages": []}, "messages is []; use an array of 1 to 2048 objects with role and content"),
        (CHAT | {"messages": ["x"]}, 'messages[0] is "x"; use an array of 1 to 2048 objects with role and content'),
        (
            CHAT | {"messages": [{"role": "user"}]},
            'messages[0].content is missing; use a string, or an array of parts {"type": "text", "text": "..."}',
        ),
        (
            CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            'messages[0].content[0].type is "image_url"; only parts of type "text" are supported',
        ),
        (
            CHAT | {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].function is missing; use an object with name and arguments",
        ),
        (
            CHAT | {"messages": [{"role": "assistant", "function_call": {"name": "f", "arguments": 5}}]},
            "messages[0].function_call.arguments is 5; use a string of JSON",
        ),
        *(
            (
                CHAT | {"messages": [{"role": "user", "content": "hi"}, message]},
                f"messages[1].content is {problem}; {CONTENT_REMEDY}",
            )
            for message, problem in (
                ({"role": "assistant", "content": None, "tool_calls": []}, "null"),
                ({"role": "user", "content": None, "tool_calls": [CALL]}, "null"),
                ({"role": "tool", "tool_call_id": "c"}, "missing"),
            )
        ),
    ],
)
def test_wrong_message_names_field_value_and_remedy(body: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidBodyError) as caught:
        parse(body)
    assert str(caught.value) == message
    assert caught.value.param == message.split(" ", 1)[0]
