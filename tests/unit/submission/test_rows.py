"""Raw rows become requests or error rows: batch lines, parameters, templates, ids, Parquet columns, broken lines."""

import datetime
import decimal
import json
import math
import uuid
from typing import Any

import pyarrow as pa
import pytest

from batcher.arrow.values import json_values
from batcher.errors import InputError
from batcher.types import ErrorCode, SamplingParams
from tests.support.parsing import batch_line, make_parser, message, parse_line, parse_lines, parse_table


def test_plain_row_takes_the_job_defaults_for_what_it_does_not_say() -> None:
    defaults = SamplingParams(max_tokens=5, temperature=0.5, top_p=0.9, stop=("x",), seed=3)
    rows = parse_lines({"prompt": "p"}, {"prompt": "p", "max_tokens": None, "stop": []}, params=defaults).rows
    assert rows[0].request.params is defaults
    assert rows[1].request.params == SamplingParams(max_tokens=5, temperature=0.5, top_p=0.9, stop=(), seed=3)
    assert [row.request.model for row in rows] == ["m", "m"]
    assert [row.request.custom_id for row in rows] == ["row-0", "row-1"]


def test_row_overrides_every_default() -> None:
    row = parse_line(
        {"prompt": "p", "model": "other", "stream": True, "custom_id": "x"}
        | {"max_tokens": 3.0, "temperature": 1, "top_p": 0.5, "stop": "end", "seed": 7}
    )
    assert row.error is None
    assert row.request.params == SamplingParams(max_tokens=3, temperature=1.0, top_p=0.5, stop=("end",), seed=7)
    assert (row.request.model, row.request.custom_id) == ("other", "x")


def test_rows_that_are_sampled_alike_share_their_parameters_and_others_do_not() -> None:
    lines = [{"prompt": "p", "stop": stop, "seed": seed} for stop, seed in (("a", 1), (["a"], 1), ("b", 1), ("a", 2))]
    params = [row.request.params for row in parse_lines(*lines, *lines).rows]
    assert [(one.stop, one.seed) for one in params[:4]] == [(("a",), 1), (("a",), 1), (("b",), 1), (("a",), 2)]
    assert all(one is other for one, other in zip(params[:4], params[4:], strict=True))
    many = [{"prompt": "p", "seed": seed} for seed in range(3000)]
    assert [row.request.params.seed for row in parse_lines(*many).rows] == list(range(3000))


def test_array_prompt_keeps_its_order_and_remembers_that_it_was_one() -> None:
    rows = parse_lines({"prompt": ["a", "b", "a"]}, {"prompt": ["a"]}, {"prompt": "a"}).rows
    assert [(row.request.prompts, row.request.is_array) for row in rows] == [
        (("a", "b", "a"), True),
        (("a",), True),
        (("a",), False),
    ]


def test_unknown_keys_of_a_plain_row_are_carried_whatever_their_name() -> None:
    batch = parse_lines({"prompt": "p", "n": 3, "echo": True, "a.b": {"c": []}, "": None, "max_tokens": 4})
    assert batch.carried == [{"n": 3, "echo": True, "a.b": {"c": []}, "": None}]
    assert batch.rows[0].error is None


def test_integer_id_becomes_text() -> None:
    assert parse_line({"prompt": "p", "custom_id": 17}).request.custom_id == "17"


def test_prompt_and_id_columns_leave_the_usual_names_to_the_user() -> None:
    batch = parse_lines(
        {"text": "p", "prompt": "mine", "key": "k", "custom_id": None}, prompt_column="text", id_column="key"
    )
    assert (batch.rows[0].request.prompts, batch.rows[0].request.custom_id) == (("p",), "k")
    assert batch.carried == [{"prompt": "mine", "custom_id": None}]


def test_error_names_the_column_that_the_user_chose() -> None:
    assert message(parse_line({"text": 5}, prompt_column="text")).startswith("in.jsonl:1: text is 5; use a string")


# -- batch lines ------------------------------------------------------------------------------------------------------


