"""From input files to a job directory, whole: what submit writes, what it refuses, and what it leaves behind."""

import gzip
import hashlib
import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batcher import constraints
from batcher.errors import BrokerError, InputError, JobError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.manifest import Manifest, ShardInfo
from batcher.jobdir.results import job_schema, read_counts, read_file, result_schema
from batcher.submission import staging
from batcher.submission.planner import submit
from batcher.submission.readers.files import NamedStream
from batcher.submission.source import fingerprint
from batcher.submission.validation import validate
from batcher.types import ErrorCode, SamplingParams
from tests.support.submitted import carried_rows, make_options, names_in, rows_of, write_lines


@pytest.fixture
def job(tmp_path: Path) -> JobDir:
    return JobDir(tmp_path / "job")


BROKEN_LINES: tuple[bytes | dict[str, Any], ...] = (
    {"prompt": "fine", "note": "n"},
    b"not json",
    b'{"prompt": "\xff\xfe"}',
    {"prompt": {"text": "x"}},
    {"prompt": "p", "max_tokens": 0},
    {"prompt": "p", "temperature": "hot"},
    {"text": "p"},
    {"prompt": "p", "model": "gpt-9"},
    {"prompt": "a\0b"},
    {"prompt": "x" * (1 << 20)},
    {"prompt": "p", "whatever": {"deep": [1]}, "n": 3},
    b"[]",
)
BROKEN_MESSAGES = {
    1: "not JSON (",
    2: "not UTF-8 (byte 0xff at position 13); save the file as UTF-8",
    3: 'prompt is {"text": "x"}; use a string, or a non-empty array of strings or of token ids',
    4: "max_tokens is 0; use a positive integer",
    5: 'temperature is "hot"; use a number from 0 to 2',
    6: "prompt is missing; use a string",
    7: 'model "gpt-9" is not known here; use one of: tiny',
    11: "not a JSON object but []",
}


def test_each_broken_line_has_its_error_row_and_the_rest_is_carried(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "prompts.jsonl", *BROKEN_LINES)
    manifest = submit(job, [path], make_options()).manifest

    rows = rows_of(job)
    errors = {row.request.row: row.error for row in rows if row.error is not None}
    assert len(rows) == manifest.num_rows == len(BROKEN_LINES)
    assert manifest.num_refused == len(BROKEN_MESSAGES)
    assert errors.keys() == BROKEN_MESSAGES.keys()
    for row, message in BROKEN_MESSAGES.items():
        assert errors[row].message.startswith(f"{path}:{row + 1}: {message}")
    assert {row for row, error in errors.items() if error.code is ErrorCode.MODEL_NOT_FOUND} == {7}
    assert [rows[i].request.prompts[0] for i in (0, 8, 9)] == ["fine", "a\0b", "x" * (1 << 20)]
    assert carried_rows(job).slice(10, 1).to_pylist() == [
        {"note": None, "input_text": None, "whatever": '{"deep": [1]}', "n": 3}
    ]


def test_parts_of_refused_rows_are_committed_by_submit(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, b"bad", {"prompt": 5, "custom_id": "x", "note": "n"})
    manifest = submit(job, [path], make_options()).manifest

    refused = [info for info in manifest.shards if info.model is None]
    assert [(info.num_rows, info.num_choices) for info in refused] == [(2, 0)]
    assert [info.model for info in job.pending_shards()] == ["tiny"]
    part = job.part_path(refused[0].shard)
    table = read_file(part)
    assert table.schema.names == result_schema(manifest.carried).names
    assert table.select(["row", "custom_id", "status", "error_code", "attempts", "worker", "note"]).to_pylist() == [
        {"row": 1, "custom_id": "row-1", "note": None}
        | {"status": "error", "error_code": "invalid_request", "attempts": None, "worker": None},
        {"row": 2, "custom_id": "x", "note": "n"}
        | {"status": "error", "error_code": "invalid_request", "attempts": None, "worker": None},
    ]
    counts = read_counts(part)
    assert (counts.num_rows, counts.num_errors, counts.num_choices) == (2, 2, 0)


