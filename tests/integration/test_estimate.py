"""`batcher estimate` on a real engine: what it says, what it keeps, and what `run` makes of that."""

import json
import math
import re
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest

import batcher
from batcher.errors import InputError
from batcher.jobdir.folder import JobDir
from tests.support.family import (
    Family,
    assert_every_row_once,
    attempt_ends,
    chunk_rows,
    has_chunks,
    start_worker,
    submit,
    wait_until_ready,
    write_prompts,
)
from tests.support.job_files import result_rows
from tests.support.waiting import wait_for
from workers.estimating.dealing import MIN_STEPS

NUM_ROWS = 60


def options(model: Path, max_tokens: int = 24) -> tuple[object, ...]:
    return ("--model", f"tiny={model}", "--max-tokens", max_tokens, "--seed", 3, "--threads", 1)


def test_run_goes_on_with_what_estimate_has_computed(family: Family, model: Path) -> None:
    prompts = write_prompts(family.folder / "prompts.jsonl", NUM_ROWS)
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    # So few tokens that rows end in the steps that are made on any machine, however short the time is.
    given = (prompts, "-o", "out", *options(model, MIN_STEPS // 2), "--shard-rows", 7)

    told = family.run("estimate", *given, "--seconds", 0.01, "--slots", 4, "--json", code=0)
    found = json.loads(told.stdout)
    kept = chunk_rows(JobDir.open(job.path))
    ran = family.run("run", *given, code=0)

    assert found["num_rows"] == NUM_ROWS
    assert 0 < found["num_done"] <= NUM_ROWS
    assert found["start_s"] <= found["low_s"] <= found["total_s"] <= found["high_s"]
    assert found["job"] == str(job.path)
    rows = assert_every_row_once(job, NUM_ROWS)
    # Rows of a shard that estimate had to its end are in its part at once.
    assert all(row == rows[number] for number, row in kept.items())
    assert f"Resuming: {found['num_done']} of {NUM_ROWS} rows done." in ran.stderr
    assert attempt_ends(job) == []
    prompt = sum(row["prompt_tokens"] for row in rows)
    completion = sum(row["completion_tokens"] for row in rows)
    assert found["prompt_tokens"] == pytest.approx(prompt, rel=0.05)
    assert found["completion_tokens"] == pytest.approx(completion, rel=0.2)
    assert family.pids(text="workers.estimating") == []


def test_rows_are_taken_from_all_over_the_job(family: Family, model: Path) -> None:
    prompts = write_prompts(family.folder / "prompts.jsonl", NUM_ROWS)

    family.run("estimate", prompts, "-o", "out", *options(model, 200), "--shard-rows", 6, "--seconds", 0.1, code=0)

    job = JobDir.open(family.folder / "out")
    assert [job.list_attempts(info.shard).last for info in job.manifest.shards] == [1] * 10


def test_without_a_folder_nothing_is_left_and_that_is_said(family: Family, model: Path) -> None:
    prompts = write_prompts(family.folder / "prompts.jsonl", 5)

    # A socket's path is short.
    with tempfile.TemporaryDirectory() as folder:
        told = family.run(
            *("estimate", prompts, *options(model), "--seconds", 1, "--price-per-million", 1_000_000),
            code=0,
            env={"TMPDIR": folder},
        )
        left = list(Path(folder).iterdir())

    lines = dict(line.split(maxsplit=1) for line in told.stdout.splitlines())
    assert lines["Rows"] == "5"
    assert lines["Kept"].startswith("nothing")
    assert lines["Measured"] == "5 completions"
    assert "Running rows of tiny, for about 1 s ..." in told.stderr
    assert {"Tokens", "Time", "Speed", "Memory", "Measured", "Engine"} < lines.keys()
    # All were computed, so there is nothing to guess: a token costs one.
    num_tokens = sum(int(word.replace(",", "")) for word in lines["Tokens"].split() if word[0].isdigit())
    assert float(lines["Cost"].replace(",", "")) == num_tokens
    assert left == []


def test_interrupted_it_keeps_what_is_finished_and_blames_no_row(family: Family, model: Path) -> None:
    prompts = write_prompts(family.folder / "prompts.jsonl", 4 * NUM_ROWS)
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    given = (prompts, "-o", "out", *options(model, 300), "--slots", 2)

    command = family.start("estimate", *given, "--seconds", 600)
    wait_for(lambda: has_chunks(job), what="the first rows are saved")
    command.process.send_signal(signal.SIGINT)

    assert command.wait() == 130
    assert family.pids() == []
    assert list(job.path.glob("attempts/*/*.journal")) == []
    kept = chunk_rows(JobDir.open(job.path))
    assert kept
    family.run("run", *given[:-2], code=0)
    rows = assert_every_row_once(job, 4 * NUM_ROWS)
    assert {rows[number]["text"] for number in kept} == {row["text"] for row in kept.values()}


def test_what_cannot_be_estimated_is_said(family: Family, model: Path) -> None:
    prompts = write_prompts(family.folder / "prompts.jsonl", 2)
    given = (prompts, *options(model))

    family.run("run", *given, "-o", "out", code=0)
    complete = family.run("estimate", *given, "-o", "out", code=2)
    other = family.run("estimate", *given, "-o", "out", "--sample", 1, code=2)
    prices = family.run("estimate", *given, "--price-per-hour", 1, "--price-per-million", 1, code=2)
    (family.folder / "bad.jsonl").write_text('{"prompt": 5}\n{"prompt": "a", "top_p": 7}\n')
    nothing = family.run("estimate", "bad.jsonl", *options(model), "--allow-bad-rows", code=2)

    free = family.run("estimate", "bad.jsonl", *options(model), "--price-per-hour", "nan", code=2)

    assert "'nan' is not a finite number" in free.stderr
    # Nothing was run, so nothing is said of it.
    assert not [each for each in (complete, other, prices, nothing, free) if "Running rows" in each.stderr]
    assert "this job is complete" in complete.stderr
    assert "of all rows of the input, and this is one of a sample of 1 row" in other.stderr
    assert "--price-per-hour and --price-per-million contradict each other" in prices.stderr
    assert "no row of the input can be computed" in nothing.stderr


def test_python_says_the_same_and_prints_nothing(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"hello {number}"} for number in range(8)]
    given: dict[str, Any] = {"model": f"tiny={model}", "max_tokens": 5, "threads": 1, "seed": 1}

    found = batcher.estimate(rows, tmp_path / "out", seconds=5, price_per_hour=3600, **given)
    job = batcher.run(rows, tmp_path / "out", **given)

    assert capfd.readouterr() == ("", "")
    assert isinstance(found, batcher.Estimate)
    assert (found.num_rows, found.num_done, found.job) == (8, 8, str(tmp_path / "out"))
    assert found.cost == pytest.approx(found.total_s)
    assert len(result_rows(JobDir(job.path))) == 8
    with pytest.raises(InputError, match="contradict"):
        batcher.estimate(rows, price_per_hour=1, price_per_million=1, **given)
    with pytest.raises(InputError, match="seconds is 0"):
        batcher.estimate(rows, seconds=0, **given)
    for price in (-1, math.nan, math.inf):
        with pytest.raises(InputError, match=f"price_per_hour is {price}"):
            batcher.estimate(rows, price_per_hour=price, **given)


def test_a_fleet_is_estimated_by_what_it_has_done_and_computes_nothing(
    family: Family, model: Path, redis_url: str
) -> None:
    jobs = family.folder / "jobs"
    prompts = write_prompts(family.folder / "all.jsonl", 200)
    given = ("--fleet", "--jobs-dir", jobs, "--model", "tiny", "--max-tokens", 24)

    nobody = family.run("estimate", prompts, *given, code=2)
    wait_until_ready(*(start_worker(family, redis_url, model, name) for name in ("w1", "w2")))
    unknown = family.run("estimate", prompts, *given, code=2)
    sample = submit(family, redis_url, rows=48, shard_rows=6, options=("--max-tokens", 24))
    wait_for(lambda: sample.is_complete, what="the sample is complete")
    found = json.loads(family.run("estimate", prompts, *given, "--shard-rows", 6, "--json", code=0).stdout)
    told = family.run("estimate", prompts, *given, "--price-per-hour", 2, code=0)
    whole = submit(family, redis_url, rows=200, shard_rows=6, options=("--max-tokens", 24))
    wait_for(lambda: whole.is_complete, what="the whole is complete")

    assert f"{jobs}: no worker with the model tiny is alive there. Start one" in nobody.stderr
    assert f"{jobs}: no job there has answers of the model tiny" in unknown.stderr
    assert (found["workers"], found["jobs"], found["num_rows"]) == (["w1", "w2"], [sample.job_id], 200)
    assert 0 < found["low_s"] <= found["total_s"] <= found["high_s"]
    rows = assert_every_row_once(whole, 200)
    assert found["prompt_tokens"] == pytest.approx(sum(row["prompt_tokens"] for row in rows), rel=0.05)
    assert found["completion_tokens"] == pytest.approx(sum(row["completion_tokens"] for row in rows), rel=0.2)
    lines = dict(re.split(r" {2,}", line, maxsplit=1) for line in told.stdout.splitlines())
    assert lines["Workers"].startswith("w1, w2")
    assert lines["Reckoned by"] == f"48 completions of the job {sample.job_id}"
    assert {"Rows", "Tokens", "Time", "Speed", "Cost"} < lines.keys()
    assert sorted(path.name for path in jobs.iterdir() if path.name[0] != ".") == sorted([sample.job_id, whole.job_id])


def test_what_means_nothing_to_a_fleet_is_refused(family: Family, model: Path, tmp_path: Path) -> None:
    prompts = write_prompts(family.folder / "prompts.jsonl", 2)
    fleet = ("estimate", prompts, "--model", "tiny", "--fleet")

    mine = family.run(*fleet, "--threads", 1, "-o", "out", "--engine", "http://127.0.0.1:9/v1", code=2)
    two = family.run(*fleet, "--model", "other", code=2)
    alone = family.run("estimate", prompts, *options(model), "--jobs-dir", tmp_path, code=2)

    assert "--output, --engine, --threads: with --fleet nothing is computed here; leave it out" in mine.stderr
    assert "tiny, other: of a fleet give one model" in two.stderr
    assert "--jobs-dir is where the workers of a fleet are; give --fleet as well" in alone.stderr
    with pytest.raises(InputError, match="out, threads: with fleet=True nothing is computed here"):
        batcher.estimate([{"prompt": "a"}], "out", model="tiny", fleet=True, threads=1)
    with pytest.raises(InputError, match="give fleet=True as well"):
        batcher.estimate([{"prompt": "a"}], model=model, jobs_dir=tmp_path)