def test_batch_line_is_a_request_and_carries_nothing() -> None:
    body = {"model": "x", "prompt": ["p", "q"], "max_tokens": 9, "user": "u", "n": 1}
    batch = parse_lines(batch_line(body))
    request = batch.rows[0].request
    assert batch.rows[0].error is None
    assert (request.custom_id, request.model, request.prompts, request.params.max_tokens) == ("a", "x", ("p", "q"), 9)
    assert batch.carried == [{}]


def test_batch_line_may_ask_for_what_a_plain_row_only_carries() -> None:
    given = {"n": 2, "best_of": 3, "logprobs": 1, "presence_penalty": 1, "logit_bias": {"7": -1, "5": 2}, "suffix": "s"}
    plain, line = parse_lines({"prompt": "p", **given}, batch_line({"prompt": "p", **given})).rows
    assert plain.request.params == SamplingParams()
    assert line.request.params == SamplingParams(
        n=2, best_of=3, logprobs=1, presence_penalty=1.0, logit_bias=((5, 2.0), (7, -1.0)), suffix="s"
    )
    assert (line.request.num_sequences, line.request.num_choices) == (3, 2)


def test_chat_line_is_a_request_whose_prompt_is_its_messages() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "é"}]}]
    defaults = SamplingParams(max_tokens=5, temperature=0.0)
    lines = [
        batch_line({"messages": messages, **more}, custom_id=name, url="/v1/chat/completions")
        for name, more in (("a", {}), ("b", {"max_tokens": 7}), ("c", {"max_completion_tokens": 9}))
    ]
    batch = parse_lines(*lines, params=defaults, chat_max_tokens=100)
    first = batch.rows[0].request
    assert (first.is_chat, first.is_array, first.custom_id) == (True, False, "a")
    assert first.prompts == ('[{"role":"user","content":[{"type":"text","text":"é"}]}]',)
    assert [row.request.params.max_tokens for row in batch.rows] == [100, 7, 9]
    assert {row.request.params.temperature for row in batch.rows} == {0.0}
    assert batch.carried == [{}, {}, {}]
    unsaid = [row.request.params for row in parse_lines(*lines, params=defaults).rows]
    assert [(p.max_tokens, p.clips_max_tokens) for p in unsaid] == [(1024, True), (7, False), (9, False)]


def test_refused_chat_line_keeps_its_messages_for_its_user() -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "model": "x", "tools": [{"type": "function"}]}
    row = parse_line(batch_line(body, url="/v1/chat/completions"))
    assert message(row) == "in.jsonl:1: body.tools[0].function is missing; use an object with name and parameters"
    assert (row.request.is_chat, row.request.model) == (True, "x")
    assert row.request.prompts == ('[{"role":"user","content":"x"}]',)


def test_batch_line_names_an_unknown_model_as_a_plain_row_does() -> None:
    row = parse_line(batch_line({"prompt": "p", "model": "gpt-9"}), known_models=frozenset({"a"}))
    assert message(row) == 'in.jsonl:1: model "gpt-9" is not known here; use one of: a'
    assert row.error is not None
    assert row.error.code is ErrorCode.MODEL_NOT_FOUND
    assert "model is" in message(parse_line(batch_line({"prompt": "p", "model": "a b"})))


def test_extra_keys_of_a_batch_line_are_carried() -> None:
    assert parse_lines(batch_line({"prompt": "p"}, note="n")).carried == [{"note": "n"}]


