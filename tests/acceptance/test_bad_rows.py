"""A file of lines broken in ten ways: each has its own row in the results, the rest is completed, nothing is lost."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batcher.jobdir.folder import JobDir
from tests.acceptance.conftest import Batcher
from tests.support.job_files import result_rows
from tests.support.tiny_gguf import write_tiny_gguf

#: Line, and what its row in the results must say: a code and words of the message, or None where it is carried.
LINES: list[tuple[bytes, tuple[str, str] | None]] = [
    (b'{"prompt": "a good one", "note": "first"}', None),
    (b'{"prompt": "not closed', ("invalid_request", "JSON")),
    (b'{"prompt": "bad \xff\xfe bytes"}', ("invalid_request", "UTF-8")),
    (b'{"prompt": 42}', ("invalid_request", "prompt")),
    (b'{"prompt": "x", "max_tokens": "ten"}', ("invalid_request", "max_tokens")),
    (b'{"prompt": "x", "temperature": 2.5}', ("invalid_request", "temperature")),
    (b'{"prompt": "x", "top_p": 2}', ("invalid_request", "top_p")),
    (b'{"note": "no prompt"}', ("invalid_request", "prompt")),
    (b'{"prompt": "x", "model": "gpt-9"}', ("model_not_found", "gpt-9")),
    (json.dumps({"prompt": "word " * 400}).encode(), ("context_length_exceeded", "--ctx")),
    (b'{"prompt": "a NUL \\u0000 inside"}', None),
    (json.dumps({"prompt": "m" * 1_000_000}).encode(), ("context_length_exceeded", "1000000 characters")),
    (b'{"prompt": "unknown keys", "surprise": {"deep": [1, 2]}, "note": "last"}', None),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def test_each_broken_line_has_its_error_row_and_the_rest_is_completed(
    tmp_path: Path, model: Path, batcher: Batcher
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(b"".join(line + b"\n" for line, _ in LINES))

    done = batcher("run", "prompts.jsonl", "-o", "out", "--model", f"tiny={model}", "--threads", 1)

    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert f"{len(LINES)} in = 3 ok + 10 error" in done.stdout
    rows = {row["row"]: row for row in result_rows(JobDir(tmp_path / "out"))}
    assert sorted(rows) == list(range(len(LINES)))
    for number, (_, expected) in enumerate(LINES):
        row = rows[number]
        if expected is None:
            assert (row["status"], row["completion_tokens"]) == ("ok", 16)
            continue
        code, words = expected
        assert row["error_code"] == code
        assert words in row["error_message"]
        if code != "context_length_exceeded":
            assert f"prompts.jsonl:{number + 1}:" in row["error_message"]
    assert rows[10]["prompt"] == "a NUL \0 inside"
    assert json.loads(rows[12]["surprise"]) if isinstance(rows[12]["surprise"], str) else rows[12]["surprise"]
    assert (rows[0]["note"], rows[12]["note"]) == ("first", "last")

    errors = batcher("results", "out", "--errors", "--json")
    assert errors.returncode == 0
    assert len(errors.stdout.splitlines()) == 10


def test_strict_refuses_the_file_with_the_list(tmp_path: Path, model: Path, batcher: Batcher) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(b"".join(line + b"\n" for line, _ in LINES))

    refused = batcher("run", "prompts.jsonl", "-o", "out", "--model", f"tiny={model}", "--strict")

    assert refused.returncode == 2
    assert "Traceback" not in refused.stderr
    for number in (2, 3, 4, 5, 6, 7, 8, 9):
        assert f"prompts.jsonl:{number}:" in refused.stderr
    assert not JobDir(tmp_path / "out").exists()


def write_truncated_parquet(path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-300])


def write_truncated_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"prompt": "a"}\n' * 1000)[:-20])


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("cut.parquet", write_truncated_parquet, "Parquet"),
        ("empty.jsonl", Path.touch, "empty"),
        ("empty.parquet", Path.touch, "empty"),
        ("blank.jsonl", lambda path: path.write_text("\n\n"), "no rows"),
        ("cut.jsonl.gz", write_truncated_gzip, "cut.jsonl.gz"),
        ("missing.jsonl", lambda path: None, "missing.jsonl"),
    ],
)
def test_unusable_file_is_one_clear_line(
    tmp_path: Path, model: Path, batcher: Batcher, name: str, write: object, words: str
) -> None:
    assert callable(write)
    write(tmp_path / name)

    refused = batcher("run", name, "-o", "out", "--model", f"tiny={model}")

    assert refused.returncode == 2
    assert name in refused.stderr
    assert words in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not JobDir(tmp_path / "out").exists()
