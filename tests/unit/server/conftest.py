"""Fixtures of the tests of the server."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from batcher.server.app import Api
from tests.support.api_bench import make_files_and_batches, served
from tests.support.batch_bench import BatchBench
from tests.support.scripted_engine import Latch


@pytest.fixture
def bench(tmp_path: Path) -> BatchBench:
    return BatchBench(tmp_path / "jobs")


@pytest.fixture
def app(bench: BatchBench) -> Api:
    """Files and batches alone."""
    return make_files_and_batches(bench)


@pytest.fixture
def client(app: Api) -> Iterator[openai.OpenAI]:
    with served(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        yield client


@pytest.fixture
def latch() -> Latch:
    """Closed, so that requests are held."""
    return Latch()
