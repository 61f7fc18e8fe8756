"""Results in other forms: what each format holds, and what a crash or a running job does to a file."""

import csv
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batcher import constraints
from batcher.errors import CorruptFileError, InputError, JobError, StorageError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import encode_schema
from batcher.jobdir.results import build_table, result_schema, write_file
from batcher.manage import export as export_module
from batcher.manage.export import SUFFIXES, ExportFormat, export
from batcher.manage.finish import finalize
from batcher.manage.finished import finished_tables, json_rows
from batcher.types import ErrorCode, FinishReason, Request, SamplingParams
from tests.support.job_files import (
    CARRIED,
    CREATED,
    answered,
    failed,
    make_job,
    make_request,
    ok,
    result_table,
    write_chunk,
    write_part,
)


@pytest.fixture
def job(job: JobDir) -> JobDir:
    finalize(job)
    return job


def read_lines(path: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def job_with_column(path: Path, name: str, values: pa.Array) -> JobDir:
    """A complete job of one row per value, with that carried column."""
    schema = pa.schema([pa.field(name, values.type)])
    job = make_job(path, (len(values),), carried=pa.schema([]))
    manifest = job.manifest
    job.manifest_path.unlink()
    job = JobDir(path)
    job.create_manifest(replace(manifest, carried_ipc=encode_schema(schema)))
    carried = pa.table({name: values}, schema=schema)
    table = build_table([ok(row) for row in range(len(values))], carried=carried, attempt=1, worker="w")
    write_file(job.part_path(0), table)
    assert finalize(job) is not None
    return job


def test_parquet_holds_all_rows_in_order_with_the_schema_of_the_job(tmp_path: Path, job: JobDir) -> None:
    assert export(job, tmp_path / "out.parquet") == 7

    table = pq.read_table(tmp_path / "out.parquet")
    assert table["row"].to_pylist() == [0, 1, 2, 3, 3, 4, 5]
    assert table["index"].to_pylist() == [0, 0, 0, 0, 1, 0, 0]
    assert table.schema.names == result_schema(CARRIED).names
    assert table["tags"].to_pylist()[4] == ["a", "3"]
    assert table["created"].to_pylist()[0] == datetime.fromtimestamp(CREATED, UTC)


def test_small_parts_are_gathered_into_large_row_groups(
    tmp_path: Path, job: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(job, tmp_path / "one.parquet")
    monkeypatch.setattr(export_module, "ROW_GROUP_BYTES", 1)
    export(job, tmp_path / "three.parquet")

    assert pq.ParquetFile(tmp_path / "one.parquet").num_row_groups == 1
    assert pq.ParquetFile(tmp_path / "three.parquet").num_row_groups == 3
    assert pq.read_table(tmp_path / "one.parquet") == pq.read_table(tmp_path / "three.parquet")


def test_csv_has_a_row_a_choice_with_nested_columns_as_json(tmp_path: Path, job: JobDir) -> None:
    assert export(job, tmp_path / "out.csv") == 7

    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["row"] for row in rows] == ["0", "1", "2", "3", "3", "4", "5"]
    assert json.loads(rows[0]["tags"]) == ["a", "0"]
    assert rows[0]["created"] == "2026-01-01T00:00:00Z"
    assert rows[0]["text"] == "text 0.0"
    assert (rows[1]["text"], rows[1]["error_code"]) == ("", "timeout")


def test_column_of_the_input_with_the_name_of_a_part_of_other_answers_is_no_part_of_these(tmp_path: Path) -> None:
    """Given a job that calls nothing and an input with tool_calls, when it is exported, then it is the input's."""
    job = job_with_column(tmp_path / "job", "tool_calls", pa.array(["none", None]))

    export(job, tmp_path / "out.jsonl")

    first, second = read_lines(tmp_path / "out.jsonl")
    assert (first["tool_calls"], second["tool_calls"]) == ("none", None)
    assert "tool_calls" not in first["choices"][0]


def test_answers_to_a_schema_are_values_of_their_choices(tmp_path: Path) -> None:
    """Given a job with a schema and an answer that was cut off, when it is exported, then each form has the values."""
    params = SamplingParams(
        constraint=constraints.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    )
    job = make_job(tmp_path / "job", (3,), params=params)
    cut = answered(1, '{"a"', params=params, finish_reason=FinishReason.LENGTH)
    write_part(job, 0, [answered(0, '{"a": 1}', params=params), cut, failed(2)])
    assert finalize(job) is not None

    export(job, tmp_path / "out.parquet")
    export(job, tmp_path / "out.csv")
    export(job, tmp_path / "out.jsonl")
    export(job, tmp_path / "openai.jsonl", layout=ExportFormat.OPENAI)

    assert pq.read_table(tmp_path / "out.parquet")["output"].to_pylist() == [{"a": 1}, None, None]
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [row["output"] for row in csv.DictReader(file)] == ['{"a": 1}', "", ""]
    first, second, third = read_lines(tmp_path / "out.jsonl")
    assert [line["choices"][0]["output"] for line in (first, second)] == [{"a": 1}, None]
    assert "output" not in third
    line = read_lines(tmp_path / "openai.jsonl")[0]
    assert line["response"]["body"]["choices"][0] == {
        "text": '{"a": 1}',
        "index": 0,
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_csv_keeps_text_with_quotes_commas_and_newlines(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    text = 'a "quoted", comma\nand a newline — ü'
    write_part(job, 0, [ok(0, text=text)])
    finalize(job)

    export(job, tmp_path / "out.csv")

    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["text"] == f"{text} 0.0"


def test_jsonl_holds_a_response_object_a_request(tmp_path: Path, job: JobDir) -> None:
    assert export(job, tmp_path / "out.jsonl") == 6

    lines = read_lines(tmp_path / "out.jsonl")
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert lines[3] == {
        "row": 3,
        "custom_id": "id-3",
        "status": "ok",
        "id": "cmpl-3",
        "object": "text_completion",
        "created": CREATED,
        "model": "tiny",
        "system_fingerprint": None,
        "choices": [
            {"text": "text 3.0", "index": 0, "logprobs": None, "finish_reason": "length"},
            {"text": "text 3.1", "index": 1, "logprobs": None, "finish_reason": "length"},
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 6,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "topic": "topic-3",
        "tags": ["a", "3"],
    }
    assert lines[1]["status"] == "error"
    assert lines[1]["error"]["code"] == "timeout"
    assert lines[1]["error"]["message"] == "row 1: timeout"
    assert "choices" not in lines[1]
    assert lines[1]["topic"] == "topic-1"


@pytest.mark.parametrize("layout", ExportFormat)
def test_each_line_has_the_fingerprint_of_the_engine_that_computed_it(tmp_path: Path, layout: ExportFormat) -> None:
    # Given a shard whose rows are of two attempts, by different engines, and one of a Batcher that noted none
    job = make_job(tmp_path / "job", (3,))
    assert job.claim_attempt(0, worker="w1", system_fingerprint="fp_1") == 1
    assert job.claim_attempt(0, worker="w2", system_fingerprint="fp_2") == 2
    assert job.claim_attempt(0, worker="w3") == 3
    for attempt in (1, 2, 3):
        write_chunk(job, 0, [ok(attempt - 1, num_choices=attempt)], attempt=attempt)

    export(job, tmp_path / "out.jsonl", layout=layout, partial=True)

    lines = read_lines(tmp_path / "out.jsonl")
    bodies = [line["response"]["body"] if layout is ExportFormat.OPENAI else line for line in lines]
    assert [body["system_fingerprint"] for body in bodies] == ["fp_1", "fp_2", None]


def test_openai_lines_are_those_of_a_batch_output_file(tmp_path: Path, job: JobDir) -> None:
    assert export(job, tmp_path / "out.jsonl", layout=ExportFormat.OPENAI) == 6

    lines = read_lines(tmp_path / "out.jsonl")
    assert all(set(line) == {"id", "custom_id", "response", "error"} for line in lines)
    assert [line["custom_id"] for line in lines] == [f"id-{row}" for row in range(6)]
    body = lines[3]["response"]["body"]
    assert lines[3]["response"]["status_code"] == 200
    assert (body["created"], len(body["choices"])) == (CREATED, 2)
    assert lines[1]["response"] is None
    assert lines[1]["error"]["code"] == "timeout"
    assert lines[4]["response"]["status_code"] == 400


def job_of(path: Path, *requests: Request) -> JobDir:
    """A complete job of one shard; each choice took 5 prompt tokens and 3 more."""
    job = make_job(path, [requests])
    done = [
        replace(ok(request.row, num_choices=request.num_choices), request=request, id=f"chatcmpl-{request.row}")
        for request in requests
    ]
    assert write_file(job.part_path(0), result_table(done))
    assert finalize(job) is not None
    return job


def test_usage_counts_each_prompt_once_and_every_choice(tmp_path: Path) -> None:
    n2 = SamplingParams(n=2)
    rows = (
        make_request(0, "p", params=n2),
        make_request(1, "same", "same"),
        make_request(2, "p", "q", params=n2),
        make_request(3, "same", "same", params=n2),
    )
    job = job_of(tmp_path / "job", *rows)

    export(job, tmp_path / "out.jsonl")

    usages = [line["usage"] for line in read_lines(tmp_path / "out.jsonl")]
    assert [usage["prompt_tokens"] for usage in usages] == [5, 10, 10, 10]
    assert [usage["completion_tokens"] for usage in usages] == [6, 6, 12, 12]
    assert [usage["total_tokens"] for usage in usages] == [11, 16, 22, 22]


@pytest.mark.parametrize("layout", ExportFormat)
def test_chat_is_a_chat_completion_object(tmp_path: Path, layout: ExportFormat) -> None:
    chat = replace(make_request(0, '[{"role":"user","content":"hi"}]'), is_chat=True)
    job = job_of(tmp_path / "job", chat)

    export(job, tmp_path / "out.jsonl", layout=layout)

    (line,) = read_lines(tmp_path / "out.jsonl")
    body = line["response"]["body"] if layout is ExportFormat.OPENAI else line
    assert (body["id"], body["object"]) == ("chatcmpl-0", "chat.completion")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "text 0.0", "refusal": None},
            "logprobs": None,
            "finish_reason": "length",
        }
    ]
    if layout is ExportFormat.OPENAI:
        digits = job.manifest.response_digits(0)
        assert (line["id"], line["response"]["request_id"]) == (f"batch_req_{digits}", f"req_{digits}")


@pytest.mark.parametrize("name", ["choices", "usage", "error", "input_choices"])
def test_carried_column_never_hides_a_field_of_the_response(tmp_path: Path, name: str) -> None:
    job = job_with_column(tmp_path / "job", name, pa.array(["mine"]))

    export(job, tmp_path / "out.jsonl")

    line = read_lines(tmp_path / "out.jsonl")[0]
    assert line["choices"][0]["text"] == "text 0.0"
    assert line[name if name == "input_choices" else f"input_{name}"] == "mine"


@pytest.mark.parametrize(
    ("values", "in_json", "in_csv"),
    [
        (pa.array([math.nan]), None, "nan"),
        (pa.array([math.inf]), None, "inf"),
        (pa.array([b"\x00\xff"]), "AP8=", "AP8="),
        (pa.array([Decimal("1.50")]), "1.50", "1.50"),
        (pa.array([datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)]), "2026-01-02T03:04:05Z", "2026-01-02T03:04:05Z"),
        (pa.array([datetime(2026, 1, 2).date()]), "2026-01-02", "2026-01-02"),
        (pa.array([{"a": [1, None]}]), {"a": [1, None]}, '{"a": [1, null]}'),
        (pa.array([None], pa.null()), None, ""),
        (pa.array([True]), True, "true"),
        (pa.array([2**62]), 2**62, str(2**62)),
        (pa.array(["x"]).dictionary_encode(), "x", "x"),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())), [["k", 1]], '[["k", 1]]'),
    ],
)
def test_carried_columns_of_any_type_can_be_exported(
    tmp_path: Path, values: pa.Array, in_json: object, in_csv: str
) -> None:
    job = job_with_column(tmp_path / "job", "value", values)

    export(job, tmp_path / "out.jsonl")
    export(job, tmp_path / "out.csv")
    export(job, tmp_path / "out.parquet")

    assert read_lines(tmp_path / "out.jsonl")[0]["value"] == in_json
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["value"] == in_csv
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 1


