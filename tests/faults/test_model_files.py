"""Model files that are damaged, missing, or gone while workers restart: no row is blamed, and all come out later."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from batcher.jobdir.folder import JobDir
from tests.faults.injection import inject
from tests.support.family import (
    Family,
    assert_every_row_once,
    attempt_ends,
    chunk_rows,
    has_chunks,
    start_worker,
    submit,
    write_prompts,
)
from tests.support.waiting import wait_for

PACE = ("--slots", 4, "--lease-ttl", 5)


def truncate(path: Path) -> None:
    """Cut the weights, not the header, which says that they are there."""
    os.truncate(path, path.stat().st_size * 3 // 4)


def spoil_magic(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"FUGG")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "bad_magic": spoil_magic,
    "empty": lambda path: os.truncate(path, 0),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_unusable_model_ends_a_run_with_its_name_and_the_same_command_goes_on_once_it_is_mended(
    family: Family, model: Path, damage: str
) -> None:
    path = Path(shutil.copy(model, family.folder / "mine.gguf"))
    DAMAGES[damage](path)
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    prompts = write_prompts(family.folder / "prompts.jsonl", 10)
    command = ("run", prompts, "-o", job.path, "--model", f"tiny={path}", "--threads", 1, "--max-tokens", 4)

    refused = family.run(*command, code=2)

    assert str(path) in refused.stderr
    assert not list(job.path.glob("attempts/*/*"))
    assert family.pids() == []

    shutil.copy(model, path)
    family.run(*command, code=0)

    assert_every_row_once(job, 10)


def test_unusable_model_ends_a_worker_with_its_name(family: Family, model: Path, redis_url: str) -> None:
    path = Path(shutil.copy(model, family.folder / "mine.gguf"))
    truncate(path)

    worker = start_worker(family, redis_url, path, "w1", *PACE)

    assert worker.wait() == 2
    assert str(path) in worker.stderr
    assert "Traceback" not in worker.stderr


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_model_that_is_gone_when_a_worker_restarts_ends_it_and_another_finishes_its_rows(
    family: Family, model: Path, redis_url: str, damage: str
) -> None:
    path = Path(shutil.copy(model, family.folder / "mine.gguf"))
    job = submit(family, redis_url, rows=60, shard_rows=60, options=("--max-tokens", 16))
    first = start_worker(family, redis_url, path, "first", *PACE, env=inject(slow_step_s=0.1))
    wait_for(lambda: has_chunks(job), what="a chunk")
    child = family.child_of(first)
    assert child is not None

    # Another file in its place: whoever has the old one mapped would die of a shorter one.
    path.unlink()
    if damage == "truncated":
        shutil.copy(model, path)
        truncate(path)
    os.kill(child, signal.SIGKILL)

    assert first.wait() == 2, first.stderr
    assert str(path) in first.stderr
    assert "Traceback" not in first.stderr
    saved = chunk_rows(job)
    assert not job.committed_shards()

    start_worker(family, redis_url, model, "second", *PACE)
    wait_for(lambda: job.is_complete, what="the job is complete")
    results = {row["row"]: row for row in assert_every_row_once(job, 60)}
    assert {number: results[number] for number in saved} == saved


def test_crash_while_loading_blames_no_row(family: Family, model: Path) -> None:
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    prompts = write_prompts(family.folder / "prompts.jsonl", 10)
    broken = family.folder / "broken"
    broken.touch()
    command = ("run", prompts, "-o", job.path, "--model", f"tiny={model}", "--threads", 1, "--max-tokens", 4)
    env = inject(segfault_loading=broken)

    crashed = family.run(*command, env=env, code=2)

    assert f"{model}: the worker died while loading it (signal SIGSEGV)" in crashed.stderr
    assert not list(job.path.glob("attempts/*/*"))

    broken.unlink()
    family.run(*command, env=env, code=0)

    assert_every_row_once(job, 10)
    assert attempt_ends(job) == []


@pytest.mark.parametrize("command", ["run", "worker"])
def test_model_that_aborts_while_loading_is_reported_at_once_with_the_assertion(
    family: Family, redis_url: str, command: str
) -> None:
    path = family.folder / "none.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    # llama.cpp asserts that there are layers, and so ends the process.
    writer.add_block_count(0)
    writer.add_tensor("x.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    prompts = write_prompts(family.folder / "prompts.jsonl", 10)
    options = {
        "run": (prompts, "-o", family.folder / "out"),
        "worker": ("--broker", redis_url, "--jobs-dir", family.folder / "jobs"),
    }

    refused = family.run(command, *options[command], "--model", f"tiny={path}", code=2)

    assert f"{path}: llama.cpp gave up while loading it: llama-model.cpp:" in refused.stderr
    assert "GGML_ASSERT(hparams.n_layer_all > 0" in refused.stderr
    assert "the next one starts" not in refused.stderr
    assert not list((family.folder / "out").glob("attempts/*/*"))
