"""Every field that clients send is honoured, harmless or refused: the same live, as a batch line and as a row.

The lists are those of the installed SDK, which is locked: an upgrade shows here what is new.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache
from itertools import count
from typing import Any, get_args

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as sdk_completions
from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionMessageParam
from openai.types.chat import completion_create_params as sdk_chats

from batcher.errors import InputError, InvalidBodyError
from batcher.jobdir.shards import ShardRow
from batcher.openai.bodies import parse_body
from batcher.openai.body_field import BodyField, Use
from batcher.openai.fields import BY_NAME, FIELDS, OPTIONAL_ROW_FIELDS, PARAM_FIELDS
from batcher.openai.parameters import CHAT_URL, COMPLETIONS_URL
from batcher.openai.schema import body_schema
from batcher.submission.readers.files import LineBatch, Origin, TableBatch
from batcher.submission.rows import RowParser
from batcher.types import Request, SamplingParams

BASES: dict[bool, dict[str, Any]] = {
    False: {"model": "m", "prompt": "x"},
    True: {"model": "m", "messages": [{"role": "user", "content": "x"}]},
}

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

#: A value of each field that asks for something, where the field can't be given any value.
ASKING: dict[str, Any] = {
    "model": "k",
    "prompt": ["y", "z"],
    "messages": [{"role": "user", "content": "y"}],
    "stream": True,
    "stream_options": {"include_usage": True},
    "max_tokens": 3,
    "max_completion_tokens": 3,
    "temperature": 0.5,
    "top_p": 0,
    "stop": ["a", "b"],
    "seed": 5,
    "n": 2,
    "best_of": 2,
    "echo": True,
    "suffix": "end",
    "top_logprobs": 3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {"7": 1},
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "repeat_penalty": 1.1,
    "min_tokens": 2,
    "ignore_eos": True,
    "stop_token_ids": [7],
    "include_stop_str_in_output": True,
    "bad_words": ["word"],
    "response_format": {"type": "json_object"},
    "structured_outputs": {"regex": "a+"},
    "json_schema": {"type": "string"},
    "grammar": 'root ::= "a"',
    "guided_json": '{"type": "string"}',
    "guided_regex": "a+",
    "guided_choice": ["a", "b"],
    "guided_grammar": 'start: "a"',
    "guided_json_object": True,
    "add_generation_prompt": False,
    "continue_final_message": True,
    "chat_template_kwargs": {"enable_thinking": False},
    "reasoning": "off",
    "reasoning_effort": "low",
    "verbosity": "low",
    "documents": [{"title": "t", "text": "x"}],
    "tools": [TOOL],
    "tool_choice": "required",
}
#: What fields of a request need beside them.
COMPANIONS: dict[tuple[str, bool], dict[str, Any]] = {
    ("stream_options", False): {"stream": True},
    ("stream_options", True): {"stream": True},
    ("top_logprobs", True): {"logprobs": True},
    ("tool_choice", True): {"tools": [TOOL]},
}

#: vllm/entrypoints/openai/completion/protocol.py and chat_completion/protocol.py at 002032e; guided_* are older ones.
VLLM = (
    "use_beam_search top_k min_p repetition_penalty watermarking length_penalty stop_token_ids "
    "include_stop_str_in_output ignore_eos min_tokens skip_special_tokens spaces_between_special_tokens "
    "truncate_prompt_tokens truncation_side allowed_token_ids prompt_logprobs logprob_token_ids bad_words "
    "add_special_tokens response_format structured_outputs priority request_id session_id return_tokens_as_token_ids "
    "return_token_ids routed_experts_prompt_start return_token_offsets return_mm_kwargs cache_salt kv_transfer_params "
    "ec_transfer_params vllm_xargs repetition_detection thinking_token_budget stream_interval echo "
    "add_generation_prompt continue_final_message documents chat_template chat_template_kwargs mm_processor_kwargs "
    "media_io_kwargs include_reasoning reasoning_effort guided_json guided_regex guided_choice guided_grammar "
    "guided_decoding_backend guided_whitespace_pattern logits_processors "
)
VLLM_COMPLETIONS = ["prompt_embeds"]
VLLM_CHATS = ["return_prompt_text"]
#: tools/server/server-schema.cpp of llama.cpp at 0177c34: those that make sense in a body that is not the server's own.
LLAMA_CPP = (
    "verbose timings_per_token stream cache_prompt return_tokens return_progress sse_ping_interval n_predict n_indent "
    "n_keep n_discard n_cmpl n_cache_reuse t_max_predict_ms response_fields top_k top_p min_p top_n_sigma "
    "xtc_probability xtc_threshold typical_p temperature dynatemp_range dynatemp_exponent repeat_last_n repeat_penalty "
    "frequency_penalty presence_penalty dry_multiplier dry_base dry_allowed_length dry_penalty_last_n "
    "dry_sequence_breakers mirostat mirostat_tau mirostat_eta adaptive_target adaptive_decay seed n_probs min_keep "
    "backend_sampling post_sampling_probs lora json_schema grammar grammar_lazy reasoning_format generation_prompt "
    "parse_tool_calls continue_final_message echo preserved_tokens grammar_triggers reasoning_budget_tokens logit_bias "
    "ignore_eos stop samplers id_slot "
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of a body: a request, or why it is none and which field is wrong."""

    request: Request | None = None
    message: str = ""
    param: str | None = None


