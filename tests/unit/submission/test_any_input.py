"""Whatever the bytes of an input: one row a line, or a clear refusal, never a traceback."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from batcher.jobdir.results import read_file
from batcher.submission.planner import submit
from tests.support.submitted import carried_rows, make_options, rows_of

plausible = st.sampled_from(
    [
        b'{"prompt": "p"}',
        b'{"prompt": ["p", "q"], "max_tokens": 2, "x": 1}',
        b'{"prompt": "p", "x": "text"}',
        b'{"prompt": "p", "stop": [""], "row": 1}',
        b'{"custom_id": null, "method": "POST", "url": "/v1/completions", "body": {"prompt": "p", "n": 1}}',
        b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": ["p"], "n": 3}}',
        b'{"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"prompt": "", "n": 2}}',
        b'{"custom_id": 7, "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", '
        b'"content": "x"}]}}',
        b'{"method": "POST", "url": "/v1/chat/completions", "body": {"messages": [{"role": 5}]}}',
        b'{"body": {"prompt": 5}}',
        b'{"prompt": "p", "": {"": []}, "model": "tiny"}',
        b'{"prompt": NaN, "x": -Infinity}',
        b"{}",
    ]
)
any_line = (st.binary(max_size=40) | plausible).filter(lambda line: b"\n" not in line)


# Ids are unique.
@given(st.lists(any_line, min_size=1, max_size=12, unique_by=lambda line: line if b"custom_id" in line else object()))
@settings(deadline=None, max_examples=60)
def test_any_bytes_give_one_row_a_line(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    # A first line that is no magic number of a compressed file.
    lines = [b"{}", *lines]
    path = folder / "in.jsonl"
    path.write_bytes(b"\n".join(lines))
    numbers = [number for number, line in enumerate(lines, start=1) if line and not line.isspace()]
    job = JobDir(folder / "job")

    manifest = submit(job, [str(path)], make_options()).manifest

    rows = rows_of(job)
    assert manifest.num_rows == len(rows) == len(numbers)
    assert [row.request.row for row in rows] == list(range(len(rows)))
    assert not manifest.carried.names or carried_rows(job).num_rows == len(rows)
    parts = [read_file(job.part_path(info.shard)) for info in manifest.shards if info.model is None]
    errors = {row.request.row: row.error.message for row in rows if row.error is not None}
    assert {row for part in parts for row in part["row"].to_pylist()} == errors.keys()
    for row, message in errors.items():
        assert message.startswith(f"{path}:{numbers[row]}: ")


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=60)
def test_any_file_is_a_job_or_a_clear_refusal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "in").write_bytes(data)
    job = JobDir(folder / "job")
    refusal = ""
    try:
        submit(job, [str(folder / "in")], make_options())
    except InputError as exc:
        refusal = str(exc)
    assert job.path.exists() == job.exists() == (not refusal)
    assert not refusal or refusal.startswith(f"{folder}/in: ")