def test_jobs_with_a_schema_have_its_column_also_where_rows_are_refused(tmp_path: Path, job: JobDir) -> None:
    schema = constraints.json_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a", "label": "l"}, {"prompt": 5, "output": "o"})
    manifest = submit(job, [path], make_options(params=SamplingParams(constraint=schema))).manifest

    assert manifest.carried.names == ["label", "input_output"]
    [refused] = [info for info in manifest.shards if info.model is None]
    table = read_file(job.part_path(refused.shard))
    assert table.schema == job_schema(manifest)
    assert table.schema.field("output").type == pa.struct({"a": pa.int64()})
    assert table.select(["output", "label", "input_output"]).to_pylist() == [
        {"output": None, "label": None, "input_output": "o"}
    ]


def test_batch_lines_with_tools_have_a_column_of_calls(tmp_path: Path, job: JobDir) -> None:
    def line(number: int, **fields: object) -> dict[str, object]:
        body = {"messages": [{"role": "user", "content": "x"}], **fields}
        return {"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}

    tools = [{"type": "function", "function": {"name": "f"}}]
    path = write_lines(tmp_path / "p.jsonl", line(0), line(1, tools=tools) | {"Tool_Calls": "mine"}, b"bad")
    manifest = submit(job, [path], make_options()).manifest

    assert manifest.optional.names[-1:] == ["tool_calls"]
    assert manifest.carried.names == ["input_Tool_Calls"]
    [refused] = [info for info in manifest.shards if info.model is None]
    assert read_file(job.part_path(refused.shard)).schema == job_schema(manifest)


def test_rows_that_may_have_tools_have_a_column_of_calls(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a", "tool_calls": 1})

    manifest = submit(job, [path], make_options(fields=("tools",))).manifest

    assert manifest.optional.names == ["tool_calls"]
    assert manifest.carried.names == ["input_tool_calls"]


def test_jobs_without_a_schema_leave_its_names_to_the_input(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a", "output": 1, "label": "l"})

    assert submit(job, [path], make_options()).manifest.carried.names == ["output", "label"]


def test_new_job_is_sent_when_it_is_whole_on_disk_and_one_that_is_there_is_not(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, b"bad")
    sent: list[int] = []

    def send(sent_of: JobDir, shards: Sequence[ShardInfo]) -> int:
        assert JobDir.open(sent_of.path).manifest.shards == shards
        assert [info.model for info in sent_of.pending_shards()] == ["tiny"]
        sent.append(len(shards))
        return len(shards)

    assert submit(job, [path], make_options(), send=send).is_new
    assert not submit(JobDir(job.path), [path], make_options(), send=send).is_new
    assert sent == [2]


def test_job_that_the_broker_did_not_take_is_there_for_a_resume(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})

    def away(job: JobDir, shards: Sequence[ShardInfo]) -> int:
        raise BrokerError("away")

    with pytest.raises(BrokerError):
        submit(job, [path], make_options(), send=away)

    assert not submit(JobDir(job.path), [path], make_options()).is_new


def test_strict_refuses_all_with_the_first_bad_rows_and_leaves_nothing(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "p.jsonl", *[{"prompt": "a"}] * 100, *[b"bad"] * 25)
    with pytest.raises(InputError) as caught:
        submit(job, [path], make_options(strict=True))
    lines = str(caught.value).splitlines()
    assert lines[0] == "25 of 125 rows are not valid, and --strict takes all or none:"
    assert len(lines) == 22
    assert lines[1].startswith(f"  {path}:101: not JSON")
    assert lines[-1] == "  ... and 5 more"
    assert not job.path.exists()


def test_strict_takes_an_input_without_bad_rows(tmp_path: Path, job: JobDir) -> None:
    manifest = submit(job, [write_lines(tmp_path / "p.jsonl", {"prompt": "a"})], make_options(strict=True)).manifest
    assert (manifest.num_rows, manifest.num_refused) == (1, 0)


def test_several_files_are_one_input_with_the_union_of_their_columns(tmp_path: Path, job: JobDir) -> None:
    write_lines(tmp_path / "a1.jsonl", {"prompt": "a", "x": 1}, {"prompt": "b", "x": 2})
    (tmp_path / "a2.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "c", "x": 0.5, "y": [1]}\n'))
    pq.write_table(pa.table({"prompt": ["d"], "x": pa.array([4], pa.int8()), "z": [b"\xff"]}), tmp_path / "b.parquet")
    stdin = io.BytesIO(b'{"prompt": "e", "y": [2.5]}')

    manifest = submit(job, [f"{tmp_path}/a*", f"{tmp_path}/b.parquet", NamedStream(stdin)], make_options()).manifest

    assert [row.request.prompts for row in rows_of(job)] == [("a",), ("b",), ("c",), ("d",), ("e",)]
    assert [row.request.row for row in rows_of(job)] == list(range(5))
    assert {f.name: str(f.type) for f in manifest.carried} == {"x": "double", "y": "list<item: double>", "z": "binary"}
    assert carried_rows(job).to_pydict() == {
        "x": [1.0, 2.0, 0.5, 4.0, None],
        "y": [None, None, [1.0], None, [2.5]],
        "z": [None, None, None, b"\xff", None],
    }


def test_column_that_turns_out_wider_late_is_the_same_type_everywhere(tmp_path: Path, job: JobDir) -> None:
    lines = [{"prompt": "p", "x": i} for i in range(500)] + [{"prompt": "p", "x": "late"}]
    manifest = submit(job, [write_lines(tmp_path / "p.jsonl", *lines)], make_options()).manifest
    assert len(manifest.shards) > 5
    assert manifest.carried == pa.schema([("x", pa.string())])
    assert carried_rows(job)["x"].to_pylist() == [*map(str, range(500)), "late"]


def test_parquet_columns_reach_the_shards_with_their_types(tmp_path: Path, job: JobDir) -> None:
    table = pa.table(
        {
            "text": ["a", "b", "c"],
            "id": [7, 8, 9],
            "max_tokens": [1, None, 3],
            "when": pa.array([1, 2, None], pa.timestamp("ns", "UTC")),
            "price": pa.array(["1.50", None, "2.25"]).cast(pa.decimal128(8, 2)),
            "kind": pa.array(["u", "v", "u"]).dictionary_encode(),
            "status": ["s", "t", "u"],
            "tree": [{"a": [1]}, None, {"a": []}],
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=2)
    options = make_options(template="{id}: {text}", id_column="id")
    manifest = submit(job, [f"{tmp_path}/in.parquet"], options).manifest

    requests = [row.request for row in rows_of(job)]
    assert [request.prompts for request in requests] == [("7: a",), ("8: b",), ("9: c",)]
    assert [request.custom_id for request in requests] == ["7", "8", "9"]
    assert [request.params.max_tokens for request in requests] == [1, 16, 3]
    assert manifest.carried.field("when").type == pa.timestamp("ns", "UTC")
    assert manifest.carried.field("price").type == pa.decimal128(8, 2)
    assert manifest.carried.field("kind").type == pa.string()
    expected = table.drop_columns(["id", "max_tokens"]).rename_columns({"status": "input_status", "text": "input_text"})
    found = carried_rows(job)
    assert found.select(expected.column_names).to_pydict() == expected.to_pydict()


@pytest.mark.parametrize(
    ("lines", "first", "second", "shown"),
    [
        ([{"custom_id": "a"}, {"custom_id": "b"}, {"custom_id": "a"}], 1, 3, "a"),
        ([{"custom_id": "row-1"}, {}], 1, 2, "row-1"),
        ([{"custom_id": 5}, {"custom_id": "5"}], 1, 2, "5"),
        ([{"custom_id": "a"}, {"custom_id": "a", "max_tokens": 0}], 1, 2, "a"),
    ],
)
def test_repeated_custom_id_refuses_the_input_and_leaves_nothing(
    tmp_path: Path, job: JobDir, lines: list[dict[str, Any]], first: int, second: int, shown: str
) -> None:
    path = write_lines(tmp_path / "p.jsonl", *[{"prompt": "p"} | line for line in lines])
    with pytest.raises(InputError) as caught:
        submit(job, [path], make_options())
    assert str(caught.value).startswith(f"custom_id {shown!r} is used twice, by {path}:{first} and {path}:{second}")
    assert not job.path.exists()


def test_id_column_without_any_value_is_a_mistake(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "p", "key": "k"})
    with pytest.raises(InputError, match="--id-column kee: no row has a value there"):
        submit(job, [path], make_options(id_column="kee"))
    assert submit(job, [path], make_options(id_column="key")).manifest.num_rows == 1


def test_id_column_with_values_is_none_whatever_they_are(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "p", "key": "row-0"}, {"prompt": "q"})
    submit(job, [path], make_options(id_column="key"))
    bad = write_lines(tmp_path / "bad.jsonl", {"prompt": "p", "key": True})

    assert [row.request.custom_id for row in rows_of(job)] == ["row-0", "row-1"]
    assert validate([bad], make_options(id_column="key")).bad == (
        f"{bad}:1: key is true; use a non-empty string or a finite number",
    )


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_input_without_rows_is_refused(tmp_path: Path, job: JobDir, content: bytes) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(InputError, match="holds no rows"):
        submit(job, [f"{tmp_path}/p.jsonl"], make_options())
    assert not job.path.exists()


def test_failure_in_the_second_file_leaves_nothing_of_the_first(tmp_path: Path, job: JobDir) -> None:
    good = write_lines(tmp_path / "a.jsonl", *[{"prompt": "p"}] * 100, b"bad")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b"x" * 100)[:-9])
    job.path.mkdir()
    (job.path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="cannot be read"):
        submit(job, [good, f"{tmp_path}/b.jsonl.gz"], make_options())
    assert names_in(job.path) == {"mine.txt"}