@pytest.mark.parametrize("change", [{"custom_id": None}, {}])
def test_batch_line_without_id_is_refused(change: dict[str, None]) -> None:
    line = batch_line({"prompt": "p"})
    del line["custom_id"]

    row = parse_line(line | change)

    assert message(row) == "in.jsonl:1: custom_id is missing; a batch line needs one, by which its answer is found"
    assert row.error is not None
    assert row.error.param == "custom_id"
    assert row.request.custom_id == "row-0"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (batch_line({"prompt": "p"}, method="GET"), 'method is "GET"; use "POST"'),
        (
            batch_line({"prompt": "p"}, url="/v1/embeddings"),
            'url is "/v1/embeddings"; use "/v1/completions" or "/v1/chat/completions"',
        ),
        (
            batch_line({"messages": []}, url="/v1/chat/completions"),
            "body.messages is []; use an array of 1 to 2048 objects with role and content",
        ),
        (
            batch_line({"prompt": "p"}, url="/v1/chat/completions"),
            "body.messages is missing; use an array of 1 to 2048 objects with role and content",
        ),
        (
            batch_line({"messages": [{"role": "me", "content": "x"}]}, url="/v1/chat/completions"),
            'body.messages[0].role is "me"; use "system", "developer", "user", "assistant", "tool" or "function"',
        ),
        (
            batch_line({"prompt": "p", "max_tokens": 0}),
            "body.max_tokens is 0; use a positive integer, or give echo true as well",
        ),
        (batch_line({}), "body.prompt is missing; use a string, or a non-empty array of strings or of token ids"),
        (
            batch_line({"prompt": [1, "b"]}),
            'body.prompt[1] is "b"; use a string, or a non-empty array of strings or of token ids',
        ),
        (batch_line({"prompt": "p", "n": 129}), "body.n is 129; use an integer from 1 to 128"),
        (batch_line({"prompt": "p", "colour": 2}), "body.colour is not a field of this request; remove it"),
        (
            {"custom_id": "a", "body": {"prompt": "p"}, "url": "/v1/completions"},
            'method is missing; use "POST"',
        ),
        (
            {"custom_id": "a", "body": None, "method": "POST", "url": "/v1/completions"},
            "body is null; use an object that holds the parameters of the request",
        ),
    ],
)
def test_wrong_batch_line_keeps_its_id_and_says_what_is_wrong(line: dict[str, Any], problem: str) -> None:
    batch = parse_lines(line)
    assert message(batch.rows[0]) == f"in.jsonl:1: {problem}"
    assert batch.rows[0].request.custom_id == "a"
    assert batch.carried == [{}]


@pytest.mark.parametrize(
    "line",
    [{"prompt": "p", "body": {"x": 1}}, {"prompt": "p", "body": "text", "url": "u", "method": "m"}],
)
def test_column_called_body_makes_no_batch_line(line: dict[str, Any]) -> None:
    batch = parse_lines(line)
    assert batch.rows[0].error is None
    assert batch.carried == [{key: value for key, value in line.items() if key != "prompt"}]


def test_prompt_can_be_taken_from_a_column_called_body() -> None:
    assert parse_line({"body": "p", "url": "u", "method": "m"}, prompt_column="body").request.prompts == ("p",)


# -- models -----------------------------------------------------------------------------------------------------------


def test_row_without_a_model_and_no_default_is_refused() -> None:
    row = parse_line({"prompt": "p"}, default_model=None)
    assert message(row) == "in.jsonl:1: model is missing; name one in the row, or one for all rows with --model"
    assert row.error is not None
    assert row.error.code is ErrorCode.INVALID_REQUEST


def test_unknown_model_lists_the_known_ones() -> None:
    row = parse_line({"prompt": "p", "model": "gpt-9"}, known_models=frozenset({"b", "a"}))
    assert message(row) == 'in.jsonl:1: model "gpt-9" is not known here; use one of: a, b'
    assert row.error is not None
    assert row.error.code is ErrorCode.MODEL_NOT_FOUND
    assert (row.request.model, row.request.prompts) == ("gpt-9", ("p",))


@pytest.mark.parametrize("name", ["", "a b", "x" * 257, "x\n", "x\u00a0y"])
def test_name_that_can_be_no_models_is_refused(name: str) -> None:
    assert f"in.jsonl:1: model is {json.dumps(name, ensure_ascii=False)[:20]}"[:30] in message(
        parse_line({"prompt": "p", "model": name})
    )