def live(body: Mapping[str, Any], *, is_chat: bool) -> Answer:
    try:
        parsed = parse_body(
            json.dumps(body).encode(), is_chat=is_chat, models=("m", "k"), custom_id="a", max_prompts=1000
        )
    except InvalidBodyError as exc:
        return Answer(None, str(exc), exc.param)
    return Answer(parsed.request)


def in_line(body: Mapping[str, Any], *, is_chat: bool) -> Answer:
    url = CHAT_URL if is_chat else COMPLETIONS_URL
    return parse({"custom_id": "a", "method": "POST", "url": url, "body": body}, prefix="f:1: body.")


def in_row(body: Mapping[str, Any]) -> Answer:
    """As a plain row that opts in to every field."""
    return parse({"custom_id": "a", **body}, fields=OPTIONAL_ROW_FIELDS, prefix="f:1: ")


@cache
def parser(fields: tuple[str, ...]) -> RowParser:
    known = frozenset({"m", "k"})
    # As of a job for a model that reasons, whose thoughts a live request has told apart, too.
    return RowParser(params=SamplingParams(), default_model=None, known_models=known, fields=fields, reasoning="split")


def parse(line: Mapping[str, Any], *, prefix: str, fields: tuple[str, ...] = ()) -> Answer:
    batch = LineBatch(Origin("f", ":", range(1, 2)), [json.dumps(line).encode()])
    [row] = parser(fields).parse(batch, numbers=count()).rows
    if row.error is None:
        return Answer(row.request)
    return Answer(None, row.error.message.removeprefix(prefix), row.error.param)


def body_with(name: str, value: Any, *, is_chat: bool) -> dict[str, Any]:
    return BASES[is_chat] | COMPANIONS.get((name, is_chat), {}) | {name: value}


def asking(field: BodyField, *, is_chat: bool) -> Any:
    """A value of the field that asks for something."""
    if field.name == "logprobs":
        return True if is_chat else 3
    return ASKING.get(field.name, {"what": "ever"}) if field.use is Use.HONOURED else {"what": "ever"}


def of_sdk(is_chat: bool) -> list[str]:
    module: Any = sdk_chats if is_chat else sdk_completions
    kinds = (module.CompletionCreateParamsNonStreaming, module.CompletionCreateParamsStreaming)
    names = dict.fromkeys(name for kind in kinds for base in kind.__mro__[:-1] for name in _own(base))
    return list(names | dict.fromkeys(name for kind in kinds for name in kind.__annotations__))


