"""Messages as a model's template writes them: answers to open or to go on with, variables, tools called before."""

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.types import ErrorCode, RowError, SamplingParams
from tests.support.fake_model import FakeVocabulary
from workers.engines.base import SequenceRequest
from workers.engines.llama.chat import ChatTemplate
from workers.engines.llama.chat_frames import ChatTemplateError
from workers.engines.llama.prompts import Prompts

#: An end behind each message, as most have it.
OPEN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STRIPPING = OPEN.replace("m.content", "m.content | trim")

USER: dict[str, Any] = {"role": "user", "content": "Who?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Bonn", "n": 2}'}}
TOOLS_CALLED: list[dict[str, Any]] = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "12 °C", "tool_call_id": "call_1"},
]


def render(source: str, messages: list[dict[str, Any]], **arguments: Any) -> str:
    return compiled(source).render(json.dumps(messages), **arguments)


@cache
def compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<bos>", eos_token="<eos>")


def test_answer_is_opened_unless_it_should_not_be() -> None:
    assert render(OPEN, [USER]) == "<user>Who?<end>\n<assistant>"
    assert render(OPEN, [USER], adds_generation_prompt=False) == "<user>Who?<end>\n"


@pytest.mark.parametrize(
    ("source", "content", "prompt"),
    [
        (OPEN, "It is", "<user>Who?<end>\n<assistant>It is"),
        (OPEN, "It is ", "<user>Who?<end>\n<assistant>It is "),
        (OPEN, "", "<user>Who?<end>\n<assistant>"),
        (OPEN, "Who?", "<user>Who?<end>\n<assistant>Who?"),
        (STRIPPING, "It is", "<user>Who?<end>\n<assistant>It is"),
        (STRIPPING, " It is \n", "<user>Who?<end>\n<assistant>It is"),
    ],
)
def test_prompt_ends_with_the_message_to_go_on_with(source: str, content: str, prompt: str) -> None:
    # The answer is not opened even if both are asked for.
    assert render(source, [USER, {"role": "assistant", "content": content}], continues_final=True) == prompt


@given(st.text(max_size=20))
def test_any_text_is_gone_on_with(content: str) -> None:
    found = render(OPEN, [USER, {"role": "assistant", "content": content}], continues_final=True)
    assert found == "<user>Who?<end>\n<assistant>" + content


@pytest.mark.parametrize(
    ("source", "messages", "why"),
    [
        (OPEN, [], "has no content"),
        (OPEN, [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], "has no content"),
        ("{{ messages[0].content }}", [USER, {"role": "assistant", "content": "x"}], "changes the last message"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", [USER], "changes the last message"),
    ],
)
def test_message_that_is_not_at_the_end_of_the_prompt_is_not_gone_on_with(
    source: str, messages: list[dict[str, Any]], why: str
) -> None:
    with pytest.raises(ChatTemplateError, match=why) as caught:
        render(source, messages, continues_final=True)
    assert caught.value.field == "continue_final_message"


def test_variables_reach_the_template() -> None:
    source = "{% if enable_thinking is defined and not enable_thinking %}/no_think {% endif %}{{ style.tone }}"
    assert render(source, [USER], variables='{"enable_thinking": false, "style": {"tone": "dry"}}') == "/no_think dry"


def test_variables_replace_none_of_ours() -> None:
    source = "{{ messages | length }}{{ tools }}{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}"
    names = ("messages", "bos_token", "eos_token", "add_generation_prompt", "self")
    assert render(source, [USER], variables=json.dumps(dict.fromkeys(names, "x"))) == "1None<bos><eos>True"


#: In the manner of Llama 4, Gemma 3 and others of models that see.
EITHER = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}({{ part.text }}){% endif %}{% endfor %}{% endif %}"
    "{% endfor %}"
)
#: In the manner of SmolVLM: nothing but parts.
ONLY_PARTS = (
    "{% for m in messages %}<{{ m.role }}>{% for part in m.content %}"
    "{% if part.type == 'text' %}({{ part.text }}){% endif %}{% endfor %}{% endfor %}"
)
PARTS = [{"type": "text", "text": "One"}, {"type": "text", "text": "Two"}]