# -- the same command again -------------------------------------------------------------------------------------------


def test_same_command_again_is_the_same_job_untouched(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"}, b"bad")
    first = submit(job, [path], make_options()).manifest
    before = {name: (job.path / name).stat().st_mtime_ns for name in names_in(job.path)}
    # Given again with a name, time and machine of its own, it still is the same input.
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(Path(path).read_bytes())
    assert submit(JobDir(job.path), [str(copy)], make_options(shard_rows=5, known_models=None)).manifest == first
    assert {name: (job.path / name).stat().st_mtime_ns for name in names_in(job.path)} == before


def test_two_jobs_of_one_input_have_other_seeds_and_no_id_in_common(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", *({"prompt": str(n)} for n in range(50)))
    first, second = (submit(JobDir(tmp_path / name / "job"), [path], make_options()).manifest for name in ("a", "b"))

    assert first.seed != second.seed
    assert len({each.response_digits(row) for each in (first, second) for row in range(50)}) == 100


def test_seed_that_is_given_is_the_jobs(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})
    for seed in (0, 7, 2**63 - 1):
        job = JobDir(tmp_path / f"job-{seed}")
        assert submit(job, [path], make_options(seed=seed)).manifest.seed == seed
        assert submit(JobDir(job.path), [path], make_options(seed=seed)).manifest == job.manifest


def test_command_without_a_seed_finds_the_job_that_it_made_when_the_default_was_0(tmp_path: Path, job: JobDir) -> None:
    # Given the fingerprint of an older Batcher, which had 0 in the place of a seed that was not given
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})
    older = hashlib.sha256(
        json.dumps(
            [
                "m",
                {
                    "max_tokens": 16,
                    "temperature": 1.0,
                    "top_p": 1.0,
                    "stop": [],
                    "seed": None,
                    "n": 1,
                    "best_of": None,
                    "echo": False,
                    "logprobs": None,
                    "presence_penalty": 0.0,
                    "frequency_penalty": 0.0,
                    "logit_bias": [],
                    "suffix": "",
                    "clips_max_tokens": False,
                },
                *(None, None, None, None, False, 0),
            ]
        ).encode()
    ).hexdigest()[:32]

    assert fingerprint([path], make_options(default_model="m")).endswith(f"-{older}")