# -- broken lines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"nonsense", "not JSON (expected ident at position 2); write one JSON object on each line"),
        (b'{"prompt": "p"', "not JSON (EOF while parsing an object at position 14)"),
        (b'{"prompt": "p"} x', "not JSON (trailing characters at position 17)"),
        (b'{"prompt": "\xff"}', "not UTF-8 (byte 0xff at position 13); save the file as UTF-8"),
        (
            b'{"prompt": "\\ud83d x"}',
            r"not JSON (\ud83d at position 13 is half of a character; cut texts between whole",
        ),
        (b'["prompt"]', 'not a JSON object but ["prompt"]; write one object on each line'),
        (b"5", "not a JSON object but 5"),
        (b"null", "not a JSON object but null"),
        (b"[" * 100_000, "not JSON (recursion limit exceeded"),
        (b'{"prompt": "p", "x": ' + b"9" * 5000 + b"}", "not JSON (number out of range"),
        (
            b'{"text": "p"}',
            "prompt is missing; use a string, or a non-empty array of strings or of token ids, or say with",
        ),
    ],
)
def test_broken_line_becomes_an_error_row(line: bytes, problem: str) -> None:
    row = parse_line(line)
    assert message(row).startswith(f"in.jsonl:1: {problem}")
    assert (row.request.custom_id, row.request.prompts) == ("row-0", ())


@pytest.mark.parametrize("text", [b"half of an emoji, \\ud83d", b"half, \\ude00", b"Latin-1, \xe9", b"\xf0\x9f\x98"])
@pytest.mark.parametrize(
    "line", [b'{"custom_id": "a", "prompt": "%s"}', b'{"method": "POST", "body": {"prompt": "%s"}, "custom_id": "a"}']
)
def test_line_whose_text_cant_be_read_is_found_by_its_id(line: bytes, text: bytes) -> None:
    assert parse_line(line % text).request.custom_id == "a"


@pytest.mark.parametrize("custom_id", [b'"\\ud83d"', b'"\xe9"', b"{}", b"null", b"9" * 5000, b'{"a":' * 90_000])
def test_id_that_cant_be_read_is_none(custom_id: bytes) -> None:
    row = parse_line(b'{"prompt": "\xff", "custom_id": ' + custom_id + b"}")
    assert "not UTF-8 (byte 0xff" in message(row)
    assert row.request.custom_id == "row-0"


def test_error_row_keeps_what_is_known_of_it() -> None:
    batch = parse_lines(
        {"custom_id": "a", "model": "x", "prompt": ["p", "q"], "max_tokens": 0, "note": 1},
        {"custom_id": "", "model": 5, "prompt": ["p", 1], "note": 2},
    )
    first, second = (row.request for row in batch.rows)
    assert (first.custom_id, first.model, first.prompts, first.is_array) == ("a", "x", ("p", "q"), True)
    assert (second.custom_id, second.model, second.prompts) == ("row-1", "m", ())
    assert batch.carried == [{"note": 1}, {"note": 2}]


def test_line_over_the_bound_becomes_an_error_row() -> None:
    row = parse_lines(None).rows[0]
    assert message(row) == "in.jsonl:1: the line is longer than 32 MB; shorten the prompt"


def test_nul_and_a_megabyte_are_carried_as_they_are() -> None:
    prompt = "a\0b" + "x" * (1 << 20)
    assert parse_line({"prompt": prompt}).request.prompts == (prompt,)


# -- templates --------------------------------------------------------------------------------------------------------


def test_template_makes_the_prompt_and_its_columns_are_carried() -> None:
    batch = parse_lines({"text": "t", "n": 2, "prompt": "mine", "max_tokens": 3}, template="{n}: {text} {{}}")
    assert batch.rows[0].request.prompts == ("2: t {}",)
    assert batch.carried == [{"text": "t", "n": 2, "prompt": "mine"}]


def test_template_may_use_what_the_request_is_made_of() -> None:
    row = parse_line({"key": "k", "max_tokens": 3}, template="{key} {max_tokens}", id_column="key")
    assert (row.request.prompts, row.request.custom_id) == (("k 3",), "k")


@pytest.mark.parametrize(("line", "problem"), [({"text": None}, "text is null"), ({"x": 1}, "text is missing")])
def test_row_that_cannot_fill_the_template_is_refused(line: dict[str, Any], problem: str) -> None:
    assert message(parse_line(line, template="{text}")) == f"in.jsonl:1: {problem}; the template needs a value"