def _own(kind: Any) -> Iterator[str]:
    yield from getattr(kind, "__annotations__", {})


def every_field() -> list[tuple[str, bool]]:
    known = [(field.name, is_chat) for is_chat in (False, True) for field in BY_NAME[is_chat].values()]
    sent = [
        (name, is_chat) for is_chat in (False, True) for name in [*of_sdk(is_chat), *VLLM.split(), *LLAMA_CPP.split()]
    ]
    alone = [(name, False) for name in VLLM_COMPLETIONS] + [(name, True) for name in VLLM_CHATS]
    return list(dict.fromkeys(known + sent + alone))


def test_sdk_has_the_fields_that_we_look_for() -> None:
    assert {"prompt", "best_of", "stream", "user"} <= set(of_sdk(False))
    assert {"messages", "tools", "stream", "reasoning_effort"} <= set(of_sdk(True))


@pytest.mark.parametrize(("name", "is_chat"), every_field())
def test_field_is_honoured_harmless_or_refused_alike(name: str, is_chat: bool) -> None:
    # Given a body with a field that asks for something
    field = BY_NAME[is_chat].get(name)
    assert field is not None, "a client sends it, and no table says what becomes of it"
    body = body_with(name, asking(field, is_chat=is_chat), is_chat=is_chat)
    base = live(BASES[is_chat] | COMPANIONS.get((name, is_chat), {}), is_chat=is_chat)

    # When it comes live and as the line of a batch
    found, line = live(body, is_chat=is_chat), in_line(body, is_chat=is_chat)

    # Then both do with it what the table says
    assert found == line
    if field.use is Use.REFUSED:
        assert found.request is None
        assert (found.param, found.message.split(" is ")[0]) == (name, name)
        assert found.message.endswith(field.remedy)
        for neutral in field.nothing:
            assert live(body_with(name, neutral, is_chat=is_chat), is_chat=is_chat) == base
    else:
        assert found.request is not None, found.message
        is_about_transport = name in {"stream", "stream_options"}
        assert (found == base) == (field.use is Use.HARMLESS or is_about_transport)
    if name not in BASES[is_chat]:
        nothing = body_with(name, None, is_chat=is_chat)
        assert live(nothing, is_chat=is_chat) == in_line(nothing, is_chat=is_chat) == base


MESSAGES_OF_SDK = get_args(ChatCompletionMessageParam)
PARTS_OF_SDK = get_args(ChatCompletionContentPartParam)
#: Values of the fields of messages and parts that ask for something.
IN_MESSAGES: dict[str, Any] = {
    "content": "x",
    "name": "n",
    "refusal": "no",
    "tool_call_id": "c",
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    "function_call": {"name": "f", "arguments": "{}"},
    "audio": {"id": "a"},
}
IN_PARTS: dict[str, Any] = {
    "text": "x",
    "image_url": {"url": "https://example.org/a.png"},
    "input_audio": {"data": "", "format": "wav"},
    "file": {"file_id": "f"},
    "prompt_cache_breakpoint": {"mode": "explicit"},
}
REFUSED_IN_MESSAGES = {"audio"}


def roles_and_fields() -> list[tuple[str, str]]:
    found = []
    for kind in MESSAGES_OF_SDK:
        [role] = get_args(get_args(_hints(kind)["role"])[0]) or get_args(_hints(kind)["role"])
        found += [(role, name) for name in _hints(kind) if name != "role"]
    return found


def _hints(kind: Any) -> dict[str, Any]:
    from typing_extensions import get_type_hints

    return get_type_hints(kind, include_extras=False)