@pytest.mark.parametrize(
    ("source", "parts", "text"),
    [
        (EITHER, "<user>(One)(Two)", "<user>Who?"),
        (ONLY_PARTS, "<user>(One)(Two)", "<user>(Who?)"),
        (OPEN, "<user>One\nTwo<end>\n<assistant>", "<user>Who?<end>\n<assistant>"),
        # It would write the list as JSON, or find no text in it.
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", '"One\\nTwo"', '"Who?"'),
        ("{{ messages[0].content if messages[0].content is string else '' }}", "One\nTwo", "Who?"),
        ("{{ messages[0]['content'] + '' }}", "One\nTwo", "Who?"),
    ],
)
def test_content_has_the_form_that_the_template_reads(source: str, parts: str, text: str) -> None:
    assert render(source, [{"role": "user", "content": PARTS}]) == parts
    assert render(source, [USER]) == text


def test_message_of_parts_is_gone_on_with_at_the_end_of_the_last() -> None:
    chat = [USER, {"role": "assistant", "content": PARTS}]

    assert render(EITHER, chat, continues_final=True) == "<user>Who?<assistant>(One)(Two"
    assert render(OPEN, chat, continues_final=True) == "<user>Who?<end>\n<assistant>One\nTwo"


def test_template_gets_the_tools_of_the_request() -> None:
    tool = {"type": "function", "function": {"name": "find", "description": "<b>"}}
    source = "{% if tools %}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{% endif %}{{ messages[0].content }}"

    assert render(source, [USER], variables=json.dumps({"tools": [tool]})) == f"{json.dumps(tool)}Who?"
    assert render(source, [USER]) == "Who?"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_of_the_past_have_the_names_that_templates_know(name: str) -> None:
    source = "{{ messages[1].reasoning_content }};{{ messages[1].thinking }};{{ messages[0].thinking is defined }}"

    assert render(source, [USER, {"role": "assistant", "content": "I", name: "hm"}]) == "hm;hm;False"


def test_json_and_dates_are_written_as_transformers_does() -> None:
    variables = json.dumps({"value": {"b": "<é>", "a": [1]}})
    written = {
        "value | tojson": '{"b": "<é>", "a": [1]}',
        "value | tojson(ensure_ascii=True)": '{"b": "<\\u00e9>", "a": [1]}',
        "value | tojson(sort_keys=true, separators=(',', ':'))": '{"a":[1],"b":"<é>"}',
        "value.a | tojson(indent=1)": "[\n 1\n]",
        "(strftime_now('%Y') | int) > 2000": "True",
    }

    for expression, expected in written.items():
        assert render(f"{{{{ {expression} }}}}", [USER], variables=variables) == expected
    assert render("a{% generation %}\n b{{ 1 }}{% endgeneration %}\nc", [USER]) == "a b1c"


@pytest.mark.parametrize("variables", ["[]", "1", '"x"', "{"])
def test_variables_that_are_no_object_are_an_error(variables: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(OPEN, [USER], variables=variables)


#: How templates write calls: from objects as transformers has them, as JSON from either, or by adding up texts.
BY_ITEMS = "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}"
BY_TOJSON = "{{ c.function.arguments | tojson }}"
BY_ADDING = "{{ '```' + c.function.arguments + '```' }}"


@pytest.mark.parametrize(
    ("writes_call", "call"),
    [
        (BY_ITEMS, "city=Bonn;n=2;"),
        (BY_TOJSON, '{"city": "Bonn", "n": 2}'),
        (BY_ADDING, '```{"city": "Bonn", "n": 2}```'),
    ],
)
@pytest.mark.parametrize(
    "writes_content",
    [
        "{{ m.content }}",
        "{% if m.content is not none %}{{ m.content }}{% endif %}",
        "{{ m.content or '' }}",
        "{{ m.content.strip() }}",
        "{% if m.content is string %}{{ m.content }}{% endif %}",
        "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content | tojson }}{% endif %}",
        # Only what comes before the last message is looked into.
        "{% if loop.last %}{{ m.content or '' }}{% else %}{{ m.content.split('|')[-1] }}{% endif %}",
    ],
)
def test_tools_that_were_called_are_written_as_the_template_wants_them(
    writes_call: str, call: str, writes_content: str
) -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>"
        + writes_content
        + "{% for c in m.tool_calls or [] %}[{{ c.function.name }} "
        "" + writes_call + "]{% endfor %}{% if m.tool_call_id %}({{ m.tool_call_id }}){% endif %}{% endfor %}"
    )
    assert render(source, TOOLS_CALLED) == f"<user>Who?<assistant>[find {call}]<tool>12 °C(call_1)"


