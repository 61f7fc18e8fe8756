"""Shard files: what is written is what is read, in the types of the manifest."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batcher.arrow.values import json_text
from batcher.errors import CorruptFileError
from batcher.jobdir import local_store, sealed
from batcher.jobdir.shards import REQUEST_FIELDS, Shard, ShardRow, conform, read_request_facts, read_shard, write_shard
from batcher.types import (
    Constraint,
    ConstraintKind,
    ErrorCode,
    Reasoning,
    Request,
    RequestFacts,
    RowError,
    SamplingParams,
    Tools,
)

NO_COLUMNS = pa.table({"": pa.nulls(1)}).select([])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PARAMS: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 2**31 - 1),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0, 1, exclude_min=True),
    "stop": st.lists(texts, max_size=3).map(tuple),
    "seed": st.none() | st.integers(-(2**63), 2**63 - 1),
    "n": st.integers(1, 128),
    "best_of": st.none() | st.integers(1, 128),
    "echo": st.booleans(),
    "logprobs": st.none() | st.integers(0, 20),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "logit_bias": st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-100, 100)), max_size=3).map(tuple),
    "suffix": texts,
    "clips_max_tokens": st.booleans(),
    "top_k": st.integers(0, 2**31 - 1),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0, 2, exclude_min=True),
    "min_tokens": st.integers(0, 2**31 - 1),
    "ignore_eos": st.booleans(),
    "stop_token_ids": st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple),
    "include_stop_str_in_output": st.booleans(),
    "bad_words": st.lists(texts, max_size=3).map(tuple),
    "add_generation_prompt": st.booleans(),
    "continue_final_message": st.booleans(),
    "chat_template_kwargs": texts,
    "constraint": st.none() | st.builds(Constraint, st.sampled_from(ConstraintKind), texts),
    "reasoning": st.sampled_from([each.value for each in Reasoning]),
    "tools": st.none()
    | st.builds(Tools, texts, is_required=st.booleans())
    | st.builds(Tools, texts, is_required=st.just(True), name=st.from_regex(r"[a-z_.:/-]{1,9}", fullmatch=True)),
}
requests = st.builds(
    Request,
    row=st.integers(0, 2**62),
    custom_id=texts,
    model=texts,
    prompts=st.lists(texts, max_size=3).map(tuple),
    is_array=st.booleans(),
    params=st.builds(SamplingParams, **PARAMS),
    is_chat=st.booleans(),
    is_token_ids=st.booleans(),
)
errors = st.none() | st.builds(RowError, st.sampled_from(ErrorCode), texts, st.none() | texts)


@given(rows=st.lists(st.builds(ShardRow, requests, errors), min_size=1, max_size=5).map(tuple), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
def test_shard_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: tuple[ShardRow, ...], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("job") / "00000.parquet"
    values = data.draw(st.lists(texts | st.none(), min_size=len(rows), max_size=len(rows)))
    carried = pa.table({"request": pa.array(values, pa.string()), "n": range(len(rows))})

    assert write_shard(path, Shard(rows, carried))
    found = read_shard(path, carried=carried.schema)

    assert found.rows == rows
    assert found.carried.to_pydict() == carried.to_pydict()


def test_every_parameter_is_drawn() -> None:
    assert {field.name for field in fields(SamplingParams)} == set(PARAMS)


def test_shard_of_a_batcher_that_knew_fewer_parameters_is_read_with_their_defaults(tmp_path: Path) -> None:
    # Given a shard file without the last parameters
    path = tmp_path / "00000.parquet"
    write_shard(path, make_shard())
    table = pq.read_table(path)
    request = table["request"].combine_chunks()
    unknown = ("top_k", "bad_words", "add_generation_prompt", "error_param", "is_token_ids")
    names = [field.name for field in request.type if field.name not in unknown]
    older = pa.StructArray.from_arrays(
        [request.field(name) for name in names], fields=[request.type.field(name) for name in names]
    )
    path.unlink()
    local_store.create_if_absent(path, sealed.seal(pa.table({"request": older})))

    # Then
    assert read_shard(path, carried=pa.schema([])).rows == make_shard().rows
    assert read_request_facts(path) == {0: RequestFacts()}


def test_shard_without_rows_is_read_as_such(tmp_path: Path) -> None:
    write_shard(tmp_path / "00000.parquet", Shard((), NO_COLUMNS.slice(0, 0)))
    assert read_shard(tmp_path / "00000.parquet", carried=pa.schema([])).rows == ()


def make_shard(carried: pa.Table = NO_COLUMNS) -> Shard:
    request = Request(0, "a", "m", ("p",), False, SamplingParams())
    return Shard((ShardRow(request),) * max(1, carried.num_rows), carried)


def test_facts_of_requests_are_read_by_row(tmp_path: Path) -> None:
    several = ShardRow(Request(1, "a", "m", ("p",), False, SamplingParams(n=3)))
    chat = ShardRow(Request(3, "b", "m", ("[]",), False, SamplingParams(), is_chat=True))
    refused = Request(4, "c", "m", ("p",), False, SamplingParams())
    error = RowError(ErrorCode.INVALID_REQUEST, "in.jsonl:5: top_p is 7", "top_p")

    write_shard(tmp_path / "00000.parquet", Shard((several, chat, ShardRow(refused, error)), NO_COLUMNS))

    assert read_request_facts(tmp_path / "00000.parquet") == {
        1: RequestFacts(num_choices_each=3),
        3: RequestFacts(is_chat=True),
        4: RequestFacts(is_refused=True, error_param="top_p"),
    }


def test_existing_shard_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "00000.parquet"
    assert write_shard(path, make_shard())
    before = path.read_bytes()
    assert not write_shard(path, make_shard(pa.table({"x": [1]})))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_shard_without_carried_columns_gets_those_of_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "00000.parquet"
    write_shard(path, make_shard())
    schema = pa.schema([("x", pa.timestamp("us")), ("y", pa.list_(pa.string()))])
    assert read_shard(path, carried=schema).carried == pa.table({"x": [None], "y": [None]}, schema=schema)


def test_narrow_columns_are_widened_to_the_manifest(tmp_path: Path) -> None:
    path = tmp_path / "00000.parquet"
    given_table = pa.table({"i": [1, None], "t": [True, None], "l": [[1], None], "gone": [1, 2]})
    write_shard(path, make_shard(given_table))
    schema = pa.schema([("t", pa.string()), ("i", pa.float64()), ("l", pa.list_(pa.float64())), ("new", pa.int64())])
    found = read_shard(path, carried=schema).carried
    assert found.schema == schema
    assert found.to_pydict() == {"t": ["true", None], "i": [1.0, None], "l": [[1.0], None], "new": [None, None]}


@pytest.mark.parametrize("cut", [0, 3, 100, -10])
def test_torn_or_missing_shard_says_what_to_do(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "00000.parquet"
    with pytest.raises(CorruptFileError, match="is gone; submit the input again"):
        read_shard(path, carried=pa.schema([]))
    write_shard(path, make_shard())
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptFileError, match="submit the input again"):
        read_shard(path, carried=pa.schema([]))


def test_flipped_byte_is_found_by_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "00000.parquet"
    request = Request(0, "a", "m", ("needle" * 100,), False, SamplingParams())
    write_shard(path, Shard((ShardRow(request),), NO_COLUMNS))
    data = bytearray(path.read_bytes())
    at = data.index(b"needle")
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError):
        read_shard(path, carried=pa.schema([]))


def test_conform_keeps_the_number_of_rows_without_columns() -> None:
    assert conform(NO_COLUMNS, pa.schema([]), num_rows=1).num_columns == 0


def test_json_text_leaves_strings_and_null_alone() -> None:
    assert [json_text(v) for v in ("a", None, 1, True, {"é": [1.5]})] == ["a", None, "1", "true", '{"é": [1.5]}']


def test_columns_are_those_of_shards_that_were_written_before() -> None:
    """They follow from the types of the parameters: whoever changes one of those is told here."""
    folder = Path(__file__).parents[2] / "data" / "job_e075c6b" / "jobs"
    paths = sorted(folder.glob("*/shards/*.parquet"))
    assert paths

    for path in paths:
        written = sealed.read_table(path).schema.field("request").type
        columns = [written.field(i) for i in range(written.num_fields)]

        assert columns == [field for field in REQUEST_FIELDS if field.name in {column.name for column in columns}]