@pytest.mark.parametrize(
    "options",
    [
        {"template": "{a}", "prompt_column": "b"},
        {"prompt_column": "max_tokens"},
        {"id_column": "model"},
        {"id_column": "prompt"},
        {"prompt_column": "x", "id_column": "x"},
        {"prompt_column": "custom_id"},
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        make_parser(**options)


# -- tables -----------------------------------------------------------------------------------------------------------


def test_parameter_columns_work_as_in_lines_and_null_is_the_default() -> None:
    batch = parse_table(
        {
            "prompt": pa.array(["a", "b", "c"], pa.large_string()),
            "max_tokens": pa.array([3.0, None, 0.5]),
            "temperature": pa.array([decimal.Decimal("0.7"), None, None]),
            "stop": pa.array([["x"], None, []]),
            "model": pa.array(["x", None, "x"]).dictionary_encode(),
            "custom_id": pa.array([7, None, 9], pa.int8()),
            "n": [1, 2, 3],
        }
    )
    first, second, third = batch.rows
    assert first.request.params == SamplingParams(max_tokens=3, temperature=0.7, stop=("x",))
    assert (first.request.custom_id, first.request.model) == ("7", "x")
    assert second.request.params == SamplingParams()
    assert (second.request.custom_id, second.request.model) == ("row-1", "m")
    assert message(third) == "in.parquet: row 3: max_tokens is 0.5; use a positive integer"
    assert third.request.custom_id == "9"
    assert isinstance(batch.carried, pa.Table)
    assert batch.carried.to_pydict() == {"n": [1, 2, 3]}


@pytest.mark.parametrize(
    "prompts",
    [
        pa.array([["a"], ["b", "c"]]),
        pa.array([["a"], ["b", "c"]], pa.large_list(pa.large_string())),
        pa.array([["a"], ["b", "c"]], pa.list_view(pa.string())),
    ],
)
def test_prompt_lists_of_any_arrow_kind_are_arrays(prompts: pa.Array) -> None:
    rows = parse_table({"prompt": prompts}).rows
    assert [row.request.prompts for row in rows] == [("a",), ("b", "c")]


def test_null_and_wrong_prompts_of_a_table_are_refused() -> None:
    rows = parse_table({"prompt": pa.array([None, "x"])}).rows
    assert message(rows[0]).startswith("in.parquet: row 1: prompt is null; use a string")
    assert rows[1].error is None
    assert message(parse_table({"prompt": [5]}).rows[0]).startswith("in.parquet: row 1: prompt is 5; use a string")


def test_binary_prompt_is_read_as_text_and_bad_text_is_refused() -> None:
    rows = parse_table({"prompt": pa.array(["é".encode(), b"a\xff", b"ok"])}).rows
    assert [row.request.prompts for row in rows] == [("é",), (), ("ok",)]
    assert message(rows[1]) == "in.parquet: row 2: prompt is not UTF-8 text; write the column as UTF-8"


@pytest.mark.parametrize("values", [["ok", b"a\xff"], [["ok"], [b"a\xff"]]])
def test_bad_text_in_a_carried_column_is_refused_and_left_out(values: list[Any]) -> None:
    strings = pa.string() if isinstance(values[0], str) else pa.list_(pa.string())
    binaries = pa.binary() if isinstance(values[0], str) else pa.list_(pa.binary())
    bad = pa.array(values, binaries).cast(strings, safe=False)
    batch = parse_table({"prompt": ["a", "b"], "note": bad})
    assert batch.rows[0].error is None
    assert message(batch.rows[1]) == "in.parquet: row 2: note is not UTF-8 text; write the column as UTF-8"
    assert isinstance(batch.carried, pa.Table)
    assert batch.carried["note"].to_pylist() == [values[0], None]


def test_odd_values_that_are_no_text_are_carried_as_they_are() -> None:
    times = pa.array([90_000_000], pa.int32()).view(pa.time32("ms"))
    batch = parse_table({"prompt": ["p"], "note": times})
    assert batch.rows[0].error is None
    assert isinstance(batch.carried, pa.Table)
    assert json_values(batch.carried["note"]) == ["25:00:00"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, "no column 'prompt'; it has: text, key; name the prompt's column with --prompt-column"),
        ({"prompt_column": "txt"}, "no column 'txt'; it has: text, key; name the prompt's column with"),
        ({"template": "{text} {label}"}, "no column 'label'; it has: text, key; correct the template"),
        ({"prompt_column": "text", "id_column": "kee"}, "no column 'kee'; it has: text, key; correct --id-column"),
    ],
)
def test_table_without_a_needed_column_lists_what_it_has(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_table({"text": ["a"], "key": ["b"]}, **options)
    assert str(caught.value).startswith(f"in.parquet: {problem}")


def test_template_over_a_table() -> None:
    batch = parse_table({"text": ["a", None], "n": [1, 2]}, template="{n}-{text}")
    assert batch.rows[0].request.prompts == ("1-a",)
    assert message(batch.rows[1]) == "in.parquet: row 2: text is null; the template needs a value"
    assert isinstance(batch.carried, pa.Table)
    assert batch.carried.column_names == ["text", "n"]


# -- ids --------------------------------------------------------------------------------------------------------------

MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5, 500_000)


