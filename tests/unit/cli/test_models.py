"""The command `models`: what is on this machine, under which name, and how it comes and goes."""

import json
import re
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


def test_model_is_shown_and_removed(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_server({"Org/Tiny-GGUF": Repository({"tiny-Q8_0.gguf": tiny.read_bytes()})}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        run("models pull hf:Org/Tiny-GGUF:Q8_0")

    shown = run("models show Org/Tiny-GGUF:Q8_0")[1]
    found = json.loads(run("models show Org/Tiny-GGUF:Q8_0 --json")[1])
    unasked = run("models remove Org/Tiny-GGUF:Q8_0")
    removed = run("models remove hf:Org/Tiny-GGUF:Q8_0 --yes")

    assert re.search(r"^Architecture +llama\nQuantization +F32\nContext +512 tokens\n", shown, re.M)
    assert re.search(r"^Memory +\S+ \S+ with 32 slots, which is free$", shown, re.M)
    assert f"Checksum      {found['checksum']}, found right" in shown
    assert Path(found["path"]).name == "tiny-Q8_0.gguf"
    assert unasked[0] == 2
    assert "give --yes, as there is no terminal to ask on (Org/Tiny-GGUF:Q8_0: 1 file, " in unasked[2]
    assert removed[:2] == (0, f"Removed Org/Tiny-GGUF:Q8_0: 1 file, {tiny.stat().st_size / 1000:.1f} kB\n")
    assert "Org/Tiny-GGUF:Q8_0" not in listed(run)


def test_model_that_cannot_be_used_is_shown_with_the_reason(run: Run, home: Path) -> None:
    store = OllamaStore(home / ".ollama" / "models")
    digest = store.blob(b"GGUF")
    store.add("registry.ollama.ai/library/gone:latest", digest)
    store.path_of(digest).unlink()

    code, out, _ = run("models show gone")

    assert code == 0
    assert re.search(r"^Problem +its file .* is gone; `ollama pull gone:latest` gets it again$", out, re.M)


def test_what_is_not_ours_is_not_removed(run: Run) -> None:
    code, _, err = run("models remove smollm2-135m --yes")

    assert code == 2
    assert "smollm2-135m was not fetched by batcher; it is part of an installed package: pip uninstall" in err


@pytest.mark.parametrize("line", ["models show none", "models remove none --yes"])
def test_name_that_is_nowhere_is_said(run: Run, line: str) -> None:
    code, _, err = run(line)

    assert code == 2
    assert "none: no such model on this machine; known: smollm2-135m. `batcher models` lists all" in err


@pytest.mark.parametrize("name", ["pull", "show", "remove"])
def test_each_command_below_it_has_a_help_that_ends_with_an_example(run: Run, name: str) -> None:
    code, out, _ = run(f"models {name} --help")

    assert code == 0
    assert re.search(rf"Example:\n +batcher models {name} \S", out)


def test_only_looking_fetches_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')
    with hub_server({}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

        validated = run("validate p.jsonl --model hf:Org/Tiny-GGUF:Q8_0")
        checked = run("doctor --model hf:Org/Tiny-GGUF:Q8_0")

    assert hub.requests == []
    assert validated[0] == 0
    assert "the model hf:Org/Tiny-GGUF:Q8_0 is not on this machine, so its tokens are not counted" in validated[2]
    assert checked[0] == 1
    lines = r"^FAIL  model hf:\S+: .*not on this machine\n +remedy: `batcher models pull hf:Org/Tiny-GGUF:Q8_0` gets it"
    assert re.search(lines, checked[1], re.M)


def test_name_for_workers_elsewhere_needs_the_quantization(run: Run, broker_url: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n')

    refused = run(f"submit p.jsonl --broker {broker_url} --model hf:Org/Tiny-GGUF")
    submitted = run(f"submit p.jsonl --broker {broker_url} --model hf:Org/Tiny-GGUF:q8_0 --job-id job")

    assert refused[0] == 2
    assert "of which quantization do the workers have it? Write hf:Org/Tiny-GGUF:QUANT" in refused[2]
    assert submitted[:2] == (0, "job\n")
    assert "for the model Org/Tiny-GGUF:Q8_0, and no worker is alive" in submitted[2]
    assert "--model hf:Org/Tiny-GGUF:Q8_0 --broker" in submitted[2]
