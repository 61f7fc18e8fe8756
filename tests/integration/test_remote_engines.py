"""Servers behind URLs as engines of real commands: our own server is the one that computes."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from batcher.server.guard.auth import ApiKeys
from tests.support.family import Family, assert_every_row_once, write_prompts
from tests.support.live_server import LiveServer, live_server
from tests.support.scripted_engine import ScriptedEngine

#: What a machine without the extra `worker` has not.
ABSENT = ("llama_cpp", "numpy", "jinja2", "llguidance")


@pytest.fixture
def server() -> Iterator[LiveServer]:
    with live_server(ScriptedEngine("tiny")) as server:
        yield server


def without_llama(folder: Path) -> dict[str, str]:
    """An environment in which the modules of `ABSENT` can't be imported."""
    path = folder / "absent"
    path.mkdir()
    finder = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in {ABSENT!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    (path / "sitecustomize.py").write_text(finder)
    return {"PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def test_run_has_a_server_complete_a_file_without_llama_cpp(family: Family, server: LiveServer) -> None:
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    prompts = write_prompts(family.folder / "prompts.jsonl", 70)
    words = ["run", prompts, "-o", job.path, "--engine", f"{server.url}/v1", "--model", "mine=tiny", "--quiet"]

    run = family.run(*words, "--shard-rows", 30, code=0, env=without_llama(family.folder))

    assert "70 in = 70 ok + 0 error" in run.stdout
    rows = assert_every_row_once(job, 70)
    assert {row["model"] for row in rows} == {"mine"}
    assert [row["text"] for row in rows] == [f"<hello {i}>" for i in range(70)]
    assert {(row["prompt_tokens"], row["completion_tokens"]) for row in rows} == {(3, 2)}


def test_key_comes_from_a_file_or_the_environment_and_is_in_no_command_line(family: Family) -> None:
    prompts = write_prompts(family.folder / "prompts.jsonl", 3)
    key_file = family.folder / "key"
    key_file.write_text("geheim\n")
    with live_server(ScriptedEngine("tiny"), keys=ApiKeys(["geheim"])) as server:
        words = ["run", prompts, "--engine", f"{server.url}/v1", "--quiet"]
        outs = [family.folder / name for name in ("denied", "by_file", "by_variable")]
        family.jobs += outs

        denied = family.run(*words, "-o", outs[0], code=2)
        family.run(*words, "-o", outs[1], "--engine-key-file", key_file, code=0)
        family.run(*words, "-o", outs[2], env={"BATCHER_ENGINE_KEY": "geheim"}, code=0)

    assert "BATCHER_ENGINE_KEY" in denied.stderr
    assert not outs[0].exists()
    for out in outs[1:]:
        assert_every_row_once(JobDir(out), 3)


def test_model_that_the_server_has_not_is_refused_with_those_that_it_has(family: Family, server: LiveServer) -> None:
    prompts = write_prompts(family.folder / "prompts.jsonl", 3)

    run = family.run(
        *("run", prompts, "-o", family.folder / "out", "--engine", f"{server.url}/v1", "--model", "tinny"), code=2
    )

    assert "no model tinny there; it serves tiny" in run.stderr
