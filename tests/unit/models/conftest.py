"""A new user's machine: no models, no tokens, nothing in the home folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_server import HubServer, hub_server
from tests.support.model_stores import OllamaStore


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, and no variable that leads elsewhere."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("BATCHER_MODELS_DIR", "HF_HOME", "OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """An empty hub, which HF_ENDPOINT names."""
    with hub_server({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def ollama(home: Path) -> OllamaStore:
    return OllamaStore(home / ".ollama" / "models")
