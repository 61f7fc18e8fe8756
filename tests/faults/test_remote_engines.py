"""Servers behind URLs that fail in all ways at once while a job runs: each row comes out once."""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from batcher.jobdir.folder import JobDir
from bench.peers import SERVER, find_built
from tests.support.family import Family, assert_every_row_once, write_prompts
from tests.support.fault_proxy import FAULTS, FaultProxy
from tests.support.redis_server import free_port
from tests.support.serving import serve
from tests.support.waiting import wait_for

ROWS = 500

#: Starts a server of the tiny model; gives its port. Killed in the end, with all that is under way in it.
Start = Callable[[Family, Path], contextlib.AbstractContextManager[int]]


@contextlib.contextmanager
def our_server(family: Family, model: Path) -> Iterator[int]:
    options = ("--model", f"tiny={model}", "--no-auth", "--no-work", "--slots", 8, "--threads", 1)
    with serve(family, *options) as server:
        yield server.port


@contextlib.contextmanager
def llama_server(family: Family, model: Path) -> Iterator[int]:
    folder = find_built()
    if folder is None:
        pytest.skip("llama-server is not built here; `python -m bench.peers` builds it")
    port = free_port()
    words = [folder / SERVER, "-m", model, "--port", port, "--parallel", 8, "-c", 4096, "-t", 1, "--no-ui", "--offline"]
    with (family.folder / "llama-server.log").open("ab") as log:
        process = subprocess.Popen([str(word) for word in words], stdout=log, stderr=log, env={**os.environ})
    try:
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("start", [our_server, llama_server])
def test_each_row_comes_out_once_though_the_server_is_killed_and_nearly_a_third_of_the_answers_fail(
    family: Family, model: Path, tmp_path: Path, start: Start
) -> None:
    job = JobDir(family.folder / "out")
    family.jobs.append(job.path)
    prompts = write_prompts(family.folder / "prompts.jsonl", ROWS)
    (tmp_path / "server").mkdir()
    servers = Family(tmp_path / "server")
    proxy = FaultProxy(upstream=0, share=0.3, seed=17)
    with proxy.running():
        with start(servers, model) as port:
            proxy.upstream = port
            run = family.start(
                *("run", prompts, "-o", job.path, "--engine", proxy.url, "--model", "tiny", "--slots", 64),
                *("--max-tokens", 32, "--temperature", 0, "--shard-rows", 100),
            )
            # Long before a fast server has all of them.
            wait_for(lambda: proxy.num_passed > 50, what="some rows are answered")
        num_before = proxy.num_passed
        assert num_before < ROWS
        with start(servers, model) as port:
            proxy.upstream = port
            assert run.wait() == 0, run.stderr

    rows = assert_every_row_once(job, ROWS)
    assert [row["note"] for row in rows] == [f"n{number}" for number in range(ROWS)]
    assert {row["completion_tokens"] for row in rows} == {32}
    assert {row["attempts"] for row in rows} == {1}
    assert set(proxy.num_faults) == set(FAULTS)
    assert proxy.num_faults.total() > 0.2 * ROWS
