"""Fixtures of the tests that run commands, and of those that need a broker."""

import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from batcher.broker.client import open_client
from batcher.broker.embedded import embedded_broker
from batcher.cli import run_cli
from tests.support.shard_bench import Bench
from tests.support.tiny_gguf import write_tiny_gguf

#: Runs a command line; gives its exit code, stdout and stderr.
Run = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is an empty folder, in it that of profiles, and no option comes from the environment."""
    for name in list(os.environ):
        if name.startswith("BATCHER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BATCHER_PROFILES_DIR", str(tmp_path / "profiles"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run_line(line: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_cli(shlex.split(line))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_line


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model that ends its texts now and then."""
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def broker_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_broker(tmp_path_factory.mktemp("job")) as url:
        yield url


@pytest.fixture
def client(broker_url: str) -> Iterator[redis.Redis]:
    """Of an empty broker."""
    client = open_client(broker_url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def bench(tmp_path: Path, client: redis.Redis) -> Bench:
    return Bench(tmp_path, client)