def test_existing_file_is_kept_without_force(tmp_path: Path, job: JobDir) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("precious")

    with pytest.raises(InputError, match=r"out\.jsonl: exists; --force"):
        export(job, target)
    assert target.read_text() == "precious"
    export(job, target, force=True)
    assert len(read_lines(target)) == 6


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pipes_devices_and_links_stay_what_they_are(tmp_path: Path, job: JobDir, suffix: str) -> None:
    export(job, tmp_path / f"plain{suffix}")
    written = (tmp_path / f"plain{suffix}").read_bytes()
    pipe, device, link = (tmp_path / f"{name}{suffix}" for name in ("pipe", "device", "link"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/null")
    (tmp_path / "older").write_bytes(b"older")
    link.symlink_to(tmp_path / "older")

    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        export(job, pipe, force=True)
        assert read.result() == written
    export(job, device)
    export(job, link, force=True)

    assert pipe.is_fifo()
    assert device.is_char_device()
    assert link.is_symlink()
    assert (tmp_path / "older").read_bytes() == written
    with pytest.raises(InputError, match=r"exists; --force"):
        export(job, link)


def test_full_device_and_folder_are_refused(tmp_path: Path, job: JobDir) -> None:
    full, folder = tmp_path / "full.csv", tmp_path / "folder.csv"
    full.symlink_to("/dev/full")
    folder.mkdir()

    with pytest.raises(StorageError, match=r"full\.csv: cannot write: No space left on device"):
        export(job, full)
    with pytest.raises(InputError, match=r"folder\.csv: is a folder; name a file in it"):
        export(job, folder, force=True)


@pytest.mark.parametrize("name", ["OUT.CSV", "out.Parquet", "out.JSONL"])
def test_suffix_may_be_in_capitals_as_for_input(tmp_path: Path, job: JobDir, name: str) -> None:
    export(job, tmp_path / name)
    export(job, tmp_path / name.lower().replace("out", "small"))

    assert (tmp_path / name).read_bytes() == (tmp_path / name.lower().replace("out", "small")).read_bytes()


def test_unknown_suffix_and_format_are_refused(tmp_path: Path, job: JobDir) -> None:
    with pytest.raises(InputError, match=r"cannot export to \.xlsx"):
        export(job, tmp_path / "out.xlsx")
    with pytest.raises(InputError, match="OpenAI batch output is JSONL"):
        export(job, tmp_path / "out.csv", layout=ExportFormat.OPENAI)


def test_job_that_is_not_complete_is_refused_unless_partial(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1, 2))
    write_part(job, 0, [ok(0)])
    write_chunk(job, 1, [ok(2)])

    with pytest.raises(JobError, match=r"1 of 2 shards open.*--partial"):
        export(job, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
    assert export(job, tmp_path / "out.jsonl", partial=True) == 2
    assert [line["row"] for line in read_lines(tmp_path / "out.jsonl")] == [0, 2]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_job_without_finished_rows_gives_an_empty_file(tmp_path: Path, suffix: str) -> None:
    job = make_job(tmp_path / "job", (1,))
    target = tmp_path / f"out{suffix}"

    assert export(job, target, partial=True) == 0
    if suffix == ".parquet":
        assert pq.read_table(target).schema.names == result_schema(CARRIED).names
    if suffix == ".csv":
        assert target.read_text().startswith('"row","custom_id"')


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_failed_export_leaves_nothing_and_keeps_what_was_there(tmp_path: Path, job: JobDir, suffix: str) -> None:
    target = tmp_path / "exports" / f"out{suffix}"
    target.parent.mkdir()
    target.write_text("old")
    part = job.part_path(2)
    part.write_bytes(part.read_bytes()[:-30])

    with pytest.raises(CorruptFileError, match="part-00002"):
        export(job, target, force=True)

    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert target.read_text() == "old"


def test_target_below_a_file_is_a_storage_error(tmp_path: Path, job: JobDir) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageError, match="cannot create the folder"):
        export(job, tmp_path / "file" / "out.csv")


def test_running_job_shows_each_finished_row_once(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (3, 2))
    write_chunk(job, 0, [ok(0), ok(2)], attempt=1)
    write_chunk(job, 0, [ok(0, text="twice"), failed(1, ErrorCode.ENGINE_ERROR)], attempt=2)
    torn = write_chunk(job, 1, [ok(3)])
    torn.write_bytes(b"torn")

    rows = [row for table in finished_tables(job) for row in json_rows(table)]

    assert [(row["row"], row["text"]) for row in rows] == [(0, "text 0.0"), (1, None), (2, "text 2.0")]
    assert rows[0]["created"] == "2026-01-01T00:00:00Z"


def test_chunks_left_beside_a_part_are_not_read(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_chunk(job, 0, [failed(0)])
    write_part(job, 0, [ok(0)])

    assert [table["status"].to_pylist() for table in finished_tables(job)] == [["ok"]]


def test_shard_that_commits_while_its_chunks_are_read_is_read_from_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(tmp_path / "job", (2,))
    write_chunk(job, 0, [ok(0)])
    chunks = job.chunks

    def commit_after_listing(shard: int) -> list[Any]:
        listed = chunks(shard)
        write_part(job, 0, [ok(0), ok(1)])
        job.delete_chunks(0)
        return listed

    monkeypatch.setattr(job, "chunks", commit_after_listing)

    assert [table["row"].to_pylist() for table in finished_tables(job)] == [[0, 1]]


def test_part_with_other_columns_is_named(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_file(job.part_path(0), result_table([ok(0)]).drop_columns(["topic"]))

    with pytest.raises(CorruptFileError, match=r"part-00000\.parquet: its columns are not those of the job"):
        list(finished_tables(job))


def test_job_whose_last_worker_died_before_the_proof_is_exported(tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [ok(0)])

    assert export(job, tmp_path / "a.csv") == 1
    assert job.is_complete


def test_export_does_not_go_among_the_files_of_the_job(job: JobDir, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in job.path.rglob("*.parquet")}
    (tmp_path / "link").symlink_to(job.results_dir)

    for target in (
        job.results_dir / "all.parquet",
        job.part_path(0),
        job.shards_dir / "a.csv",
        job.chunks_dir(0) / "a.csv",
        tmp_path / "link/a.csv",
    ):
        with pytest.raises(InputError, match="is in the job's own folder"):
            export(job, target, force=True)

    assert {path: path.read_bytes() for path in job.path.rglob("*.parquet")} == before
