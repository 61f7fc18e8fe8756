"""How a model writes calls is found in its template, whatever that is; what can't be found is told in plain words."""

import json
from typing import Any

import pytest

from batcher.types import Tools
from workers.engines.llama.chat import ChatTemplate
from workers.engines.llama.chat_frames import Chat
from workers.engines.llama.tools.format import CallFormat, Slot, find_format
from workers.engines.llama.tools.plain import tell

NAME, ARGUMENTS, ID = Slot.NAME, Slot.ARGUMENTS, Slot.ID

#: Around the calls of a turn that ends with <end>; tools come first, as text.
FRAME = (
    "{%- if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif -%}"
    "{%- for m in messages %}<{{ m.role }}>\n{{ m.content or '' }}"
    "{%- for call in m.tool_calls or [] %}CALL{% endfor %}<end>\n{% endfor -%}"
    "{%- if add_generation_prompt %}<assistant>\n{% endif -%}"
)


def of_call(call: str) -> str:
    """A template that writes calls so."""
    call = call.replace("$NAME", "{{ call.function.name }}").replace(
        "$ARGUMENTS", "{{ call.function.arguments | tojson }}"
    )
    return FRAME.replace("CALL", call)


#: Of each style: the template, and the format that is in it.
FOUND: dict[str, tuple[str, CallFormat]] = {
    "hermes": (
        of_call('<tool_call>\n{"name": "$NAME", "arguments": $ARGUMENTS}\n</tool_call>'),
        CallFormat(('<tool_call>\n{"name": "', NAME, '", "arguments": ', ARGUMENTS, "}\n</tool_call>"), "<tool_call>"),
    ),
    "llama": (
        of_call('{"name": "$NAME", "parameters": $ARGUMENTS}'),
        CallFormat(('{"name": "', NAME, '", "parameters": ', ARGUMENTS, "}"), ""),
    ),
    "mistral": (
        of_call(
            '[TOOL_CALLS][{"name": "$NAME", "arguments": $ARGUMENTS, "id": "{{ call.id }}"}]',
        ),
        CallFormat(
            ('[TOOL_CALLS][{"name": "', NAME, '", "arguments": ', ARGUMENTS, ', "id": "', ID, '"}]'), "[TOOL_CALLS]"
        ),
    ),
    "functionary": (
        of_call("<function=$NAME>$ARGUMENTS</function>"),
        CallFormat(("<function=", NAME, ">", ARGUMENTS, "</function>"), "<function="),
    ),
    "harmony": (
        of_call(" to=functions.$NAME<|message|>$ARGUMENTS"),
        CallFormat((" to=functions.", NAME, "<|message|>", ARGUMENTS, ""), "to=functions."),
    ),
    "fenced": (
        of_call("<begin>function<sep>$NAME\n```json\n$ARGUMENTS\n```<done>"),
        CallFormat(("<begin>function<sep>", NAME, "\n```json\n", ARGUMENTS, "\n```<done>"), "<begin>function<sep>"),
    ),
    "arguments first": (
        of_call('<call>{"args": $ARGUMENTS, "to": "$NAME"}'),
        CallFormat(('<call>{"args": ', ARGUMENTS, ', "to": "', NAME, '"}'), "<call>"),
    ),
    "arguments as text": (
        of_call("<call>{{ call.function.name + ' ' + call.function.arguments }}"),
        CallFormat(("<call>", NAME, " ", ARGUMENTS, ""), "<call>"),
    ),
    "compact": (
        of_call("<call>$NAME|{{ call.function.arguments | tojson(separators=(',', ':')) }}"),
        CallFormat(("<call>", NAME, "|", ARGUMENTS, ""), "<call>", is_compact=True),
    ),
    "thoughts before answers": (
        of_call("<call>$NAME:$ARGUMENTS").replace(
            "\n{{ m.c", "\n{{ '<think></think>' if m.role == 'assistant' }}{{ m.c"
        ),
        CallFormat(("<call>", NAME, ":", ARGUMENTS, ""), "<call>"),
    ),
    "insists on tools": (
        "{% for tool in tools %}{{ tool.function.name }}{% endfor %}" + of_call("<call>$NAME:$ARGUMENTS"),
        CallFormat(("<call>", NAME, ":", ARGUMENTS, ""), "<call>"),
    ),
}
NOT_FOUND = {
    "knows no tools": "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}",
    "writes no calls": of_call(""),
    "writes no JSON": of_call("<call>$NAME{% for k, v in call.function.arguments.items() %}<{{k}}>{{v}}{% endfor %}"),
    "begins like text": of_call("$NAME\n$ARGUMENTS"),
    "name runs into arguments": of_call("<call>$NAME$ARGUMENTS"),
    "refuses calls": of_call("{{ raise_exception('none') }}"),
}


def writer(source: str) -> Any:
    template = ChatTemplate(source, bos_token="<bos>", eos_token="<eos>")

    def write(chat: Chat) -> str:
        return template.render(
            chat.messages,
            adds_generation_prompt=chat.adds_generation_prompt,
            variables=chat.variables,
        )

    return write


@pytest.mark.parametrize("style", FOUND)
def test_format_is_found_in_the_template(style: str) -> None:
    source, expected = FOUND[style]

    assert find_format(writer(source), ends=["<end>"]) == expected


@pytest.mark.parametrize("style", NOT_FOUND)
def test_template_that_can_not_be_followed_has_no_format(style: str) -> None:
    assert find_format(writer(NOT_FOUND[style]), ends=["<end>"]) is None


FUNCTIONS = Tools(json.dumps([{"name": "find", "description": "Finds.", "parameters": {"type": "object"}}]))
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "Who?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "find", "arguments": '{"n": 1}'}}] * 2,
    },
    {"role": "tool", "content": "Ada", "tool_call_id": "1"},
    {"role": "tool", "content": "Bo", "tool_call_id": "2"},
]


def test_plain_words_tell_what_there_is_and_what_was_called() -> None:
    told = json.loads(tell(json.dumps(HISTORY), FUNCTIONS, takes_system=True))

    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert '{"name": "find", "description": "Finds.", "parameters": {"type": "object"}}' in told[0]["content"]
    assert told[2]["content"].count('<tool_call>\n{"name": "find", "arguments": {"n": 1}}\n</tool_call>') == 2
    assert "tool_calls" not in told[2]
    assert told[3]["content"] == "<tool_response>\nAda\n</tool_response>\n<tool_response>\nBo\n</tool_response>"


def test_plain_words_go_beside_the_parts_of_a_content() -> None:
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}]
    chat = [{"role": "system", "content": parts}, {"role": "user", "content": parts}]

    system, user = json.loads(tell(json.dumps(chat), FUNCTIONS, takes_system=True))

    assert system["content"].startswith("Be\nkind.\n\nYou can call functions.")
    assert user["content"] == parts


def test_plain_words_go_to_the_system_message_or_without_one_to_the_users() -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]

    system, user = json.loads(tell(json.dumps(chat), FUNCTIONS, takes_system=True))
    [first] = json.loads(tell(json.dumps(chat[1:]), FUNCTIONS, takes_system=False))

    assert system["content"].startswith("Be kind.\n\nYou can call functions.")
    assert user["content"] == "Who?"
    assert first["role"] == "user"
    assert first["content"].startswith("You can call functions.")
    assert first["content"].endswith("\n\nWho?")
