"""Rows of tables and plain lines that are chats: by their messages, or because the job makes chats of prompts."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.submission.planner import submit
from batcher.submission.source import fingerprint
from batcher.types import DEFAULT_CHAT_MAX_TOKENS, SamplingParams
from tests.support.parsing import batch_line, message, parse_line, parse_lines, parse_table
from tests.support.submitted import carried_rows, make_options, rows_of, write_lines
from tests.unit.conftest import Run

USER = {"role": "user", "content": "Who?"}
SYSTEM = {"role": "system", "content": "Be brief."}
MESSAGES_TYPE = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def chat_of(row: Any) -> list[dict[str, str]]:
    """The messages of a row that is a good chat."""
    assert row.error is None, row.error
    assert row.request.is_chat
    (prompt,) = row.request.prompts
    messages: list[dict[str, str]] = json.loads(prompt)
    return messages


# -- messages ---------------------------------------------------------------------------------------------------------


def test_row_with_messages_is_the_chat_of_a_batch_line_with_the_same_body() -> None:
    messages = [{"role": "developer", "content": [{"type": "text", "text": "a"}]}, USER | {"name": "Ann"}]
    body = {"messages": messages, "max_tokens": 9, "temperature": 0, "stop": "x", "seed": 3}

    plain, line = parse_lines(body | {"custom_id": "a"}, batch_line(body, url="/v1/chat/completions")).rows

    assert plain.error is None
    assert plain.request.prompts == line.request.prompts
    assert plain.request.params == line.request.params
    assert (plain.request.is_chat, plain.request.is_array, plain.request.custom_id) == (True, False, "a")


def test_chat_of_a_row_has_the_defaults_of_chats() -> None:
    lines: list[dict[str, Any]] = [{"messages": [USER]}, {"prompt": "p"}, {"messages": [USER], "max_tokens": 3}]
    chat, completion, short = (row.request.params for row in parse_lines(*lines, *lines).rows[:3])

    assert (chat.max_tokens, chat.clips_max_tokens) == (DEFAULT_CHAT_MAX_TOKENS, True)
    assert completion == SamplingParams()
    assert (short.max_tokens, short.clips_max_tokens) == (3, False)
    # As `--max-tokens 7` has it.
    asked = parse_lines(*lines, params=SamplingParams(max_tokens=7), chat_max_tokens=7).rows
    assert [(row.request.params.max_tokens, row.request.params.clips_max_tokens) for row in asked] == [
        *((7, False), (7, False), (3, False)),
    ]


def test_parameters_of_a_completion_and_of_a_chat_are_not_mixed_up() -> None:
    lines: list[dict[str, Any]] = [{"prompt": "p", "temperature": 0}, {"messages": [USER], "temperature": 0}]
    for rows in (parse_lines(*lines).rows, reversed(parse_lines(*reversed(lines)).rows)):
        assert [row.request.params.max_tokens for row in rows] == [16, DEFAULT_CHAT_MAX_TOKENS]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([[USER], [SYSTEM, USER]], MESSAGES_TYPE),
        pa.array([[USER], [SYSTEM, USER]], pa.large_list(MESSAGES_TYPE.value_type)),
        pa.array(
            [[USER], [SYSTEM, USER]],
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.null())])),
        ),
        pa.array([[list(USER.items())], [list(SYSTEM.items()), list(USER.items())]], pa.list_(pa.map_("str", "str"))),
        pa.array([json.dumps([USER]), json.dumps([SYSTEM, USER])]),
    ],
    ids=["list of structs", "large list", "with null fields", "list of maps", "JSON text"],
)
def test_column_of_messages_makes_chats_however_it_was_written(column: pa.Array) -> None:
    batch = parse_table({"messages": column, "topic": ["a", "b"]})

    assert [chat_of(row) for row in batch.rows] == [[USER], [SYSTEM, USER]]
    assert isinstance(batch.carried, pa.Table)
    assert batch.carried.column_names == ["topic"]


def test_messages_of_a_line_may_be_their_json_text() -> None:
    assert chat_of(parse_line({"messages": json.dumps([USER])})) == [USER]
    assert message(parse_line({"messages": "hello"})).startswith(
        'in.jsonl:1: messages is "hello", which is text and not JSON ('
    )


def test_prompt_goes_before_messages_which_are_then_a_column_of_the_users() -> None:
    with_both = {"prompt": "p", "messages": [USER]}
    lines = parse_lines(with_both, {"prompt": None, "messages": [USER]}, {"messages": None, "prompt": "q"})
    table = parse_table({"prompt": ["p", None], "messages": pa.array([[USER], [USER]], MESSAGES_TYPE)})

    assert [row.request.is_chat for row in lines.rows] == [False, True, False]
    assert lines.carried == [{"messages": [USER]}, {}, {"messages": None}]
    assert [row.request.is_chat for row in table.rows] == [False, True]
    assert isinstance(table.carried, pa.Table)
    assert table.carried["messages"].to_pylist() == [[USER], [USER]]


def test_messages_are_a_column_of_the_users_where_the_prompt_comes_from_elsewhere() -> None:
    line = {"q": "p", "messages": [USER]}

    for options in ({"prompt_column": "q"}, {"template": "{q}"}):
        batch = parse_lines(line, **options)
        assert not batch.rows[0].request.is_chat
        assert batch.rows[0].request.prompts == ("p",)


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "messages is null; use an array of 1 to 2048 objects with role and content"),
        ([], "messages is []; use an array of 1 to 2048 objects with role and content"),
        (5, "messages is 5; use an array of 1 to 2048 objects with role and content"),
        ([{"role": "boss", "content": "x"}], 'messages[0].role is "boss"; use "system"'),
        ([USER, {"role": "user"}], "messages[1].content is missing; use a string"),
        ([USER | {"mood": "bad"}], "messages[0].mood is not known here; remove it"),
    ],
)
def test_bad_messages_are_refused_as_in_a_batch_line(messages: Any, problem: str) -> None:
    row = parse_line({"messages": messages, "custom_id": "a"})
    in_body = message(parse_line(batch_line({"messages": messages}, url="/v1/chat/completions")))

    assert message(row).startswith(f"in.jsonl:1: {problem}")
    assert in_body.replace(" body.", " ") == message(row)
    assert (row.request.custom_id, row.request.is_chat) == ("a", True)
    assert row.request.prompts == ((json.dumps(messages, separators=(",", ":")),) if isinstance(messages, list) else ())


# -- chats of prompts -------------------------------------------------------------------------------------------------


def test_chat_makes_the_prompt_the_message_of_the_user() -> None:
    for options, line in (
        ({}, {"prompt": "Who?", "n": 1}),
        ({"prompt_column": "q"}, {"q": "Who?", "n": 1}),
        ({"template": "{word}?"}, {"word": "Who", "n": 1}),
    ):
        for batch in (
            parse_lines(line, chat=True, **options),
            parse_table({name: [value] for name, value in line.items()}, chat=True, **options),
        ):
            assert chat_of(batch.rows[0]) == [USER]
            assert batch.rows[0].request.params.max_tokens == DEFAULT_CHAT_MAX_TOKENS
            names = batch.carried.column_names if isinstance(batch.carried, pa.Table) else list(batch.carried[0])
            assert names == [name for name in line if name not in ("prompt", "q")]


def test_system_message_goes_before_chats_that_have_none() -> None:
    own = [{"role": "developer", "content": "Rhyme."}, USER]
    lines = parse_lines({"prompt": "Who?"}, {"messages": [USER]}, {"messages": own}, chat=True, system="Be brief.")

    assert [chat_of(row) for row in lines.rows] == [
        *([SYSTEM, USER], [SYSTEM, USER], [{"role": "system", "content": "Rhyme."}, USER]),
    ]
    # With messages alone nothing else is needed.
    assert chat_of(parse_line({"messages": [USER]}, system="Be brief.")) == [SYSTEM, USER]
    assert chat_of(parse_line({"messages": [USER]}, system="")) == [{"role": "system", "content": ""}, USER]


def test_column_of_any_name_may_hold_messages_of_chats() -> None:
    batch = parse_table(
        {"talk": pa.array([[USER], [{"role": "boss", "content": "x"}]], MESSAGES_TYPE)}, prompt_column="talk", chat=True
    )

    assert chat_of(batch.rows[0]) == [USER]
    assert message(batch.rows[1]).startswith('in.parquet: row 2: talk: messages[0].role is "boss"; ')


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        (["a", "b"], 'prompt is ["a", "b"]; a chat has one: use a string, and a row for each'),
        (5, "prompt is 5; use a string, or an array of messages"),
        ([], "prompt is []; use a string, or an array of messages"),
        (None, "prompt is null; use a string, or an array of messages"),
    ],
)
def test_prompt_that_makes_no_chat_is_refused(prompt: Any, problem: str) -> None:
    assert message(parse_line({"prompt": prompt}, chat=True)) == f"in.jsonl:1: {problem}"
    assert message(parse_line({"text": "p"}, chat=True)) == (
        "in.jsonl:1: prompt is missing; use a string, or say with --prompt-column or --template where it comes from"
    )


def test_messages_in_the_place_of_a_prompt_are_told_of_chat() -> None:
    told = message(parse_line({"prompt": [{"role": "user", "content": "hi"}]}))
    assert told.endswith("of token ids; with --chat an array of messages is a chat")


def test_system_message_that_a_row_can_not_take_is_not_dropped() -> None:
    rows = parse_lines({"prompt": "p"}, batch_line({"prompt": "p"}), system="Be brief.").rows
    table = parse_table({"prompt": ["p"]}, system="Be brief.").rows

    assert message(rows[0]) == (
        "in.jsonl:1: the prompt is a completion, to which --system can't be added; "
        "give --chat too, which makes it a chat"
    )
    assert message(table[0]).endswith(message(rows[0]).partition(": ")[2])
    assert "the row is a batch line, to which --system can't be added" in message(rows[1])
    for options in ({"prompt_column": "q"}, {"template": "{q}"}):
        with pytest.raises(InputError, match="--system is for chats, and these prompts are completions; give --chat"):
            parse_lines({"q": "p"}, system="Be brief.", **options)


@given(st.text(), st.text())
def test_any_text_comes_through_as_it_is(prompt: str, system: str) -> None:
    expected = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    line = json.dumps({"prompt": prompt}).encode()

    row = parse_lines(line, chat=True, system=system).rows[0]

    assert chat_of(row) == expected


# -- jobs -------------------------------------------------------------------------------------------------------------


def test_parquet_of_messages_becomes_a_job_with_its_other_columns(tmp_path: Path) -> None:
    table = pa.table({"messages": pa.array([[USER]] * 3, MESSAGES_TYPE), "topic": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "chats.parquet")
    job = JobDir(tmp_path / "job")

    submit(job, [str(tmp_path / "chats.parquet")], make_options(system="Be brief."))

    assert [chat_of(row) for row in rows_of(job)] == [[SYSTEM, USER]] * 3
    assert carried_rows(job).to_pydict() == {"topic": ["a", "b", "c"]}


def test_fingerprint_tells_chats_from_completions_and_is_else_what_it_was(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "p"})
    plain = make_options()
    kinds = [plain, make_options(chat=True), make_options(chat=True, system="x"), make_options(system="")]

    assert len({fingerprint([path], options) for options in kinds}) == len(kinds)
    # Made by the version before chats from plain rows.
    assert fingerprint([path], plain).partition("-")[2] == "7cc3bc7bb563e4e86537b3c8d0d1a362"


def test_commands_take_the_system_message_from_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "system.txt").write_text("Be brief.\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "Who?"}\n')

    code, out, _ = run("validate p.jsonl --model qwen --chat --system @system.txt --json")

    assert code == 0
    assert json.loads(out)["num_prompt_chars"] == len(json.dumps([SYSTEM, USER], separators=(",", ":")))
    code, _, err = run("validate p.jsonl --model qwen --chat --system @gone.txt")
    assert code == 2
    assert "--system @gone.txt: cannot read the file" in err