@pytest.mark.parametrize(("role", "name"), roles_and_fields())
def test_field_of_a_message_of_the_sdk_is_known(role: str, name: str) -> None:
    message = {"role": role, "content": "x"} | ({"name": "f"} if role == "function" else {})
    message |= {"tool_call_id": "c"} if role == "tool" else {}
    body = BASES[True] | {"messages": [message | {name: IN_MESSAGES[name]}]}

    found = live(body, is_chat=True)

    assert found == in_line(body, is_chat=True)
    assert "not known" not in found.message
    assert (found.request is None) == (name in REFUSED_IN_MESSAGES), found.message


@pytest.mark.parametrize("kind", PARTS_OF_SDK)
def test_part_of_a_message_of_the_sdk_is_text_or_refused_by_its_type(kind: Any) -> None:
    hints = _hints(kind)
    [tag] = get_args(hints["type"])
    part = {name: IN_PARTS[name] for name in hints if name != "type"} | {"type": tag}
    body = BASES[True] | {"messages": [{"role": "user", "content": [part]}]}

    found = live(body, is_chat=True)

    assert found == in_line(body, is_chat=True)
    if tag == "text":
        assert found.request is not None, found.message
    else:
        assert found.message == f'messages[0].content[0].type is "{tag}"; only parts of type "text" are supported'


plain_values = st.none() | st.booleans() | st.integers(-3, 300) | st.floats(-2, 3) | st.sampled_from(["", "x", "none"])
values = st.recursive(
    plain_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["7", "type", "a"]), inner, max_size=2),
    max_leaves=4,
)


def fitting(is_chat: bool, uses: set[Use]) -> st.SearchStrategy[dict[str, Any]]:
    """Bodies of known fields: values that ask for something, that ask for nothing, and any."""
    fields = [field for field in BY_NAME[is_chat].values() if field.use in uses and field.name not in BASES[is_chat]]
    one = st.sampled_from(fields).flatmap(
        lambda field: st.tuples(
            st.just(field.name),
            st.just(asking(field, is_chat=is_chat)) | st.sampled_from((None, *field.nothing)) | values,
        )
    )
    return st.lists(one, max_size=4).map(lambda pairs: BASES[is_chat] | dict(pairs))


@given(st.booleans().flatmap(lambda is_chat: st.tuples(st.just(is_chat), fitting(is_chat, set(Use)))))
@settings(deadline=None, max_examples=200)
def test_body_means_the_same_live_and_in_a_line(drawn: tuple[bool, dict[str, Any]]) -> None:
    is_chat, body = drawn
    assert live(body, is_chat=is_chat) == in_line(body, is_chat=is_chat)


@given(st.booleans().flatmap(lambda is_chat: st.tuples(st.just(is_chat), fitting(is_chat, {Use.HONOURED}))))
@settings(deadline=None, max_examples=200)
def test_body_means_the_same_as_a_row_that_opts_in(drawn: tuple[bool, dict[str, Any]]) -> None:
    is_chat, body = drawn
    body = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    found, row = live(body, is_chat=is_chat), in_row(body)
    assert (found.request, found.param) == (row.request, row.param)


