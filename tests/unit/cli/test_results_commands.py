"""The commands on results: which rows and columns they show, and what they write."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from batcher.cli.texts import print_sample
from batcher.jobdir.folder import JobDir
from batcher.manage.finished import finished_tables
from batcher.submission.planner import submit
from batcher.types import ErrorCode
from tests.support.job_files import failed, finished_job, make_job, ok, write_chunk, write_part
from tests.support.submitted import make_options, write_lines
from tests.unit.conftest import Run

#: The installed program.
BATCHER = Path(sys.executable).parent / "batcher"


@pytest.fixture
def finished(workplace: Path) -> JobDir:
    return finished_job(workplace / "batcher-jobs" / "demo")


# -- results ------------------------------------------------------------------------------------------------------


def test_results_are_legible(run: Run, finished: JobDir) -> None:
    code, out, _ = run("results demo")

    assert code == 0
    assert "[0] id-0 (length, 3 tokens)\n    prompt 0.0\n -> text 0.0\n" in out
    assert "[1] id-1 (error timeout)\n    prompt 1.0\n -> row 1: timeout\n" in out
    assert "[3.1] id-3 (length, 3 tokens)\n    prompt 3.1\n -> text 3.1\n" in out
    assert "more" not in out


def test_limit_says_that_there_is_more(run: Run, finished: JobDir) -> None:
    _, out, _ = run("results demo --limit 2")

    assert "[1]" in out
    assert "[2]" not in out
    assert "... and more: --limit 10" in out


def test_results_as_json_are_whole_rows(run: Run, finished: JobDir) -> None:
    rows = [json.loads(line) for line in run("results demo --json")[1].splitlines()]

    assert [(row["row"], row["index"]) for row in rows] == [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (4, 0), (5, 0)]
    assert rows[0]["tags"] == ["a", "0"]
    assert rows[0]["created"] == "2026-01-01T00:00:00Z"
    assert len(run("results demo --json --limit 3")[1].splitlines()) == 3


def test_results_with_errors_are_only_those(run: Run, finished: JobDir) -> None:
    rows = [json.loads(line) for line in run("results demo --errors --json")[1].splitlines()]

    assert [row["error_code"] for row in rows] == ["timeout", "context_length_exceeded"]
    assert run("results demo --errors")[1].count("(error ") == 2


def test_row_that_was_refused_at_submit_is_legible_too(run: Run, tmp_path: Path) -> None:
    job = JobDir(tmp_path / "job")
    submit(job, [write_lines(tmp_path / "p.jsonl", {"prompt": 5}, {"prompt": "a"})], make_options())

    code, out, _ = run("results job --errors")

    assert code == 0
    assert "[0] row-0 (error invalid_request)\n" in out


def test_row_that_was_set_aside_shows_its_attempts_and_what_happened(run: Run, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2,))
    for _ in range(2):
        job.claim_attempt(0, worker="w1")
    crashed = failed(1, ErrorCode.WORKER_CRASHED)
    assert crashed.error is not None
    message = "the worker died once while it computed this row and nothing else (the last time: signal SIGSEGV)"
    write_part(job, 0, [ok(0), replace(crashed, error=replace(crashed.error, message=message))])

    code, out, _ = run("results job --errors")

    assert code == 0
    assert out == (
        "[1] id-1 (error worker_crashed, 3 attempts)\n"
        "    prompt 1.0\n"
        " -> the worker died once while it computed this row and nothing else (the last time: signal SIGSEGV)\n"
    )
    (row,) = [json.loads(line) for line in run("results job --errors --json")[1].splitlines()]
    assert (row["error_code"], row["error_message"], row["attempts"]) == ("worker_crashed", message, 3)


def test_results_of_a_running_job_show_each_row_once(run: Run, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (2, 1))
    write_part(job, 1, [ok(2)])
    write_chunk(job, 0, [ok(0)], attempt=1)
    write_chunk(job, 0, [ok(0), ok(1)], attempt=2)

    rows = [json.loads(line)["row"] for line in run("results job --json")[1].splitlines()]

    assert rows == [0, 1, 2]


def test_results_of_a_job_without_any_say_so(run: Run, tmp_path: Path) -> None:
    job = make_job(tmp_path / "job", (1,))

    assert run("results job")[1] == "No finished rows yet.\n"
    write_part(job, 0, [ok(0)])
    assert run("results job --errors")[1] == "No error rows.\n"


def test_condition_and_columns_say_which_results_are_shown(run: Run, finished: JobDir) -> None:
    """Given rows of which some failed, when a condition and columns are given, then these are a table in a pipe."""
    code, out, err = run("results demo --where \"index = 1 or error_code = 'timeout'\" --columns row,Topic,error_code")

    assert (code, err) == (0, "")
    assert out == "row\ttopic\terror_code\n1\ttopic-1\ttimeout\n3\ttopic-3\t-\n"
    assert run("results demo --where 'index = 1' --limit 3")[1].startswith("[3.1] id-3 (length, 3 tokens)\n")
    lines = run("results demo --errors --where 'row > 1' --columns tags,row --json")[1].splitlines()
    assert [json.loads(line) for line in lines] == [{"tags": ["a", "4"], "row": 4}]


def test_condition_holds_for_what_a_running_job_has_finished(run: Run, workplace: Path) -> None:
    job = make_job(workplace / "job", (2, 3))
    write_chunk(job, 0, [ok(1)])
    write_part(job, 1, [ok(2), failed(3), ok(4)])

    assert (
        run("results job --where \"status = 'ok'\" --columns row --json")[1] == '{"row": 1}\n{"row": 2}\n{"row": 4}\n'
    )


def test_table_of_no_rows_and_of_too_many_says_so_beside_it(run: Run, finished: JobDir) -> None:
    assert run("results demo --where 'row > 99' --columns row") == (0, "", "No such rows.\n")
    assert run("results demo --columns row --limit 1") == (
        0, "row\n0\n", "... and more: --limit 5 shows more of them, --json prints all.\n",
    )  # fmt: skip
    assert run("results demo --where 'row > 99'")[1] == "No such rows.\n"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--where 'finsh_reason = 1'", "character 1: there is no column 'finsh_reason'; did you mean finish_reason"),
        ("--where 'row = '", "character 7: a column or a literal is expected"),
        ("--columns row,txt", "--columns: there is no column 'txt'; did you mean text"),
    ],
)
def test_wrong_condition_or_column_is_a_wrong_command(run: Run, finished: JobDir, options: str, problem: str) -> None:
    code, out, err = run(f"results demo {options}")

    assert (code, out) == (2, "")
    assert problem in err


def test_completion_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path / "job", (1,))
    completion = ok(0, text="\x1b[2Jred\r\x07\n\u202eafter")
    write_part(job, 0, [replace(completion, request=replace(completion.request, custom_id="\x1b]0;title\x07"))])

    print_sample(finished_tables(job), 1, if_none="")

    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "red" in out


def test_long_prompts_and_texts_are_shortened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = make_job(tmp_path / "job", (1,))
    write_part(job, 0, [ok(0, text="word " * 2000)])

    print_sample(finished_tables(job), 1, if_none="")

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) < 12


# -- export -------------------------------------------------------------------------------------------------------


def test_export_writes_what_the_name_says(run: Run, finished: JobDir, tmp_path: Path) -> None:
    assert run("export demo -o out.csv") == (0, "out.csv: 7 rows\n", "")
    assert run("export demo -o out.jsonl --format openai") == (0, "out.jsonl: 6 lines\n", "")
    assert len(list(csv.reader(io.StringIO((tmp_path / "out.csv").read_text())))) == 8
    assert "response" in json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export demo", "Missing option '--output' / '-o'"),
        ("export demo -o out.xlsx", "name it .parquet, .jsonl or .csv"),
        ("export demo -o out.xlsx", 'pandas.read_csv("out.csv").to_excel("out.xlsx", index=False)'),
        ("export demo -o out.jsonl --format openai --columns row", "have no columns"),
        ("export demo -o out.csv --output-column topic", "the input has a column 'topic' itself"),
        ("export demo -o out.csv --columns rwo", "there is no column 'rwo'; did you mean row"),
        ("export demo -o out.csv --format openai", "OpenAI batch output is JSONL"),
        ("export demo -o there.csv", "there.csv: exists; --force replaces it"),
        ("export demo -o out.csv --format tsv", "Invalid value for '--format'"),
        ("export running -o out.csv", "the job is not complete (1 of 1 shard open)"),
    ],
)
def test_export_that_makes_no_sense_is_refused(
    run: Run, finished: JobDir, tmp_path: Path, line: str, message: str
) -> None:
    make_job(finished.path.parent / "running", (1,))
    (tmp_path / "there.csv").touch()

    code, out, err = run(line)

    assert (code, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out.csv").exists()


def test_export_to_standard_output_has_nothing_else_there(run: Run, finished: JobDir) -> None:
    code, out, err = run("export demo -o -")
    assert (code, err) == (0, "standard output: 6 lines\n")
    assert [json.loads(line)["custom_id"] for line in out.splitlines()] == [f"id-{row}" for row in range(6)]

    code, out, err = run("export demo -o - --type csv --columns error_code --output-column answer")
    assert (code, err) == (0, "standard output: 7 rows\n")
    assert out.splitlines()[:2] == [
        '"custom_id","topic","tags","error_code","answer"', '"id-0","topic-0","[""a"", ""0""]",,"text 0.0"',
    ]  # fmt: skip


def test_parquet_is_not_written_to_a_terminal(
    run: Run, finished: JobDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    code, out, err = run("export demo -o - --type parquet")

    assert (code, out) == (2, "")
    assert "Parquet is nothing for a terminal; name a file" in err


def test_reader_that_has_enough_ends_an_export_without_a_word(tmp_path: Path) -> None:
    finished_job(tmp_path / "job")
    script = f"{BATCHER} export job -o - --type csv | head -1"

    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )

    assert done.stdout.startswith('"row","custom_id"')
    assert "Traceback" not in done.stderr
