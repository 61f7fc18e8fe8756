"""Standard output that can't be written, or has few characters, and arguments in a locale that is not UTF-8.

By the installed program, as the streams and the locale are those of its process.
"""

import csv
import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from batcher.manage.finish import finalize
from tests.support.job_files import finished_job, make_job, ok, write_part
from tests.support.waiting import PATIENCE_S

#: The installed program.
BATCHER = Path(sys.executable).parent / "batcher"
#: Python takes all text for ASCII then.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
#: Commands that print, in each way that there is: lines, tables, JSON, help, and bytes that are gathered.
PRINTING = [
    "--help",
    "--version",
    "completion bash",
    "run --help",
    "models",
    "list",
    "list --json",
    "status job",
    "status job --json",
    "status job --watch --json",
    "results job",
    "results job --json",
    "results job --columns custom_id,text",
    "diff job job",
    "diff job job --json",
    "export job -o - --type csv",
    "export job -o - --type jsonl",
    "export job -o - --type parquet",
    "export job -o file.csv",
    "validate prompts.csv --prompt-column a",
    "cancel job",
    "pause job",
    "priority job urgent",
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    finished_job(tmp_path / "job")
    finished_job(tmp_path / "batcher-jobs" / "other")
    (tmp_path / "prompts.csv").write_text("a\nhello\n")
    return tmp_path


def batcher(
    place: Path, line: str, redirected: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command line, as a shell does that redirects its streams."""
    return subprocess.run(
        ["bash", "-c", f"exec {shlex.quote(str(BATCHER))} {line} {redirected}"],
        cwd=place,
        env=os.environ | {"BATCHER_PROFILES_DIR": str(place)} | (environment or {}),
        capture_output=True,
        check=False,
        timeout=PATIENCE_S,
    )


@pytest.mark.parametrize(
    ("redirected", "problem"),
    [("> /dev/full", "No space left on device; free some space there"), (">&-", "it is not open for writing")],
    ids=["full", "closed"],
)
@pytest.mark.parametrize("line", PRINTING)
def test_stdout_that_cannot_be_written_is_an_error_in_a_line(
    place: Path, line: str, redirected: str, problem: str
) -> None:
    done = batcher(place, line, redirected)

    err = done.stderr.decode()
    assert done.returncode == 3, err
    assert err.splitlines()[-1].startswith(f"Error: standard output: cannot write: {problem}")
    assert "Traceback" not in err
    assert "standard output: 7 rows" not in err


def test_command_that_prints_nothing_needs_no_stdout(place: Path) -> None:
    done = batcher(place, "list --jobs-dir nowhere", ">&-")

    assert (done.returncode, done.stderr) == (0, b"No jobs under nowhere.\n")


def test_what_goes_to_a_closed_stderr_does_not_come_to_stdout(place: Path) -> None:
    done = batcher(place, "status job --watch", "2>&-")

    assert done.returncode == 0
    assert done.stdout.startswith(b"Job ")


def test_characters_that_the_encoding_has_not_are_escaped_as_json_has_them(place: Path) -> None:
    text = "é中😀"
    job = make_job(place / "letters", (1,))
    write_part(job, 0, [ok(0, text=text)])
    finalize(job)

    whole = batcher(place, "results letters --json", environment={"PYTHONIOENCODING": "koi8-r"})
    legible = batcher(place, "results letters", environment={"PYTHONIOENCODING": "latin-1"})

    assert (whole.returncode, json.loads(whole.stdout)["text"]) == (0, f"{text} 0.0")
    assert "é\\u4e2d\\ud83d\\ude00 0.0" in legible.stdout.decode("latin-1")


@pytest.mark.parametrize("environment", [{}, ASCII], ids=["UTF-8", "ASCII"])
def test_arguments_and_names_of_files_are_utf8_where_the_locale_has_no_such_letters(
    place: Path, environment: dict[str, str]
) -> None:
    (place / "中文 工单.csv").write_text("工单,正文\nT1,你好\n", encoding="utf-8")

    valid = batcher(place, "validate '中文 工单.csv' --template '{正文}' --id-column 工单", environment=environment)
    joined = batcher(place, "export job -o 答.csv --output-column 答案", environment=environment)
    chosen = batcher(place, "results job --json --where \"text = '答'\"", environment=environment)

    assert (valid.returncode, valid.stderr.count(b"\n")) == (0, 1), valid.stderr
    assert "1 = 1 ok" in valid.stdout.decode()
    assert joined.returncode == 0, joined.stderr
    header = next(csv.reader(io.StringIO((place / "答.csv").read_text(encoding="utf-8"))))
    assert header[-1] == "答案"
    assert (chosen.returncode, chosen.stdout) == (0, b""), chosen.stderr


@pytest.mark.parametrize(
    "line",
    [
        "validate prompts.csv --prompt-column $'a\\xffb'",
        "validate prompts.csv --template $'{a\\xffb}'",
        "results job --where $'custom_id = \"\\xff\"'",
        "results job --columns $'\\xff'",
        "export job -o x.csv --output-column $'\\xff'",
        "query job $'select \\xff'",
    ],
)
def test_argument_that_is_no_text_is_refused(place: Path, line: str) -> None:
    done = batcher(place, line)

    err = done.stderr.decode()
    assert done.returncode == 2, err
    assert "is no text in UTF-8; give it in UTF-8" in err
    assert "Traceback" not in err
