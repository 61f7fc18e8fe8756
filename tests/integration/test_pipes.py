"""`batcher run - -o -` in a pipe: lines in, lines out, and nothing left behind but what was not done."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from batcher.jobdir.folder import JobDir
from tests.support.waiting import PATIENCE_S, wait_for

BATCHER = Path(sys.executable).parent / "batcher"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the command keeps its job. The path of a socket must be short."""
    with tempfile.TemporaryDirectory(prefix="pipe-") as folder:
        yield Path(folder)


def start(
    temporary: Path, model: Path, *options: object, stdout: int | IO[bytes] = subprocess.PIPE
) -> subprocess.Popen[bytes]:
    line = [str(BATCHER), "run", "-", "-o", "-", "--model", f"tiny={model}", "--threads", "1", *map(str, options)]
    environment = os.environ | {"TMPDIR": str(temporary)}
    pipe = subprocess.PIPE
    return subprocess.Popen(line, env=environment, stdin=pipe, stdout=stdout, stderr=pipe, cwd=temporary)


def jobs_in(temporary: Path) -> list[JobDir]:
    return [JobDir(folder / "run") for folder in temporary.glob("batcher-run-*")]


def test_lines_come_out_in_the_order_of_the_input_with_their_columns(temporary: Path, model: Path) -> None:
    lines = [{"prompt": f"hello {i}", "custom_id": f"id-{i}", "n_th": i} for i in range(70)]
    lines[3]["temperature"] = 9

    process = start(temporary, model, "--max-tokens", 4, "--shard-rows", 20)
    out, err = process.communicate("".join(json.dumps(line) + "\n" for line in lines).encode(), timeout=PATIENCE_S)

    assert process.returncode == 1, err.decode()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["custom_id"], row["n_th"]) for row in rows] == [(f"id-{i}", i) for i in range(70)]
    assert [row["status"] for row in rows].count("ok") == 69
    assert rows[3]["error_message"].startswith("<stdin>:4: temperature is 9")
    assert err.decode().splitlines()[-1] == "70 rows: 69 ok, 1 error (invalid_request 1)"
    assert jobs_in(temporary) == []


def test_csv_comes_in_by_its_name(temporary: Path, model: Path) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["question", "topic"], ["one, two", "a"], ["three", "b"]])

    process = start(
        *(temporary, model, "--input-format", "csv", "--prompt-column", "question", "--max-tokens", 2, "--quiet")
    )
    out, err = process.communicate(text.getvalue().encode(), timeout=PATIENCE_S)

    assert (process.returncode, err) == (0, b"")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["prompt"], row["topic"]) for row in rows] == [("one, two", "a"), ("three", "b")]


def test_reader_that_has_enough_ends_it_in_good_order(temporary: Path, model: Path) -> None:
    """Given a reader that takes one of many lines and goes, when the results come, then there is no error."""
    lines = "".join(json.dumps({"prompt": "hello", "note": "x" * 2000}) + "\n" for _ in range(100))

    with start(temporary, model, "--max-tokens", 1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(lines.encode())
        process.stdin.close()
        first = process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()

    assert process.returncode == 0
    assert json.loads(first)["row"] == 0
    assert b"Traceback" not in err
    assert jobs_in(temporary) == []


@pytest.mark.parametrize(
    ("to", "problem"),
    [
        (
            "> /dev/full",
            "standard output: cannot write: No space left on device; free some space there, then try again",
        ),
        (">&-", "standard output: cannot write: it is not open for writing; leave out >&-, or name a file"),
        ("| false", "standard output: its reader was gone before there were results"),
    ],
)
def test_results_that_nobody_got_are_kept_and_named(temporary: Path, model: Path, to: str, problem: str) -> None:
    """Given a job that is done, when its results can't be written, then the line that is shown reads them."""
    (temporary / "prompts.jsonl").write_text('{"prompt": "hello"}\n' * 3)
    line = f"{BATCHER} run prompts.jsonl -o - --model tiny={model} --max-tokens 4 --threads 1 --quiet {to}"

    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"],
        cwd=temporary,
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )

    (job,) = jobs_in(temporary)
    *_, error, kept, remedy = done.stderr.splitlines()
    assert done.returncode == 3
    assert (error, kept) == (f"Error: {problem}", "All rows are done and kept. Read them with:")
    assert remedy.strip() == f"batcher results {job.path} --json"
    command = [str(BATCHER), *remedy.split()[1:]]
    found = subprocess.run(command, capture_output=True, check=True)
    assert [json.loads(row)["row"] for row in found.stdout.splitlines()] == [0, 1, 2]


def test_input_that_is_refused_leaves_nothing(temporary: Path, model: Path) -> None:
    process = start(temporary, model)
    out, err = process.communicate(b"", timeout=PATIENCE_S)

    assert (process.returncode, out) == (2, b"")
    assert b"<stdin>: holds no rows" in err
    assert jobs_in(temporary) == []


def test_what_was_stopped_is_kept_and_named_and_goes_on(temporary: Path, model: Path) -> None:
    lines = "".join(json.dumps({"prompt": f"hello {i}"}) + "\n" for i in range(200))
    process = start(temporary, model, "--max-tokens", 400, "--shard-rows", 200)
    assert process.stdin is not None
    process.stdin.write(lines.encode())
    process.stdin.close()
    process.stdin = None
    wait_for(lambda: any(job.exists() and job.chunks(0) for job in jobs_in(temporary)), what="a chunk")

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, out) == (130, b"")
    (job,) = jobs_in(temporary)
    last = err.decode().splitlines()[-1].strip()
    assert last == f"batcher resume {job.path} --model tiny={model}"
    found = subprocess.run([str(BATCHER), "results", str(job.path), "--json"], capture_output=True, check=True)
    assert json.loads(found.stdout.splitlines()[0])["status"] == "ok"