@pytest.mark.parametrize(
    ("content", "changes", "differs"),
    [
        (b'{"prompt": "b"}\n', {}, "input"),
        (b'{"prompt": "a"}\n', {"seed": 1}, "options"),
        (b'{"prompt": "a"}\n', {"seed": 0}, "options"),
        (b'{"prompt": "a"}\n', {"params": SamplingParams(max_tokens=17)}, "options"),
        (b'{"prompt": "a"}\n', {"default_model": "other"}, "options"),
        (b'{"prompt": "b"}\n', {"template": "{prompt}"}, "input and options"),
    ],
)
def test_another_input_or_option_does_not_touch_the_job(
    tmp_path: Path, job: JobDir, content: bytes, changes: dict[str, Any], differs: str
) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})
    submit(job, [path], make_options())
    Path(path).write_bytes(content)
    with pytest.raises(JobError, match=f"holds a job with other {differs}; "):
        submit(JobDir(job.path), [path], make_options(**changes))
    assert [row.request.prompts for row in rows_of(job)] == [("a",)]


def test_standard_input_given_again_is_compared_too(job: JobDir) -> None:
    first = submit(job, [NamedStream(io.BytesIO(b'{"prompt": "a"}'))], make_options()).manifest
    again = submit(JobDir(job.path), [NamedStream(io.BytesIO(b'{"prompt": "a"}'), "other")], make_options()).manifest
    assert again == first
    with pytest.raises(JobError, match="other input"):
        submit(JobDir(job.path), [NamedStream(io.BytesIO(b'{"prompt": "b"}'))], make_options())


