"""Settings of all tests, and the fixtures of those that run real processes."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from batcher.broker.embedded import folder_for
from tests.support.family import Family
from tests.support.redis_server import RedisServer
from tests.support.tiny_gguf import write_tiny_gguf

# A gate that draws other examples each time is passed or failed by chance, one with a deadline by the machine's load.
# `pytest --hypothesis-profile=explore` looks for new examples.
settings.register_profile("gate", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile("gate")

# In the background of a shell Ctrl-C is ignored, which programs inherit that a test starts. One that is handled here is
# theirs to handle again.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _no_profile_of_the_developer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `batcher tune` measured on this machine must change no test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCHER_PROFILES_DIR", str(tmp_path_factory.mktemp("profiles")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_model_of_the_developer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What other programs have on this machine must change no test."""
    empty = str(tmp_path_factory.mktemp("no-models"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"):
            patch.delenv(name, raising=False)
        for name in ("HF_HOME", "OLLAMA_MODELS", "LLAMA_CACHE"):
            patch.setenv(name, empty)
        yield


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    family = Family(tmp_path)
    yield family
    family.kill_all()
    for command in family.commands:
        command.wait()
    for job in family.jobs:
        shutil.rmtree(folder_for(job), ignore_errors=True)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Hardly ever an end of text: completions are as long as asked for, so a job takes the time that a test needs.
    return write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf", end_bias=-30.0)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    return redis_server.url
