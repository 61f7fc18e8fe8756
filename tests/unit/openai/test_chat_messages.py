"""The messages of a chat: what a body may hold, and what a model's template gets of it."""

import json
from typing import Any

import pytest

from batcher.errors import InvalidBodyError
from batcher.openai.bodies import ParsedBody, parse_body, parse_line_body
from batcher.openai.parameters import CHAT_URL, CONTENT_REMEDY
from batcher.openai.schema import body_schema

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
CALL: dict[str, Any] = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city":"Ulm"}'},
}
PART = {"type": "text", "text": "x"}


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
        '[{"role":"system","content":[{"type":"text","text":"Be"},{"type":"text","text":"brief."}]},{"role":"user","content":"hi","name":"Zoë"},'
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


def chat_with(call: dict[str, Any], **more: Any) -> dict[str, Any]:
    return CHAT | {
        "messages": [*CHAT["messages"], {"role": "assistant", "content": None, "tool_calls": [call], **more}]
    }


@pytest.mark.parametrize(
    ("body", "label"),
    [
        (CHAT | {"messages": [*CHAT["messages"] * 3, {"role": "user", "content": "x", "foo": 1}]}, "messages[3].foo"),
        (
            CHAT | {"messages": [*CHAT["messages"], {"role": "user", "content": [PART, PART | {"foo": 1}]}]},
            "messages[1].content[1].foo",
        ),
        (chat_with(CALL | {"foo": 1}), "messages[1].tool_calls[0].foo"),
        (chat_with(CALL | {"function": CALL["function"] | {"foo": 1}}), "messages[1].tool_calls[0].function.foo"),
        (chat_with(CALL, function_call=CALL["function"] | {"foo": 1}), "messages[1].function_call.foo"),
    ],
)
def test_unknown_field_in_a_message_is_named_with_its_place(body: dict[str, Any], label: str) -> None:
    for check in (parse, lambda wrong: parse_line_body(wrong, url=CHAT_URL)):
        with pytest.raises(InvalidBodyError) as caught:
            check(body)
        assert str(caught.value) == f"{label} is not known here; remove it"
        assert caught.value.param == label


def test_what_clients_send_back_with_a_call_is_left_out() -> None:
    answered = CALL | {
        "index": 0,
        "custom": None,
        "provider_specific_fields": {"thought_signature": "x"},
        "function": CALL["function"] | {"parsed_arguments": {"city": "Ulm"}},
    }

    assert parse(chat_with(answered)).request == parse(chat_with(CALL)).request


def test_server_that_ignores_unknown_fields_names_those_of_calls_without_their_index() -> None:
    body = chat_with(CALL | {"foo": 1, "function": CALL["function"] | {"bar": 1}}, foo=2)

    parsed = parse_body(json.dumps(body).encode(), is_chat=True, models={"m"}, max_prompts=8, ignores_unknown=True)

    assert parsed.ignored == ("messages[].foo", "messages[].tool_calls[].foo", "messages[].tool_calls[].function.bar")


def test_schema_of_messages_names_what_may_be_in_a_call() -> None:
    message = body_schema(True)["properties"]["messages"]["items"]
    call = message["properties"]["tool_calls"]["anyOf"][0]["items"]

    for schema in (call, call["properties"]["function"], message["properties"]["function_call"]["anyOf"][0]):
        assert schema["additionalProperties"] == {"type": "null"}
    assert {"id", "index", "provider_specific_fields"} <= call["properties"].keys()