def test_row_has_the_users_own_columns_unless_it_opts_in() -> None:
    row = {"prompt": "x", "model": "m", "top_k": "the user's", "n": 3, "guided_json": {}}

    own = parse(row, prefix="")
    opted = parse(row | {"top_k": 7}, fields=("top_k",), prefix="")

    assert own.request is not None
    assert own.request.params == SamplingParams()
    assert opted.request is not None
    assert opted.request.params == SamplingParams(top_k=7)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("topk", "--fields topk: there is no such field; did you mean top_k? rows can have "),
        ("colour", "--fields colour: there is no such field; rows can have "),
        ("functions", "--fields functions: rows can't have that field; they can have "),
        ("stream", "--fields stream: rows can't have that field; they can have "),
    ],
)
def test_field_that_rows_can_not_have_is_refused_with_those_they_can(name: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse({}, fields=(name,), prefix="")
    assert str(caught.value).startswith(message)
    assert "top_k, min_p" in str(caught.value)


def test_field_of_the_other_request_is_refused_in_a_row() -> None:
    text = parse({"prompt": "x", "model": "m", "continue_final_message": True}, fields=OPTIONAL_ROW_FIELDS, prefix="")
    chat = parse(BASES[True] | {"best_of": 2}, fields=OPTIONAL_ROW_FIELDS, prefix="")

    assert text.param == "continue_final_message"
    assert chat.param == "best_of"


def test_row_may_name_the_usual_parameters_as_fields() -> None:
    found = parse({"prompt": "x", "model": "m", "seed": 5}, fields=PARAM_FIELDS, prefix="")

    assert found.request is not None
    assert found.request.params == SamplingParams(seed=5)


def test_defaults_of_the_job_stay_where_a_row_says_something_else() -> None:
    changes: list[dict[str, Any]] = [{}, {"seed": 1}, {"min_p": 0.1}]
    defaults = SamplingParams(top_k=5, min_p=0.5, repetition_penalty=1.5)
    of_job = RowParser(params=defaults, default_model="m", fields=("min_p",))
    lines: list[bytes | None] = [json.dumps({"prompt": "x"} | more).encode() for more in changes]

    rows = of_job.parse(LineBatch(Origin("f", ":", range(1, 4)), lines), numbers=count()).rows

    expected = [defaults, replace(defaults, seed=1), replace(defaults, min_p=0.1)]
    assert [row.request.params for row in rows] == expected


@pytest.mark.parametrize("is_chat", [False, True])
def test_schema_has_every_field_of_the_table_and_no_other(is_chat: bool) -> None:
    assert set(body_schema(is_chat)["properties"]) == set(BY_NAME[is_chat])
    assert len({field.name for field in FIELDS}) > 150


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[("7", 1.5)], None], pa.map_(pa.string(), pa.float64())),
        pa.array([[(7, 1.5)], None], pa.map_(pa.int32(), pa.float64())),
        pa.array([{"7": 1.5, "8": None}, None], pa.struct([("7", pa.float64()), ("8", pa.float64())])),
        pa.array(['{"7": 1.5}', None]),
    ],
)
def test_object_of_a_table_is_read_however_the_table_has_it(column: pa.Array) -> None:
    rows = of_table({"logit_bias": column}, num_rows=2)

    assert [row.request.params.logit_bias for row in rows] == [((7, 1.5),), ()]


def test_columns_of_a_table_that_opt_in_are_parameters() -> None:
    columns = {
        "top_k": pa.array([5.0, None]),
        "min_p": pa.array([Decimal("0.25"), Decimal("0.00")]),
        "stop_token_ids": pa.array(["[7, 8]", None]),
        "bad_words": pa.array([["a"], []]),
        "ignore_eos": pa.array([True, None]),
    }

    rows = of_table(columns, num_rows=2)

    first = SamplingParams(top_k=5, min_p=0.25, stop_token_ids=(7, 8), bad_words=("a",), ignore_eos=True)
    assert [row.request.params for row in rows] == [first, SamplingParams()]
    assert [row.error for row in rows] == [None, None]


def test_text_that_is_no_array_is_refused_as_it_is() -> None:
    [row] = of_table({"stop_token_ids": pa.array(["7, 8"])}, num_rows=1)

    assert row.error is not None
    assert row.error.message == 'f:1: stop_token_ids is "7, 8"; use an array of at most 1024 token ids'


def of_table(columns: dict[str, pa.Array], *, num_rows: int) -> list[ShardRow]:
    table = pa.table({"prompt": pa.array(["x"] * num_rows), "model": pa.array(["m"] * num_rows), **columns})
    batch = parser(OPTIONAL_ROW_FIELDS).parse(
        TableBatch(Origin("f", ":", range(1, num_rows + 1)), table), numbers=count()
    )
    assert isinstance(batch.carried, pa.Table)
    assert batch.carried.num_columns == 0
    return batch.rows
