"""Two ways of users, from beginning to end: a table that gets a column, and Batcher as a part of something else."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import Batcher, clean_environment
from tests.support.kernel import open_kernel

NUM_TICKETS = 500
SAMPLE = 20
HEADER = ["ticket_id", "subject", "body", "opened"]
CHOICES = ("--choice", "billing", "--choice", "delivery", "--choice", "other")
PROMPTS = ("Sort this ticket: {subject} {body}", "Subject: {subject}\nText: {body}\nFolder:")


def write_tickets(path: Path) -> list[list[str]]:
    """A table as others write it: quotes, commas, lines within cells, cells that are empty."""
    rows = [
        [
            f"T-{i:04d}",
            f'Order "{i}", late',
            f"Where is it?\nRegards, {i}",
            f"2026-11-{i % 28 + 1:02d}" if i % 3 else "",
        ]
        for i in range(NUM_TICKETS)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])
    return rows


def rows_of(batcher: Batcher, job: str, *options: object) -> dict[str, dict[str, Any]]:
    """The result rows of a job by their ids."""
    shown = batcher("results", job, "--json", *options)
    assert shown.returncode == 0, shown.stderr
    return {row["custom_id"]: row for row in map(json.loads, shown.stdout.splitlines())}


def test_table_gets_a_column_after_samples_of_two_prompts(batcher: Batcher, model: Path, tmp_path: Path) -> None:
    tickets = write_tickets(tmp_path / "tickets.csv")

    def run(job: str, prompt: str, *options: object) -> None:
        line = ("run", "tickets.csv", "-o", job, "--model", f"tiny={model}", "--id-column", "ticket_id")
        done = batcher(*line, "--template", prompt, *CHOICES, "--threads", 1, *options)
        assert done.returncode == 0, done.stderr

    # A sample first, and the same rows by another prompt.
    for job, prompt in zip(("first", "second"), PROMPTS, strict=True):
        run(job, prompt, "--sample", SAMPLE)
    first, second = rows_of(batcher, "first"), rows_of(batcher, "second")
    assert len(first) == SAMPLE
    assert first.keys() == second.keys()
    assert all(first[name]["prompt"] != second[name]["prompt"] for name in first)
    assert {row["label"] for row in (*first.values(), *second.values())} <= {"billing", "delivery", "other"}
    changed = {name for name in first if first[name]["label"] != second[name]["label"]}
    compared = batcher("diff", "first", "second", "--json")
    assert compared.returncode == 0, compared.stderr
    found = json.loads(compared.stdout)
    assert (found["column"], found["num_equal"]) == ("label", SAMPLE - len(changed))
    assert {row["custom_id"] for row in found["changed"]} == changed

    # Then all of them, with the prompt that was better.
    run("all", PROMPTS[1])
    exported = batcher("export", "all", "-o", "joined.csv", "--output-column", "label")
    assert exported.returncode == 0, exported.stderr

    with (tmp_path / "joined.csv").open(newline="", encoding="utf-8") as file:
        header, *joined = csv.reader(file)
    assert header == [*HEADER, "label"]
    assert [row[:-1] for row in joined] == tickets
    assert {row[-1] for row in joined} <= {"billing", "delivery", "other"}

    # What one does not like is asked again, and only that.
    label = joined[0][-1]
    again = batcher("retry", "all", "--where", f"label = '{label}' and row < 100", "--set", "seed=7")
    assert again.returncode == 0, again.stderr
    before = rows_of(batcher, "all")
    resumed = batcher("resume", "all", "--model", f"tiny={model}", "--threads", 1)
    assert resumed.returncode == 0, resumed.stderr
    after = rows_of(batcher, "all")
    asked = {name for name, row in before.items() if row["label"] == label and row["row"] < 100}
    assert asked
    assert {name for name in after if after[name]["attempts"] != before[name]["attempts"]} == asked


def test_batcher_is_a_part_of_a_pipe_a_shell_and_a_notebook(batcher: Batcher, model: Path, tmp_path: Path) -> None:
    # A pipe: lines in, lines out.
    lines = "".join(json.dumps({"custom_id": f"id-{i}", "prompt": f"hello {i}"}) + "\n" for i in range(12))
    line = ("run", "-", "-o", "-", "--model", f"tiny={model}", "--max-tokens", 3, "--threads", 1)
    piped = batcher(*line, stdin=lines.encode())
    assert piped.returncode == 0, piped.stderr
    rows = [json.loads(text) for text in piped.stdout.splitlines()]
    assert [(row["custom_id"], row["completion_tokens"] <= 3) for row in rows] == [(f"id-{i}", True) for i in range(12)]

    # A notebook: a frame in, a frame out, and rows that are asked again.
    cells = f"""
import batcher, pandas
frame = pandas.DataFrame({{"prompt": ["a", "b", "c"], "topic": [1, 2, 3]}})
job = batcher.run(frame, "batcher-jobs/notebook", model={f"tiny={model}"!r}, max_tokens=2, threads=1)
first = job.results().to_pandas()
assert list(first["topic"]) == [1, 2, 3]
assert job.retry("topic = 2", set={{"max_tokens": 5, "ignore_eos": True}}) == 1
job.resume(threads=1)
second = job.results().to_pandas()
assert list(second["completion_tokens"])[1] == 5
assert second.drop(index=1).equals(first.drop(index=1))
"""
    with open_kernel(tmp_path) as kernel:
        done = kernel.finish(kernel.start(cells))
    assert done["status"] == "ok", done

    # JSON for programs, and the Tab key for people: the job of the notebook by the beginning of its name.
    status = batcher("status", "notebook", "--json")
    assert (status.returncode, json.loads(status.stdout)["num_ok"]) == (0, 3), status.stderr
    tab = 'COMP_WORDS=(batcher status no); COMP_CWORD=2; _batcher_completion batcher; echo "${COMPREPLY[@]}"'
    completed = subprocess.run(
        ["bash", "-c", f'eval "$(batcher completion bash)"; {tab}'],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert completed.stdout == "notebook\n", completed.stderr
