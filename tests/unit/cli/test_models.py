"""The command `models`: what is on this machine, under which name, and how it comes and goes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import Repository, hub_server
from tests.support.model_stores import OllamaStore
from tests.unit.conftest import Run


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home folder, with the models of nobody."""
    for name in ("HF_HOME", "OLLAMA_MODELS", "LLAMA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def listed(run: Run) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in map(json.loads, run("models --json")[1].splitlines())}


def test_models_are_listed_with_what_their_files_say(
    run: Run, tmp_path: Path, tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine-Q4_0.gguf").write_bytes(tiny.read_bytes())
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path))
    store = OllamaStore(home / ".ollama" / "models")
    store.add("registry.ollama.ai/library/mine:latest", store.blob_of(tiny))

    rows = listed(run)

    mine = rows["mine-Q4_0"]
    assert (mine["source"], mine["architecture"]) == ("folder", "llama")
    assert mine["quantization"] == "F32"  # by its header, whatever its name says
    assert mine["num_bytes"] == tiny.stat().st_size
    assert mine["path"] == str(tmp_path / "mine-Q4_0.gguf")
    assert mine["fits"] is True
    assert mine["memory_bytes"] > mine["num_bytes"]
    assert rows["mine:latest"]["source"] == "ollama"


def test_table_has_a_line_for_each_also_for_those_that_cannot_be_used(
    run: Run, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torn.gguf").write_bytes(b"GGUF" + b"\0" * 1_999_996)
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path))
    store = OllamaStore(home / ".ollama" / "models")
    digest = store.blob(b"GGUF")
    store.add("registry.ollama.ai/library/gone:latest", digest)
    store.path_of(digest).unlink()

    code, out, _ = run("models")

    assert code == 0
    lines = {line.split()[0]: line.split(maxsplit=8)[1:] for line in out.splitlines()}
    assert lines["torn"] == ["folder", "-", "-", "-", "2.0", "MB", "-", str(tmp_path / "torn.gguf")]
    assert "is gone; `ollama pull gone:latest` gets it again" in out


def test_model_of_the_hub_is_pulled_and_listed(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server({"Org/Tiny-GGUF": Repository({"tiny-Q8_0.gguf": tiny.read_bytes()})}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

        code, out, err = run("models pull hf:Org/Tiny-GGUF:Q8_0")

    assert code == 0, err
    assert out.startswith("Org/Tiny-GGUF:Q8_0 is here and whole: ")
    assert listed(run)["Org/Tiny-GGUF:Q8_0"]["source"] == "hf"


@pytest.mark.parametrize("name", ["gemma3:270m", "/data/m.gguf", "ollama:gemma3:270m"])
def test_what_is_not_of_the_hub_cannot_be_pulled(run: Run, name: str) -> None:
    code, _, err = run(f"models pull {name}")

    assert code == 2
    assert "models are fetched from the hub only, by names that begin with hf: ; write hf:OWNER/REPO:QUANT" in err