def test_template_that_wants_short_ids_of_calls_gets_the_same_for_a_call_and_its_answer() -> None:
    source = (
        "{% for m in messages %}{% for call in m.tool_calls or [] %}"
        "{% if call.id | length != 9 %}{{ raise_exception('ids have 9 characters') }}{% endif %}{{ call.id }} "
        "{% endfor %}{{ m.tool_call_id or '' }}{% endfor %}"
    )
    of_call, of_answer = render(source, TOOLS_CALLED).split()
    kept = [TOOLS_CALLED[1] | {"tool_calls": [CALL | {"id": "abcDEF123"}]}]

    assert of_call == of_answer
    assert of_call.isalnum()
    assert render(source, kept) == "abcDEF123 "


def test_template_that_tells_calls_by_null_content_gets_null() -> None:
    source = (
        "{% for m in messages %}{% if m.content is none %}call {{ m.tool_calls[0]['function']['name'] + ': ' "
        "+ m.tool_calls[0]['function']['arguments'] }}{% else %}{{ m.content }};{% endif %}{% endfor %}"
    )
    assert render(source, TOOLS_CALLED) == 'Who?;call find: {"city": "Bonn", "n": 2}12 °C;'


@pytest.mark.parametrize(
    ("arguments", "written"),
    [("", "{}"), ("{", '"{"'), ("[1]", '"[1]"'), ({"a": "é"}, '{"a": "é"}'), ("null", '"null"')],
)
def test_arguments_that_are_no_text_of_an_object_stay_as_they_are(arguments: object, written: str) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    assert render(source, [{"role": "assistant", "content": "x", "tool_calls": [call]}]) == written


def test_refusal_tells_what_the_template_says_of_objects() -> None:
    with pytest.raises(ChatTemplateError, match="these messages: only one call"):
        render("{{ raise_exception('only one call') }}", TOOLS_CALLED)


def test_templates_may_say_what_transformers_lets_them_say() -> None:
    source = (
        "{% for m in messages %}{% generation %}{{ m.content }};{% endgeneration %}{% if loop.last %}{% break %}"
        "{% endif %}{% endfor %}{{ {'b': 'é', 'a': 1} | tojson }}"
        "{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}"
        "{{ [1] | tojson(indent=1) }}"
    )
    assert render(source, [USER, USER]) == 'Who?;Who?;{"b": "é", "a": 1}{"a":1,"b":"\\u00e9"}[\n 1\n]'


def prompts_of(template: str | None) -> Prompts:
    return Prompts(FakeVocabulary(200), chat_template=template, limit=200)  # type: ignore[arg-type]


def test_parameters_of_a_request_write_its_prompt() -> None:
    messages = [USER, {"role": "assistant", "content": "It is"}]
    params = SamplingParams(continue_final_message=True, chat_template_kwargs='{"mood": "dry"}')
    prompts = prompts_of("{{ mood }}:" + OPEN)

    tokens = prompts.tokenize(SequenceRequest((0, 0), json.dumps(messages), params, is_chat=True))

    assert not isinstance(tokens, RowError)
    assert "".join(map(chr, tokens.tolist())) == "dry:<user>Who?<end>\n<assistant>It is"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SamplingParams(continue_final_message=True), "continue_final_message: the last message has no content"),
        (SamplingParams(chat_template_kwargs="[1]"), "messages: the model's chat template refuses these messages"),
    ],
)
def test_what_can_not_be_written_is_the_rows_error(params: SamplingParams, message: str) -> None:
    found = prompts_of(OPEN).tokenize(SequenceRequest((0, 0), "[]", params, is_chat=True))
    assert isinstance(found, RowError)
    assert found.code is ErrorCode.INVALID_REQUEST
    assert found.message.startswith(message)
