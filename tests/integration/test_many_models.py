"""More models than a worker has room for: each is loaded when somebody waits for it, and leaves for others."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from batcher.jobdir.folder import JobDir
from tests.faults.injection import inject
from tests.support.family import Family, wait_until_ready
from tests.support.job_files import result_rows
from tests.support.serving import serve
from tests.support.waiting import PATIENCE_S, wait_for

NAMES = ("ada", "bob", "eve")
ROWS = 90


@pytest.fixture
def folder(tmp_path: Path, model: Path) -> Path:
    """A folder of three models."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(model, folder / f"{name}.gguf")
    return folder


def write_rows(path: Path) -> Path:
    """Rows that name the models in turns."""
    rows = ({"prompt": f"row {i}", "model": NAMES[i % len(NAMES)], "max_tokens": 8} for i in range(ROWS))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def num_loads(log: str) -> int:
    """By the line that says how a model was set up."""
    return sum(len(re.findall(rf" {name}: \d+ slot", log)) for name in NAMES)


def assert_each_row_by_its_model(job: JobDir) -> None:
    rows = {row["row"]: row for row in result_rows(job)}
    assert list(range(ROWS)) == sorted(row["row"] for row in result_rows(job))
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert [rows[i]["model"] for i in range(ROWS)] == [NAMES[i % len(NAMES)] for i in range(ROWS)]


def test_interleaved_rows_of_three_models_take_three_loads_where_two_have_room(
    family: Family, folder: Path, redis_url: str
) -> None:
    """Many shards of each: a model is not loaded for each of its shards."""
    jobs = family.folder / "jobs"
    worker = family.start(
        *("worker", "--broker", redis_url, "--jobs-dir", jobs, "--models-dir", folder, "--max-loaded", 2),
        *("--name", "w1", "--threads", 1),
    )
    wait_until_ready(worker)

    prompts = write_rows(family.folder / "rows.jsonl")
    family.run(
        *("submit", prompts, "--broker", redis_url, "--jobs-dir", jobs, "--job-id", "job", "--shard-rows", 5), code=0
    )

    job = JobDir(jobs / "job")
    wait_for(lambda: job.is_complete, what="the job is complete")
    assert_each_row_by_its_model(job)
    assert num_loads(worker.stderr) == 3
    assert worker.stderr.count("leaves memory") == 1
    assert {info.shard: job.num_attempts(info.shard) for info in job.manifest.shards} == {
        info.shard: 1 for info in job.manifest.shards
    }


def test_urgent_job_of_a_model_that_is_not_in_memory_waits_for_no_turn(
    family: Family, folder: Path, redis_url: str
) -> None:
    """Counted in shards of the other: in the 20 seconds of its turn this worker does 80 of them."""
    jobs = family.folder / "jobs"
    worker = family.start(
        *("worker", "--broker", redis_url, "--jobs-dir", jobs, "--models-dir", folder, "--max-loaded", 1),
        *("--name", "w1", "--threads", 1, "--slots", 2),
        env=inject(slow_step_s=0.05),
    )
    wait_until_ready(worker)

    def submit(job_id: str, model: str, *options: object, rows: int) -> JobDir:
        prompts = family.folder / f"{job_id}.jsonl"
        lines = (json.dumps({"prompt": f"row {i}", "model": model, "max_tokens": 8}) for i in range(rows))
        prompts.write_text("".join(f"{line}\n" for line in lines))
        where = ("--broker", redis_url, "--jobs-dir", jobs, "--job-id", job_id)
        family.run("submit", prompts, *where, "--shard-rows", 1, *options, code=0)
        return JobDir(jobs / job_id)

    usual = submit("usual", "ada", rows=150)
    wait_for(lambda: len(usual.committed_shards()) >= 5, what="the usual job is at work")
    urgent = submit("urgent", "bob", "--priority", "urgent", rows=3)
    before = len(usual.committed_shards())
    wait_for(lambda: urgent.is_complete, what="the urgent job is complete")

    assert len(usual.committed_shards()) - before <= 20
    wait_for(lambda: usual.is_complete, what="the usual job is complete")
    assert num_loads(worker.stderr) == 3


def test_run_with_room_for_one_completes_rows_of_three(family: Family, folder: Path) -> None:
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    models = [word for name in NAMES for word in ("--model", folder / f"{name}.gguf")]

    family.run(
        *("run", write_rows(family.folder / "rows.jsonl"), "-o", job.path, "--shard-rows", 10),
        *(*models, "--max-loaded", 1, "--threads", 1),
        code=0,
    )

    assert_each_row_by_its_model(job)


def test_run_whose_model_cannot_be_loaded_ends_with_the_reason_and_is_resumed(family: Family, folder: Path) -> None:
    whole = (folder / "bob.gguf").read_bytes()
    (folder / "bob.gguf").write_bytes(whole[: len(whole) // 2])
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    models = [word for name in NAMES for word in ("--model", folder / f"{name}.gguf")]
    options = ("--max-loaded", 1, "--threads", 1)
    rows = write_rows(family.folder / "rows.jsonl")

    ended = family.run("run", rows, "-o", job.path, "--shard-rows", 10, *models, *options, code=3)

    assert str(folder / "bob.gguf") in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    (folder / "bob.gguf").write_bytes(whole)
    family.run("resume", job.path, *models, *options, code=0)
    assert_each_row_by_its_model(job)


def test_live_requests_wait_for_their_model_to_be_loaded(family: Family, folder: Path) -> None:
    options = ("--models-dir", folder, "--max-loaded", 2, "--no-auth", "--threads", 1)
    with serve(family, *options) as server, httpx.Client(base_url=server.base_url, timeout=PATIENCE_S) as client:
        assert [each["id"] for each in client.get("/models").json()["data"]] == list(NAMES)

        def ask(number: int) -> tuple[str, str, str | None]:
            name = NAMES[number % len(NAMES)]
            body = {"model": name, "prompt": f"row {number}", "max_tokens": 4, "temperature": 0}
            answer = client.post("/completions", json=body)
            assert answer.status_code == 200, answer.text
            return name, answer.json()["choices"][0]["text"], answer.json()["system_fingerprint"]

        with ThreadPoolExecutor(12) as pool:
            found = list(pool.map(ask, range(36)))

        assert [name for name, _, _ in found] == [NAMES[i % len(NAMES)] for i in range(36)]
        assert all(fingerprint for _, _, fingerprint in found)
        # The same file under three names.
        assert ask(0)[1] == found[0][1] == ask(0)[1]
    assert 3 <= num_loads(server.stderr) <= 36


def test_model_that_cannot_be_loaded_keeps_none_of_the_others_from_work(family: Family, folder: Path) -> None:
    whole = (folder / "bob.gguf").read_bytes()
    (folder / "bob.gguf").write_bytes(whole[: len(whole) // 2])
    options = ("--models-dir", folder, "--max-loaded", 2, "--no-auth", "--threads", 1)
    with serve(family, *options) as server, httpx.Client(base_url=server.base_url, timeout=PATIENCE_S) as client:
        answers = {
            name: client.post("/completions", json={"model": name, "prompt": "a", "max_tokens": 2}) for name in NAMES
        }

        assert {name: answer.status_code for name, answer in answers.items()} == {"ada": 200, "bob": 503, "eve": 200}
        assert answers["bob"].json()["error"]["message"] == (
            "the model bob can't be loaded now; the server's log says why"
        )
        assert str(folder) not in answers["bob"].text
        assert "bob.gguf" in server.stderr
