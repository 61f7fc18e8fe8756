"""Bodies become requests, whatever is wrong with them is named with its remedy, and how that is worded."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from batcher.errors import InvalidBodyError
from batcher.openai.bodies import ParsedBody, parse_body, parse_line_body
from batcher.openai.fields import MAX_BIASES, MAX_STOP_CHARS, MAX_STOPS
from batcher.openai.parameters import BODIES, CHAT_URL, COMPLETIONS_URL, ROW_FIELDS, explain, row_model, shown
from batcher.openai.schema import body_schema
from batcher.types import Request, SamplingParams

STOP_REMEDY = f"use a string of 1 to {MAX_STOP_CHARS} characters, or an array of at most {MAX_STOPS} of them"
PROMPT_REMEDY = "use a string, or a non-empty array of strings or of token ids"
FIELDS = {name: name for name in ROW_FIELDS}
TEXT: dict[str, Any] = {"model": "m", "prompt": "x"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def problem(values: dict[str, Any]) -> str:
    model = row_model(prompt_column="prompt", id_column="custom_id")
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"prompt": "x"} | values)
    return explain(caught.value, {"prompt": "x"} | values, FIELDS).message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0; use a positive integer"),
        ({"max_tokens": -1}, "max_tokens is -1; use a positive integer"),
        ({"max_tokens": "5"}, 'max_tokens is "5"; use a positive integer'),
        ({"max_tokens": True}, "max_tokens is true; use a positive integer"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5; use a positive integer"),
        ({"max_tokens": 2**31}, "max_tokens is 2147483648; use at most 2147483647"),
        ({"temperature": 2.1}, "temperature is 2.1; use a number from 0 to 2"),
        ({"temperature": "0"}, 'temperature is "0"; use a number from 0 to 2'),
        ({"temperature": True}, "temperature is true; use a number from 0 to 2"),
        ({"temperature": float("nan")}, "temperature is NaN; use a number from 0 to 2"),
        ({"top_p": -0.1}, "top_p is -0.1; use a number from 0 to 1"),
        ({"top_p": float("inf")}, "top_p is Infinity; use a number from 0 to 1"),
        ({"stop": ""}, f'stop is ""; {STOP_REMEDY}'),
        ({"stop": ["a", ""]}, f'stop[1] is ""; {STOP_REMEDY}'),
        ({"stop": 5}, f"stop is 5; {STOP_REMEDY}"),
        ({"seed": 2**63}, "seed is 9223372036854775808; use an integer of at most 64 bits"),
        ({"stream": "yes"}, 'stream is "yes"; use true or false'),
        ({"model": 5}, "model is 5; use a string"),
        ({"prompt": []}, f"prompt is []; {PROMPT_REMEDY}"),
        ({"prompt": None}, f"prompt is null; {PROMPT_REMEDY}"),
        ({"prompt": ["a", 5, 6]}, f"prompt[1] is 5; {PROMPT_REMEDY}"),
        ({"prompt": {"a": 1}}, f'prompt is {{"a": 1}}; {PROMPT_REMEDY}'),
        ({"custom_id": ""}, 'custom_id is ""; use a non-empty string or a finite number'),
        ({"custom_id": True}, "custom_id is true; use a non-empty string or a finite number"),
        ({"custom_id": float("inf")}, "custom_id is Infinity; use a non-empty string or a finite number"),
    ],
)
def test_wrong_value_is_named_with_its_remedy(values: dict[str, Any], message: str) -> None:
    assert problem(values) == message


def test_too_many_or_long_stops_are_refused() -> None:
    assert problem({"stop": ["a"] * (MAX_STOPS + 1)}).startswith('stop is ["a", "a"')
    assert problem({"stop": "a" * (MAX_STOP_CHARS + 1)}).endswith(STOP_REMEDY)
    assert problem({"stop": ["b", "a" * (MAX_STOP_CHARS + 1)]}).startswith('stop[1] is "aaa')


def test_long_array_of_wrong_values_makes_one_short_message() -> None:
    message = problem({"prompt": [-1] * 100_000})
    assert message == f"prompt[0] is -1; {PROMPT_REMEDY}"


def test_exact_float_and_null_are_taken() -> None:
    given = {"prompt": "x", "max_tokens": 16.0, "seed": -(2**63), "top_p": 0, "stop": None}
    body = dict(BODIES[False].model_validate(given))
    assert [body[name] for name in ("max_tokens", "seed", "top_p", "stop")] == [16, -(2**63), 0.0, None]


@pytest.mark.parametrize("value", ["x" * 1000, ["y" * 1000], {"k": "z" * 1000}])
def test_long_values_are_cut_in_messages(value: Any) -> None:
    assert len(shown(value)) == 60
    assert shown(value).endswith("...")


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert shown("a\x1b[31m\n") == '"a\\u001b[31m\\n"'


def parse(body: dict[str, Any] | bytes, **options: Any) -> ParsedBody:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    usual: dict[str, Any] = {"is_chat": b'"messages"' in data, "models": ("m", "k")}
    usual["max_prompts"] = 1000
    return parse_body(data, **(usual | options))


def refusal(body: dict[str, Any] | bytes, **options: Any) -> InvalidBodyError:
    with pytest.raises(InvalidBodyError) as caught:
        parse(body, **options)
    return caught.value


# -- bodies -----------------------------------------------------------------------------------------------------------


def test_body_without_parameters_has_the_documented_defaults() -> None:
    parsed = parse(TEXT, row=7, custom_id="a")
    assert parsed == ParsedBody(Request(7, "a", "m", ("x",), False, SamplingParams()), False, False, ())


def test_body_takes_every_parameter() -> None:
    params: dict[str, Any] = {"n": 2, "best_of": 3.0, "echo": True, "seed": 5}
    params |= {"presence_penalty": -2, "frequency_penalty": 2.0}
    params |= {"logit_bias": {"50256": -100, "7": 0.5}, "suffix": "end", "stop": ["a", "b"], "max_tokens": 9}
    request = parse(TEXT | params | {"prompt": ["x", "y"]}).request
    assert request.params == SamplingParams(
        max_tokens=9,
        stop=("a", "b"),
        seed=5,
        n=2,
        best_of=3,
        echo=True,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias=((7, 0.5), (50256, -100.0)),
        suffix="end",
    )
    assert (request.prompts, request.is_array, request.num_sequences) == (("x", "y"), True, 6)
    assert parse(TEXT | {"logprobs": 5}).request.params.logprobs == 5
    scored = parse(TEXT | {"echo": True, "logprobs": 0, "max_tokens": 0}).request
    assert scored.params == SamplingParams(max_tokens=0, echo=True, logprobs=0)
    assert scored.scores_prompts


@pytest.mark.parametrize("body", [TEXT, CHAT])
def test_null_is_the_default_of_every_field(body: dict[str, Any]) -> None:
    names = body_schema(body is CHAT)["properties"].keys() - body.keys()
    assert len(names) > 15
    nulls: dict[str, Any] = dict.fromkeys(names)
    assert parse(nulls | body, is_chat=body is CHAT) == parse(body)


@pytest.mark.parametrize(
    ("params", "name", "value"),
    [
        ({}, "max_tokens", 1024),
        ({}, "clips_max_tokens", True),
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_tokens": 5}, "clips_max_tokens", False),
        ({"max_completion_tokens": 1024}, "clips_max_tokens", False),
        ({"max_completion_tokens": 6}, "max_tokens", 6),
        ({"max_tokens": 6, "max_completion_tokens": 6}, "max_tokens", 6),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": True, "top_logprobs": 20}, "logprobs", 20),
        ({"logprobs": False, "top_logprobs": 0}, "logprobs", None),
    ],
)
def test_chat_has_its_own_names_and_defaults(params: dict[str, Any], name: str, value: int | None) -> None:
    assert getattr(parse(CHAT | params).request.params, name) == value


def test_completion_that_does_not_say_max_tokens_gets_no_fewer_than_documented() -> None:
    params = parse(TEXT).request.params
    assert (params.max_tokens, params.clips_max_tokens) == (16, False)


def test_what_asks_for_nothing_is_taken_and_what_changes_nothing_ignored() -> None:
    neutral: dict[str, Any] = {"tools": [], "functions": [], "tool_choice": "none", "modalities": ["text"]}
    neutral |= {"response_format": {"type": "text"}, "user": "u", "store": True, "metadata": {"a": "b"}, "audio": None}
    neutral |= {"service_tier": "auto", "parallel_tool_calls": False, "prompt_cache_key": "k"}
    neutral |= {"safety_identifier": "s", "stream_options": None}
    assert parse(CHAT | neutral) == parse(CHAT)


def test_usage_comes_only_in_a_stream_that_asks_for_it() -> None:
    asks: dict[str, Any] = {"stream_options": {"include_usage": True}}
    found = [parse(TEXT | body) for body in ({}, {"stream": True}, asks | {"stream": True})]
    assert [one.is_streaming for one in found] == [False, True, True]
    assert [one.includes_usage for one in found] == [False, False, True]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (TEXT | {"n": 0}, "n is 0; use an integer from 1 to 128"),
        (TEXT | {"n": True}, "n is true; use an integer from 1 to 128"),
        (TEXT | {"n": 129}, "n is 129; use an integer from 1 to 128"),
        (TEXT | {"n": 3, "best_of": 2}, "best_of is 2; use at least n, which is 3"),
        (TEXT | {"best_of": "2"}, 'best_of is "2"; use an integer from n to 128'),
        (TEXT | {"echo": 1}, "echo is 1; use true or false"),
        (TEXT | {"logprobs": 6}, "logprobs is 6; use an integer from 0 to 5"),
        (TEXT | {"logprobs": True}, "logprobs is true; use an integer from 0 to 5"),
        (TEXT | {"max_tokens": 0}, "max_tokens is 0; use a positive integer, or give echo true as well"),
        (TEXT | {"max_tokens": 0, "echo": False}, "max_tokens is 0; use a positive integer, or give echo true as well"),
        (TEXT | {"max_tokens": -1, "echo": True}, "max_tokens is -1; use a positive integer"),
        (CHAT | {"max_tokens": 0}, "max_tokens is 0; use a positive integer"),
        (
            TEXT | {"echo": True, "logprobs": 0, "suffix": "end"},
            "suffix is not supported together with echo and logprobs; leave out one of them",
        ),
        (
            TEXT | {"best_of": 2, "stream": True},
            "best_of is 2, more than n, which a stream can't give; leave out stream or best_of",
        ),
        (TEXT | {"presence_penalty": 2.5}, "presence_penalty is 2.5; use a number from -2 to 2"),
        (TEXT | {"frequency_penalty": "0"}, 'frequency_penalty is "0"; use a number from -2 to 2'),
        (TEXT | {"suffix": 5}, "suffix is 5; use a string"),
        (TEXT | {"prompt": [5, "six"]}, f'prompt[1] is "six"; {PROMPT_REMEDY}'),
        (TEXT | {"prompt": [5, True]}, f"prompt[1] is true; {PROMPT_REMEDY}"),
        (TEXT | {"prompt": [5, -1]}, f"prompt[1] is -1; {PROMPT_REMEDY}"),
        (TEXT | {"prompt": [2**31]}, f"prompt[0] is 2147483648; {PROMPT_REMEDY}"),
        (TEXT | {"prompt": [[5], []]}, f"prompt[1] is []; {PROMPT_REMEDY}"),
        (TEXT | {"prompt": [[5], 6]}, f"prompt[1] is 6; {PROMPT_REMEDY}"),
        (TEXT | {"prompt": [[5], [6, 0.5]]}, f"prompt[1][1] is 0.5; {PROMPT_REMEDY}"),
        (TEXT | {"prompt": [True]}, f"prompt[0] is true; {PROMPT_REMEDY}"),
        ({"model": "m"}, f"prompt is missing; {PROMPT_REMEDY}"),
        ({"prompt": "x"}, "model is missing; use one of: k, m"),
        (
            TEXT | {"stream_options": {"include_usage": 1}},
            'stream_options.include_usage is 1; use an object such as {"include_usage": true}',
        ),
        (TEXT | {"top_k": -2}, "top_k is -2; use a positive integer, or 0 for all tokens"),
        (TEXT | {"min_p": 1.1}, "min_p is 1.1; use a number from 0 to 1"),
        (TEXT | {"repetition_penalty": 0}, "repetition_penalty is 0; use a number from 0.01 to 100"),
        (
            TEXT | {"repetition_penalty": 1.1, "repeat_penalty": 1.2},
            "repeat_penalty is 1.2 and repetition_penalty 1.1; give one of them",
        ),
        (TEXT | {"min_tokens": -1}, "min_tokens is -1; use an integer from 0 to max_tokens"),
        (TEXT | {"min_tokens": 17}, "min_tokens is 17; use at most max_tokens, which is 16"),
        (TEXT | {"stop_token_ids": [1, -1]}, "stop_token_ids[1] is -1; use an array of at most 1024 token ids"),
        (
            TEXT | {"bad_words": ["a", ""]},
            'bad_words[1] is ""; use an array of at most 1024 strings, each of 1 to 1024 characters',
        ),
        (
            CHAT | {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message is true and add_generation_prompt true; give one of them",
        ),
        (
            CHAT | {"chat_template_kwargs": [1]},
            "chat_template_kwargs is [1]; use an object of variables for the chat template",
        ),
        (CHAT | {"logprobs": 5}, "logprobs is 5; use true or false, and top_logprobs for how many"),
        (CHAT | {"top_logprobs": 5}, "top_logprobs is 5 without logprobs; give logprobs true too"),
        (CHAT | {"top_logprobs": 21}, "top_logprobs is 21; use an integer from 0 to 20"),
        (
            CHAT | {"max_tokens": 5, "max_completion_tokens": 6},
            "max_completion_tokens is 6 and max_tokens 5; give one of them",
        ),
        (CHAT | {"max_completion_tokens": 2**31}, "max_completion_tokens is 2147483648; use at most 2147483647"),
        (CHAT | {"tools": [{}]}, 'tools[0].type is missing; only "function" is supported'),
        (CHAT | {"tool_choice": "required"}, 'tool_choice is "required" without tools; give tools too'),
        (TEXT | {"tools": [{}]}, "tools is [{}]; it is for /v1/chat/completions; leave it out"),
        (CHAT | {"audio": {"voice": "v"}}, 'audio is {"voice": "v"}; audio is not supported; leave it out'),
        (CHAT | {"modalities": ["text", "audio"]}, 'modalities is ["text", "audio"]; only ["text"] is supported'),
        (
            CHAT | {"response_format": {"type": "json"}},
            'response_format.type is "json"; use {"type": "json_schema", "json_schema": {"schema": ...}}, '
            '{"type": "json_object"} or {"type": "text"}',
        ),
        (
            TEXT | {"stream_options": {"include_usage": True}},
            "stream_options is for streams only; give stream true too, or leave it out",
        ),
        (
            CHAT | {"stream_options": {}, "stream": False},
            "stream_options is for streams only; give stream true too, or leave it out",
        ),
    ],
)
def test_wrong_body_names_field_value_and_remedy(body: dict[str, Any], message: str) -> None:
    error = refusal(body, is_chat="messages" in body)
    assert str(error) == message
    assert (error.param, error.code) == (message.split(" ", 1)[0], None)


@pytest.mark.parametrize(
    ("biases", "label"),
    [
        ({"abc": 1}, "logit_bias.abc is 1"),
        ({"-1": 1}, 'logit_bias["-1"] is 1'),
        ({"05": 1}, 'logit_bias["05"] is 1'),
        ({"9999999999": 1}, 'logit_bias["9999999999"] is 1'),
        ({"5": 100.5}, 'logit_bias["5"] is 100.5'),
        ({"5": True}, 'logit_bias["5"] is true'),
        ({str(token): 1 for token in range(MAX_BIASES + 1)}, "logit_bias is {"),
        ([5], "logit_bias is [5]"),
    ],
)
def test_wrong_logit_bias_is_named(biases: Any, label: str) -> None:
    assert str(refusal(TEXT | {"logit_bias": biases})).startswith(label)


def test_model_that_is_not_served_has_the_code_of_the_api() -> None:
    error = refusal(TEXT | {"model": "gpt-9"})
    assert (error.param, error.code) == ("model", "model_not_found")
    assert str(error) == 'model "gpt-9" does not exist here; use one of: k, m'


UNKNOWN_MESSAGE = {"role": "user", "content": [{"type": "text", "text": "x", "y": 1}], "z": 2}


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"colour": 1, "nothing": None}, "colour is not a field of this request; remove it"),
        ({"top_kk": 5}, "top_kk is not a field of this request; did you mean top_k?"),
        ({"a\nb: é": 1}, "a\\nb: \\u00e9 is not a field of this request; remove it"),
        ({"messages": [UNKNOWN_MESSAGE]}, "messages[0].z is not known here; remove it"),
    ],
)
def test_unknown_field_is_refused_the_same_live_and_in_a_line(extra: dict[str, Any], message: str) -> None:
    body = (CHAT if "messages" in extra else TEXT) | extra
    assert str(refusal(body)) == message
    with pytest.raises(InvalidBodyError) as caught:
        parse_line_body(body, url=CHAT_URL if "messages" in extra else COMPLETIONS_URL)
    assert str(caught.value) == message


def test_unknown_fields_are_told_by_a_server_that_ignores_them() -> None:
    body = TEXT | {"colour": 5, "a\nb: é": 1, "nothing": None}
    assert parse(body, ignores_unknown=True).ignored == ("colour", "a\\nb: \\u00e9")
    chat = CHAT | {"messages": [UNKNOWN_MESSAGE] * 3}
    assert parse(chat, ignores_unknown=True).ignored == ("messages[].z", "messages[].content[].y")
    many = parse(TEXT | {f"x{number}" * 100: 1 for number in range(1000)}, ignores_unknown=True).ignored
    assert (len(many), max(map(len, many))) == (20, 60)
    assert refusal(TEXT | {"structural_tag": {}}, ignores_unknown=True).param == "structural_tag"


def test_sequences_of_a_request_are_bounded() -> None:
    many = TEXT | {"prompt": ["x"] * 10}
    assert parse(many | {"best_of": 2}, max_prompts=20).request.num_sequences == 20
    assert str(refusal(many, max_prompts=9)) == "prompt holds 10 prompts; send at most 9 in a request"
    error = refusal(many | {"n": 2}, max_prompts=19)
    assert str(error) == "n is 2, which makes 20 completions in all; ask for at most 19 in a request"
    assert refusal(CHAT | {"n": 20}, max_prompts=19).param == "n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the body is not JSON (EOF while parsing a value at line 1 column 0); send one JSON object in UTF-8"),
        (b'{"prompt": "\xff"}', "the body is not UTF-8 (byte 0xff at position 13); send one JSON object in UTF-8"),
        (b"[" * 100_000, "the body is not JSON (recursion limit exceeded"),
        (b'{"a":' * 100_000, "the body is not JSON (recursion limit exceeded"),
        (b'{"x": ' + b"9" * 5000 + b"}", "the body is not JSON (number out of range"),
        (b'{"x": [0, NaN]}', "x[1] is NaN, which is no JSON; use a number, or null"),
        (
            b'{"prompt": "\\ud83d\\ude00\\ud83d"}',
            r"the body is not JSON (\ud83d at position 25 is half of a character; cut",
        ),
        (b'{"prompt": "\\ude00"}', r"the body is not JSON (\ude00 at position 13 is half of a character; cut"),
        (b'{"prompt": "\\\\ud83d \\uzzzz"}', "the body is not JSON (invalid escape"),
        (b'["x"]', 'the body is not a JSON object but ["x"]; send one JSON object'),
        (b'{"model": "m", "prompt": "x", "model": "m"}', '"model" is given twice in one object; give it once'),
        (b'{"model": "m", "prompt": "x", "metadata": {"a": 1, "a": 2}}', '"a" is given twice in one object'),
        (b'{"model": "m", "prompt": "x", "temperature": 1e999}', "temperature is Infinity; use a number from 0 to 2"),
    ],
)
def test_body_that_is_no_good_json_is_refused(data: bytes, message: str) -> None:
    assert str(refusal(data)).startswith(message)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
field_names = st.sampled_from(sorted(body_schema(True)["properties"].keys() | body_schema(False)["properties"].keys()))
messages_like = st.lists(
    st.dictionaries(st.sampled_from(["role", "content", "name", "tool_calls", "x"]), json_values, max_size=4),
    max_size=3,
)
bodies = st.dictionaries(field_names | st.text(max_size=5), json_values | messages_like, max_size=5)


@given(st.binary(max_size=60) | bodies.map(lambda body: json.dumps(TEXT | CHAT | body).encode()), st.booleans())
@example(b'{"prompt": [], "model": "m"}', False)
@example(b'\xef\xbb\xbf{"prompt": "x", "model": "m"}', False)
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_request_or_a_clear_refusal(data: bytes, is_chat: bool) -> None:
    for ignores_unknown in (False, True):
        try:
            parsed = parse(data, is_chat=is_chat, ignores_unknown=ignores_unknown)
        except InvalidBodyError as exc:
            refused = str(exc)
            assert 0 < len(refused) < 400
        else:
            assert parsed.request.num_sequences >= 1
            assert all(name.isascii() and name.isprintable() for name in parsed.ignored if name)


@pytest.mark.parametrize("filling", [b"-5", b'"x"', b"[1]", b"{}", b"null"])
@pytest.mark.parametrize("field", [b"prompt", b"stop", b"messages", b"logit_bias", b"tools", b"modalities"])
def test_long_array_is_answered_without_much_memory(field: bytes, filling: bytes) -> None:
    data = b'{"model": "m", "' + field + b'": [' + b",".join([filling] * 200_000) + b"]}"
    tracemalloc.start()
    try:
        for is_chat in (False, True):
            with pytest.raises(InvalidBodyError) as caught:
                parse(data, is_chat=is_chat)
            assert len(str(caught.value)) < 400
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Parsed JSON takes up to a hundred bytes a value; a list of errors would take many hundreds.
    assert peak < 200 * 200_000


def test_messages_of_a_chat_are_bounded() -> None:
    assert parse(CHAT | {"messages": CHAT["messages"] * 2048}).request.num_sequences == 1
    assert refusal(CHAT | {"messages": CHAT["messages"] * 2049}).param == "messages"


def test_ten_thousand_prompts_are_one_request() -> None:
    parsed = parse(TEXT | {"prompt": [f"prompt {number}" for number in range(10_000)]}, max_prompts=10_000)
    assert parsed.request.num_sequences == 10_000


# -- schemas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_chat", [False, True])
def test_schema_is_self_contained_and_names_every_field(is_chat: bool) -> None:
    schema = body_schema(is_chat, models=["m", "k"])
    assert "$ref" not in json.dumps(schema)
    assert schema["properties"]["model"] == {"type": "string", "enum": ["k", "m"]}
    assert schema["required"] == ["model", "messages" if is_chat else "prompt"]
    assert schema["additionalProperties"] == {"type": "null"}
    assert schema["properties"]["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 128}
    assert {"user", "seed", "stream_options", "logit_bias"} <= schema["properties"].keys()
    assert body_schema(is_chat, ignores_unknown=True)["additionalProperties"] is True
