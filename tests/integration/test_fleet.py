"""A fleet at work as its operator sees it: `batcher workers`, and workers that work where they should not."""

import json
import os
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import batcher
from tests.faults.injection import inject
from tests.support.family import Command, Family, assert_every_row_once, start_worker, submit, wait_until_ready
from tests.support.waiting import wait_for

ROWS = 96
#: So that signs of life come every second.
HASTY = ("--lease-ttl", 6)


def workers_of(family: Family, jobs: Path, *options: object) -> dict[str, dict[str, Any]]:
    """What `batcher workers --json` says, by name."""
    command = family.run("workers", "--json", "--jobs-dir", jobs, *options, code=0)
    return {each["name"]: each for each in map(json.loads, command.stdout.splitlines())}


def test_workers_at_work_show_their_shards_slots_and_rate_and_their_crashes(
    family: Family, model: Path, redis_url: str
) -> None:
    jobs = family.folder / "jobs"
    # A fast machine would be done before a sign of life has told of it.
    slow = inject(slow_step_s=0.02)
    workers = [start_worker(family, redis_url, model, name, *HASTY, env=slow) for name in ("w1", "w2")]
    wait_until_ready(*workers)
    job = submit(family, redis_url, rows=ROWS, shard_rows=ROWS // 8)

    def busy() -> dict[str, batcher.Worker]:
        found = {each.name: each for each in batcher.workers(jobs_dir=jobs)}
        is_at_work = all(each.num_running and each.tokens_per_s and each.shards for each in found.values())
        return found if len(found) == 2 and is_at_work else {}

    found = wait_for(busy, what="both work, and have said so")
    for worker in found.values():
        assert worker.state == "alive"
        assert 0 < worker.num_running <= worker.num_slots
        assert {held.job_id for held in worker.shards} == {job.job_id}

    child = wait_for(lambda: family.child_of(workers[0]), what="the child of w1")
    os.kill(child, signal.SIGKILL)
    crashed = wait_for(
        lambda: (each := workers_of(family, jobs)["w1"])["num_crashes"] and each, what="the crash is counted"
    )
    assert "SIGKILL" in crashed["last_crash"]

    wait_for(lambda: job.is_complete, what="the job is complete")
    assert_every_row_once(job, ROWS)


def test_worker_in_a_wrong_folder_is_named_and_takes_no_message_of_others(
    family: Family, model: Path, redis_url: str
) -> None:
    jobs, wrong = family.folder / "jobs", family.folder / "wrong"
    stray = start_worker(family, redis_url, model, "stray", "--jobs-dir", wrong)
    wait_until_ready(stray)

    prompts = family.folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n' * 40)
    command = family.run(
        *("submit", prompts, "--model", "tiny", "--max-tokens", 8, "--shard-rows", 4, "--job-id", "job"),
        *("--broker", redis_url, "--jobs-dir", jobs),
        code=0,
    )
    assert "40 rows wait for the model tiny, and no worker is alive" in command.stderr
    assert f"In another jobs folder, and so of no use to it, is stray on {os.uname().nodename}: in {wrong}" in (
        command.stderr
    )

    right = start_worker(family, redis_url, model, "right")
    wait_until_ready(right)
    job = batcher.open("job", jobs_dir=jobs)
    job.wait(timeout=120)

    found = workers_of(family, jobs, "--broker", redis_url)
    assert {name: each["state"] for name, each in found.items()} == {"right": "alive", "stray": "elsewhere"}
    assert found["stray"]["folder"] == str(wrong)
    assert {row["worker"] for row in job.results().to_table().to_pylist()} == {"right"}
    assert "dropped" not in stray.stderr
    # Who comes second to a broker is told that the other is elsewhere.
    wait_for(lambda: f"stray on {os.uname().nodename} works in {wrong}" in right.stderr, what="the log names the stray")
    doctor = family.run("doctor", "--broker", redis_url, "--jobs-dir", jobs)
    assert f"stray on {os.uname().nodename}: in {wrong} (tiny)" in doctor.stdout

    stop(stray)
    assert set(workers_of(family, jobs, "--broker", redis_url)) == {"right"}


def test_worker_in_a_copy_of_the_folder_is_named(family: Family, model: Path, redis_url: str) -> None:
    jobs, copy = family.folder / "jobs", family.folder / "copy"
    wait_until_ready(start_worker(family, redis_url, model, "right"))
    copy.mkdir()
    (copy / ".scope").write_bytes((jobs / ".scope").read_bytes())
    wait_until_ready(start_worker(family, redis_url, model, "copied", "--jobs-dir", copy))

    found = workers_of(family, jobs, "--broker", redis_url)

    assert {name: each["state"] for name, each in found.items()} == {"right": "alive", "copied": "in a copy"}


def stop(worker: Command) -> None:
    os.kill(worker.pid, signal.SIGTERM)
    assert worker.wait() == 0


def lines_of(command: Command) -> list[dict[str, Any]]:
    """What a command wrote to stderr, each line an object."""
    return [dict(json.loads(line)) for line in command.stderr.splitlines()]


def test_log_of_a_worker_says_what_its_shards_came_to(family: Family, model: Path, redis_url: str) -> None:
    worker = start_worker(family, redis_url, model, "w1")
    wait_until_ready(worker)
    job = submit(family, redis_url, rows=8, shard_rows=4, options=("--max-tokens", 8))
    wait_for(lambda: job.is_complete, what="the job is complete")

    wait_for(lambda: worker.stderr.count("committed") == 2, what="both shards are in the log")
    found = re.findall(
        r" w1 INFO shard \d of \S+: committed, 4 rows, ([\d,]+) tokens, [\d,]+ tokens/s$", worker.stderr, re.M
    )
    assert found == ["32", "32"]


def test_log_in_json_has_every_line_of_worker_and_child_as_an_object(
    family: Family, model: Path, redis_url: str
) -> None:
    worker = start_worker(family, redis_url, model, "w1", "--log-format", "json")
    wait_until_ready(worker)
    job = submit(family, redis_url, rows=8, shard_rows=4, options=("--max-tokens", 8))
    wait_for(lambda: job.is_complete, what="the job is complete")
    wait_for(lambda: worker.stderr.count("committed") == 2, what="both shards are in the log")
    child = wait_for(lambda: family.child_of(worker), what="the child")
    os.kill(child, signal.SIGKILL)
    wait_for(lambda: "its process died" in worker.stderr, what="the crash is in the log")
    stop(worker)

    lines = lines_of(worker)
    assert {line["worker"] for line in lines} == {"w1"}
    shards = [line for line in lines if "committed" in line["message"]]
    figures = [(line["job"], line["rows"], line["errors"], line["tokens"]) for line in shards]
    assert figures == [(job.job_id, 4, 0, 32)] * 2
    assert {line["shard"] for line in shards} == {0, 1}
    (died,) = [line for line in lines if "its process died" in line["message"]]
    assert (died["level"], died["logger"]) == ("WARNING", "batcher.workers.process.supervisor")
    assert lines[-1]["message"].startswith("Stopped; finished rows are kept")


def test_level_and_format_come_from_the_environment_and_a_command_that_fails_says_so_in_json(
    family: Family, model: Path, redis_url: str
) -> None:
    env = {"BATCHER_LOG_FORMAT": "json", "BATCHER_LOG_LEVEL": "error"}
    broken = family.folder / "broken.gguf"
    broken.write_bytes(model.read_bytes()[:1000])
    command = family.start(
        *("worker", "--broker", redis_url, "--jobs-dir", family.folder / "jobs", "--model", f"tiny={broken}"), env=env
    )

    assert command.wait() != 0
    *_, last = lines_of(command)
    assert (last["level"], last["logger"]) == ("ERROR", "batcher.stderr")
    assert last["message"].startswith("Error: ")


def test_run_logs_in_json_too(family: Family, model: Path) -> None:
    prompts = family.folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n' * 4)

    command = family.run(
        *("run", prompts, "-o", family.folder / "out", "--model", model, "--max-tokens", 4, "--log-format", "json"),
        *("--log-level", "info"),
        code=0,
    )

    lines = lines_of(command)
    assert any(": committed, 4 rows, 16 tokens" in line["message"] for line in lines)
    assert any(line["message"].startswith("Submitted 4 rows") for line in lines)


def test_server_logs_in_json_too(family: Family, model: Path) -> None:
    server = family.start(
        *("serve", "--model", f"tiny={model}", "--no-auth", "--port", 0, "--jobs-dir", family.folder / "jobs"),
        *("--threads", 1, "--log-format", "json"),
    )
    wait_for(lambda: "Serving" in server.stdout, what="the server is ready")
    stop(server)

    messages = [line["message"] for line in lines_of(server)]
    assert any(message.startswith("stopping: requests may finish") for message in messages)
    assert messages[-1].startswith("Stopped; ")


def test_metrics_of_a_worker_go_on_over_the_death_of_its_process(family: Family, model: Path, redis_url: str) -> None:
    worker = start_worker(family, redis_url, model, "w1", "--metrics-port", 0)
    wait_until_ready(worker)
    (url,) = re.findall(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", worker.stderr)

    def metrics() -> dict[str, float]:
        with urllib.request.urlopen(url) as answer:
            lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}

    idle = metrics()
    assert idle['batcher_worker_up{worker="w1"}'] == 1
    assert idle['batcher_model_loaded{model="tiny"}'] == 1
    job = submit(family, redis_url, rows=8, shard_rows=4, options=("--max-tokens", 8))
    wait_for(lambda: job.is_complete, what="the job is complete")
    wait_for(lambda: metrics().get('batcher_completion_tokens_total{model="tiny"}') == 64, what="all tokens are told")
    done = wait_for(
        lambda: (now := metrics()).get('batcher_shard_runs_total{outcome="committed"}') == 2 and now,
        what="both shards are told",
    )
    assert done['batcher_rows_saved_total{code="",status="ok"}'] == 8

    os.kill(wait_for(lambda: family.child_of(worker), what="the child"), signal.SIGKILL)

    dead = wait_for(
        lambda: (now := metrics())['batcher_worker_crashes{worker="w1"}'] == 1 and now, what="the crash is told"
    )
    assert dead['batcher_worker_up{worker="w1"}'] == 0
    assert dead['batcher_rows_saved_total{code="",status="ok"}'] == 8
    wait_for(lambda: metrics()['batcher_worker_up{worker="w1"}'] == 1, what="the next process is up")
    assert metrics()['batcher_completion_tokens_total{model="tiny"}'] == 64
    stop(worker)