@pytest.mark.parametrize(
    ("array", "custom_id"),
    [
        (pa.array([1.0]), "1"),
        (pa.array([-0.0]), "0"),
        (pa.array([1.5]), "1.5"),
        (pa.array([0.1], pa.float32()), "0.1"),
        (pa.array([3.0], pa.float16()), "3"),
        (pa.array([1e300]), "1e+300"),
        (pa.array([math.nan]), "row-0"),
        (pa.array([None], pa.float64()), "row-0"),
        (pa.array([None], pa.null()), "row-0"),
        (pa.array([2**64 - 1], pa.uint64()), str(2**64 - 1)),
        (pa.array([decimal.Decimal("12")], pa.decimal128(38, 0)), "12"),
        (pa.array([decimal.Decimal("12.00")], pa.decimal256(50, 2)), "12"),
        (pa.array([decimal.Decimal("12.50")], pa.decimal64(12, 2)), "12.50"),
        (pa.array([MOMENT.date()]), "2026-01-02"),
        (pa.array([MOMENT]), "2026-01-02T03:04:05.5"),
        (pa.array([MOMENT], pa.timestamp("ns", "UTC")), "2026-01-02T03:04:05.5Z"),
        (pa.array([MOMENT.time()]), "03:04:05.5"),
        (pa.array([uuid.UUID(int=7).bytes], pa.uuid()), str(uuid.UUID(int=7))),
        (pa.array([b"key"]), "key"),
        (pa.array([b"key"], pa.binary(3)), "key"),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array(["a"], pa.string_view()), "a"),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
@pytest.mark.parametrize("id_column", [None, "key"])
def test_id_of_any_scalar_type_is_its_text(array: pa.Array, custom_id: str, id_column: str | None) -> None:
    batch = parse_table({"prompt": ["p"], id_column or "custom_id": array}, id_column=id_column)
    assert batch.rows[0].error is None
    assert batch.rows[0].request.custom_id == custom_id


@pytest.mark.parametrize(
    ("array", "shown"),
    [
        (pa.array([True]), "true (bool)"),
        (pa.array([math.inf], pa.float32()), "inf (float)"),
        (pa.array([[1]]), "[1] (list<item: int64>)"),
        (pa.array([{"a": MOMENT}]), '{\\"a\\": \\"2026-01-02T03:04:05.5\\"} (struct<a: timestamp['),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_what_can_be_no_id_is_named_with_its_type(array: pa.Array, shown: str) -> None:
    (row,) = parse_table({"prompt": ["p"], "custom_id": array}).rows
    assert row.error is not None
    assert row.error.message.startswith(f'in.parquet: row 1: custom_id is "{shown}')
    assert row.error.message.endswith("; use a non-empty string or a finite number")


@pytest.mark.parametrize(
    ("value", "custom_id"), [("1.0", "1"), ("1.5", "1.5"), ("NaN", "row-0"), ("1e300", "1e+300"), ("-7e2", "-700")]
)
def test_number_in_a_line_names_the_row_as_in_a_table(value: str, custom_id: str) -> None:
    for rest in ('"prompt": "p"', '"prompt": 5'):
        (row,) = parse_lines(f'{{"custom_id": {value}, {rest}}}'.encode()).rows
        assert row.request.custom_id == custom_id