def test_leftovers_of_a_killed_submit_are_cleared(tmp_path: Path, job: JobDir, monkeypatch: pytest.MonkeyPatch) -> None:
    long = write_lines(tmp_path / "long.jsonl", *[{"prompt": "p"}] * 100, b"bad")
    short = write_lines(tmp_path / "short.jsonl", {"prompt": "q"})
    with monkeypatch.context() as patch:
        # As if killed: just before the manifest, and without a chance to clean up.
        patch.setattr(JobDir, "create_manifest", lambda self, manifest: 1 / 0)
        patch.setattr(staging, "clear_leftovers", lambda job: None)
        with pytest.raises(ZeroDivisionError):
            submit(job, [long], make_options())
    (job.shards_dir / ".tmp-123").write_bytes(b"torn")
    assert len(names_in(job.path)) > 4
    assert not job.exists()

    submit(job, [short], make_options())

    assert names_in(job.path) == {"manifest.json", "shards/00000.parquet"}
    assert [row.request.prompts for row in rows_of(job)] == [("q",)]


@pytest.mark.parametrize(
    "name", ["results/part-00000.parquet", "results/mine.csv", "shards/00000.txt", "attempts/00000/0001.json"]
)
def test_files_of_somebody_else_are_never_deleted(tmp_path: Path, job: JobDir, name: str) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})
    theirs = job.path / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    with pytest.raises(JobError, match="not of an unfinished submit"):
        submit(job, [path], make_options())
    assert names_in(job.path) == {name}


def test_job_path_that_is_a_file_is_refused(tmp_path: Path, job: JobDir) -> None:
    job.path.write_text("x")
    with pytest.raises(JobError, match="is not a folder"):
        submit(job, [write_lines(tmp_path / "p.jsonl", {"prompt": "a"})], make_options())


def test_second_submit_at_once_is_refused_and_does_no_harm(tmp_path: Path, job: JobDir) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})
    is_reading, may_go_on = threading.Event(), threading.Event()

    def pause(num_rows: int) -> None:
        is_reading.set()
        assert may_go_on.wait(30)

    made: list[Manifest] = []
    first = threading.Thread(
        target=lambda: made.append(submit(job, [path], make_options(), on_progress=pause).manifest)
    )
    first.start()
    assert is_reading.wait(30)
    with pytest.raises(JobError, match="another submit is writing this job"):
        submit(JobDir(job.path), [path], make_options())
    may_go_on.set()
    first.join()

    assert submit(JobDir(job.path), [path], make_options()).manifest == made[0]


def test_manifest_of_another_submit_wins_where_folders_cannot_be_locked(
    tmp_path: Path, job: JobDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "p.jsonl", {"prompt": "a"})
    monkeypatch.setattr(JobDir, "create_manifest", lambda self, manifest: False)
    with pytest.raises(JobError, match="another submit was first"):
        submit(job, [path], make_options())


@pytest.mark.parametrize(
    "options", [{"default_model": "a name"}, {"template": "{a.b}"}, {"template": "{a}", "prompt_column": "b"}]
)
def test_unusable_options_are_refused_before_anything_is_written(
    tmp_path: Path, job: JobDir, options: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        submit(job, [write_lines(tmp_path / "p.jsonl", {"prompt": "a"})], make_options(**options))
    assert not job.path.exists()


def test_progress_counts_rows(tmp_path: Path, job: JobDir) -> None:
    seen: list[int] = []
    path = write_lines(tmp_path / "p.jsonl", *[{"prompt": "x" * 1000}] * 1000)
    submit(job, [path], make_options(), on_progress=seen.append)
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == 1000
