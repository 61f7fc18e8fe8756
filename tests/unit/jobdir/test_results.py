"""Result tables: the fixed schema, counts in footers, files that are whole or refused, joins without doubles."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.errors import CorruptFileError, StorageError
from batcher.jobdir.results import (
    RESULT_FIELDS,
    Counts,
    build_table,
    join_tables,
    read_counts,
    read_file,
    result_schema,
    write_file,
)
from batcher.jobdir.sealed import MissingFileError, seal
from batcher.types import Completion, ErrorCode, SamplingParams, TokenLogprob
from tests.support.job_files import CARRIED, CREATED, carried_of, failed, make_request, ok, result_table

SCHEMA = result_schema(CARRIED)


def test_schema_is_the_documented_one() -> None:
    documented = (
        "row custom_id index status id object created model prompt text finish_reason logprobs prompt_tokens "
        "completion_tokens total_tokens cached_tokens error_code error_message attempts latency_ms worker"
    )

    assert RESULT_FIELDS.names == documented.split()
    assert str(RESULT_FIELDS.field("row").type) == "int64"
    assert str(RESULT_FIELDS.field("created").type) == "timestamp[s, tz=UTC]"
    assert {str(RESULT_FIELDS.field(name).type) for name in ("index", "cached_tokens", "attempts")} == {"int32"}
    assert SCHEMA.names[-2:] == ["topic", "tags"]


def test_request_has_a_row_for_each_choice(tmp_path: Path) -> None:
    table = build_table([ok(7, num_choices=2)], carried=carried_of([7]), attempt=3, worker="w9")

    assert table.schema == SCHEMA
    first, second = table.to_pylist()
    assert (first["row"], first["index"], first["prompt"], first["text"]) == (7, 0, "prompt 7.0", "text 7.0")
    assert (second["row"], second["index"], second["prompt"], second["text"]) == (7, 1, "prompt 7.1", "text 7.1")
    assert first["topic"] == second["topic"] == "topic-7"
    assert (first["status"], first["object"], first["id"]) == ("ok", "text_completion", "cmpl-7")
    assert (first["prompt_tokens"], first["completion_tokens"], first["total_tokens"]) == (5, 3, 8)
    assert (first["attempts"], first["worker"], first["latency_ms"]) == (3, "w9", 12.5)
    assert first["created"].timestamp() == CREATED


def test_choices_beyond_the_first_of_a_prompt_have_its_prompt() -> None:
    request = make_request(7, "prompt 7.0", "prompt 7.1", params=SamplingParams(n=2))
    rows = result_table([replace(ok(7, num_choices=4), request=request)]).to_pylist()

    assert [row["prompt"] for row in rows] == ["prompt 7.0", "prompt 7.0", "prompt 7.1", "prompt 7.1"]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]


def test_chat_is_told_by_its_object_and_has_its_messages_as_the_prompt() -> None:
    messages = '[{"role":"user","content":"hi"}]'
    chat = replace(make_request(1), prompts=(messages,), is_chat=True)
    (row,) = result_table([replace(ok(1), request=chat, id="chatcmpl-1")]).to_pylist()

    assert (row["object"], row["id"], row["prompt"]) == ("chat.completion", "chatcmpl-1", messages)


@pytest.mark.parametrize(
    ("is_chat", "documented"),
    [
        (
            False,
            {
                "tokens": ["é"],
                "token_logprobs": [-0.5],
                "top_logprobs": [{"a": -0.25, "é": -0.5}],
                "text_offset": [0],
            },
        ),
        (
            True,
            {
                "content": [
                    {
                        "token": "é",
                        "logprob": -0.5,
                        "bytes": [195, 169],
                        "top_logprobs": [{"token": "a", "logprob": -0.25, "bytes": [97]}],
                    }
                ],
                "refusal": None,
            },
        ),
    ],
)
def test_logprobs_are_the_documented_object_as_json(is_chat: bool, documented: dict[str, Any]) -> None:
    completion = ok(1)
    logprobs = (TokenLogprob("é".encode(), -0.5, ((b"a", -0.25),)),)
    choice = replace(completion.choices[0], logprobs=logprobs)
    request = replace(completion.request, is_chat=is_chat)
    (row,) = result_table([replace(completion, request=request, choices=(choice,))]).to_pylist()

    assert json.loads(row["logprobs"]) == documented
    assert result_table([ok(1)])["logprobs"].to_pylist() == [None]


def test_failed_request_has_one_row_with_its_reason() -> None:
    (row,) = result_table([failed(4, ErrorCode.TIMEOUT)]).to_pylist()

    assert (row["index"], row["status"], row["error_code"]) == (0, "error", "timeout")
    assert row["error_message"] == "row 4: timeout"
    assert row["prompt"] == "prompt 4.0"
    assert [row[name] for name in ("id", "text", "finish_reason", "prompt_tokens", "latency_ms")] == [None] * 5
    assert row["topic"] == "topic-4"


def test_table_without_rows_or_carried_columns_keeps_the_schema() -> None:
    nothing = pa.schema([])
    empty = build_table([], carried=carried_of([], nothing), attempt=1, worker="w")
    plain = build_table([ok(0)], carried=carried_of([0], nothing), attempt=1, worker="w")

    assert empty.schema == plain.schema == RESULT_FIELDS
    assert (empty.num_rows, plain.num_rows) == (0, 1)


def test_all_null_columns_keep_their_type_on_disk(tmp_path: Path) -> None:
    write_file(tmp_path / "errors.parquet", result_table([failed(0)]))
    write_file(tmp_path / "good.parquet", result_table([ok(1)]))

    schemas = [pq.read_schema(tmp_path / name).remove_metadata() for name in ("errors.parquet", "good.parquet")]

    assert schemas[0] == schemas[1]


def test_counts_are_of_requests_and_of_choices() -> None:
    counts = Counts.of(result_table([ok(0), ok(1, num_choices=3, cached=2), failed(2), failed(3)]))

    assert counts == Counts(4, 2, 2, 4, 20, 12, 6, {"length": 4}, {"timeout": 2})
    assert Counts.of(SCHEMA.empty_table()) == Counts()


def test_counts_come_back_from_the_footer(tmp_path: Path) -> None:
    table = result_table([ok(0), failed(1)])
    write_file(tmp_path / "part.parquet", table)

    assert read_counts(tmp_path / "part.parquet") == Counts.of(table)


completions = st.lists(
    st.tuples(st.booleans(), st.integers(1, 3), st.integers(0, 50), st.sampled_from(list(ErrorCode))), max_size=12
)


def build(drawn: list[tuple[bool, int, int, ErrorCode]]) -> list[Completion]:
    return [
        ok(row, num_choices=choices, tokens=tokens) if good else failed(row, code)
        for row, (good, choices, tokens, code) in enumerate(drawn)
    ]


@given(completions, st.integers(0, 12))
def test_counts_of_two_halves_add_up_to_the_whole(drawn: list[tuple[bool, int, int, ErrorCode]], cut: int) -> None:
    rows = build(drawn)

    halves = Counts.of(result_table(rows[:cut])) + Counts.of(result_table(rows[cut:]))

    assert halves == Counts.of(result_table(rows))
    assert halves.num_rows == halves.num_ok + halves.num_errors == len(rows)


@given(completions, st.lists(st.sets(st.integers(0, 11)), max_size=5))
@settings(deadline=None)
def test_join_of_any_chunks_has_each_row_once_in_order_from_the_first_that_has_it(
    drawn: list[tuple[bool, int, int, ErrorCode]], picks: list[set[int]]
) -> None:
    rows = build(drawn)
    chunks = [
        result_table([rows[i] for i in sorted(pick, reverse=True) if i < len(rows)], attempt=number)
        for number, pick in enumerate(picks)
    ]

    joined = join_tables(chunks, SCHEMA)

    expected = [
        (row, index, next(number for number, pick in enumerate(picks) if row in pick))
        for row in sorted({i for pick in picks for i in pick if i < len(rows)})
        for index in range(max(1, len(rows[row].choices)))
    ]
    found = zip(*(joined[name].to_pylist() for name in ("row", "index", "attempts")), strict=True)
    assert list(found) == expected
    assert joined.schema == SCHEMA


def test_join_of_nothing_is_an_empty_table() -> None:
    assert join_tables([], SCHEMA).schema == SCHEMA


def test_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    table = result_table([ok(0, num_choices=2), failed(1)])
    path = tmp_path / "shard=1" / "x=a" / "part.parquet"

    assert write_file(path, table)
    assert not write_file(path, result_table([ok(5)]))

    assert read_file(path) == table
    assert read_file(path).schema == SCHEMA
    assert [found.name for found in path.parent.iterdir()] == ["part.parquet"]


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "gone", "folder"])
def test_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "part.parquet"
    write_file(path, result_table([ok(row, text="some text") for row in range(200)]))
    data = bytearray(path.read_bytes())
    path.unlink()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.touch()
    elif damage == "flipped":
        data[len(data) // 3] ^= 0xFF
        path.write_bytes(data)
    elif damage == "folder":
        path.mkdir()

    with pytest.raises(StorageError, match=r"part\.parquet: cannot read") as raised:
        read_file(path)
    assert isinstance(raised.value, CorruptFileError) is (damage != "folder")
    assert isinstance(raised.value, MissingFileError) is (damage == "gone")
    if damage != "flipped":  # the footer is still whole
        with pytest.raises(type(raised.value)):
            read_counts(path)


@pytest.mark.parametrize("metadata", [None, {b"batcher.counts": b"{"}, {b"batcher.counts": b'{"rows": 1}'}])
def test_file_of_somebody_else_has_no_counts(tmp_path: Path, metadata: dict[bytes, bytes] | None) -> None:
    path = tmp_path / "theirs.parquet"
    path.write_bytes(seal(pa.table({"row": [1]}), metadata))

    with pytest.raises(CorruptFileError, match="not a result file of Batcher"):
        read_counts(path)


def test_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(where: Path, data: bytes) -> None:
        with where.open("wb") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)

    with pytest.raises(
        StorageError, match=r"part\.parquet: cannot write: No space left on device; free some space there"
    ):
        write_file(tmp_path / "part.parquet", result_table([ok(0)]))
    assert list(tmp_path.iterdir()) == []


def test_counts_in_the_footer_are_plain_json(tmp_path: Path) -> None:
    write_file(tmp_path / "part.parquet", result_table([ok(0)]))

    found = json.loads(pq.read_schema(tmp_path / "part.parquet").metadata[b"batcher.counts"])

    assert found["num_rows"] == 1
    assert found["finish_reasons"] == {"length": 1}
