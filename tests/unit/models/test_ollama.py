"""Ollama's store is read as Ollama writes it, and what is wrong in it is said of the model that it concerns."""

import json
from pathlib import Path

import pytest

from batcher.errors import ModelError
from batcher.model_files import ModelRef
from batcher.models.ollama import Ollama
from batcher.models.resolver import parse_model
from tests.support.model_stores import OllamaStore

GEMMA = "registry.ollama.ai/library/gemma3:270m"
WEIGHTS = b"GGUF\x03\x00\x00\x00weights"


def problem(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        parse_model(name)
    return str(caught.value)


def test_model_is_found_by_the_name_that_ollama_shows(ollama: OllamaStore) -> None:
    digest = ollama.blob(WEIGHTS)
    ollama.add(GEMMA, digest)

    expected = ModelRef("gemma3:270m", ollama.path_of(digest))
    assert parse_model("gemma3:270m") == expected
    assert parse_model("ollama:gemma3:270m") == expected
    assert parse_model("mine=ollama:gemma3:270m") == ModelRef("mine", expected.path)


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("registry.ollama.ai/library/qwen3:8b", "qwen3:8b"),
        ("registry.ollama.ai/someone/tuned:latest", "someone/tuned:latest"),
        ("hf.co/Org/Tiny-GGUF:Q4_K_M", "hf.co/Org/Tiny-GGUF:Q4_K_M"),
        ("registry.example.org/library/own:v1", "registry.example.org/library/own:v1"),
    ],
)
def test_hosts_and_namespaces_are_left_out_as_ollama_does(ollama: OllamaStore, place: str, name: str) -> None:
    ollama.add(place, ollama.blob(WEIGHTS))

    assert [model.name for model in Ollama().models()] == [name]
    assert parse_model(name).name == name


def test_without_a_tag_the_latest_is_meant(ollama: OllamaStore) -> None:
    ollama.add("registry.ollama.ai/library/gemma3:latest", ollama.blob(WEIGHTS))

    assert parse_model("gemma3").name == "gemma3:latest"
    assert parse_model("ollama:gemma3").name == "gemma3:latest"


def test_store_elsewhere_is_that_of_the_variable(
    tmp_path: Path, ollama: OllamaStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama.add(GEMMA, ollama.blob(WEIGHTS))
    other = OllamaStore(tmp_path / "other")
    other.add("registry.ollama.ai/library/qwen3:8b", other.blob(WEIGHTS))
    monkeypatch.setenv("OLLAMA_MODELS", str(other.path))

    assert [model.name for model in Ollama().models()] == ["qwen3:8b"]


def test_layers_beside_the_weights_are_no_hindrance(ollama: OllamaStore) -> None:
    digest = ollama.blob(WEIGHTS)
    ollama.add(GEMMA, digest, params=ollama.blob(b"{}"), license=ollama.blob(b"l"), projector=ollama.blob(b"GGUF p"))

    assert parse_model("gemma3:270m").path == ollama.path_of(digest)


def test_dangling_blob_is_said_with_what_gets_it_again(ollama: OllamaStore) -> None:
    digest = ollama.blob(WEIGHTS)
    ollama.add(GEMMA, digest)
    ollama.path_of(digest).unlink()

    assert f"{ollama.path_of(digest)} is gone; `ollama pull gemma3:270m` gets it again" in problem("gemma3:270m")


def test_blob_that_was_cut_short_is_said(ollama: OllamaStore) -> None:
    digest = ollama.blob(WEIGHTS)
    ollama.add(GEMMA, digest)
    ollama.path_of(digest).write_bytes(WEIGHTS[:10])

    assert "has 10 bytes and should have 15; delete it, and `ollama pull gemma3:270m`" in problem("gemma3:270m")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"layers": 3}',
        b'{"layers": [1]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../etc/passwd", "size": 1}]}',
        b'{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:1", "size": "x"}]}',
        b"[" * 100_000,
    ],
)
def test_damaged_manifest_is_said_and_hides_no_other_model(ollama: OllamaStore, content: bytes) -> None:
    manifest = ollama.add(GEMMA, ollama.blob(WEIGHTS))
    ollama.add("registry.ollama.ai/library/qwen3:8b", ollama.blob(WEIGHTS))
    manifest.write_bytes(content)

    assert f"its manifest {manifest} is damaged; `ollama pull gemma3:270m` writes it again" in problem("gemma3:270m")
    assert parse_model("qwen3:8b").name == "qwen3:8b"
    assert [bool(model.problem) for model in Ollama().models()] == [True, False]


def test_model_without_weights_here_is_said(ollama: OllamaStore) -> None:
    ollama.write("registry.ollama.ai/library/kimi-k2:cloud", {"layers": None})

    assert "its manifest names no GGUF file" in problem("kimi-k2:cloud")


def test_model_with_an_adapter_is_refused_as_its_texts_would_be_others(ollama: OllamaStore) -> None:
    ollama.add(GEMMA, ollama.blob(WEIGHTS), adapter=ollama.blob(b"GGUF a"))

    assert "has an adapter, which is not applied here" in problem("gemma3:270m")


def test_weights_that_are_no_gguf_are_refused(ollama: OllamaStore) -> None:
    ollama.add(GEMMA, ollama.blob(b"something else"))

    assert "not a GGUF file" in problem("gemma3:270m")


def test_models_that_share_a_blob_are_both_there(ollama: OllamaStore) -> None:
    digest = ollama.blob(WEIGHTS)
    ollama.add(GEMMA, digest)
    ollama.add("registry.ollama.ai/someone/mine:latest", digest)

    assert parse_model("gemma3:270m").path == parse_model("someone/mine").path


def test_store_that_is_not_there_or_has_other_files_has_no_models(ollama: OllamaStore) -> None:
    (ollama.path / "manifests" / "README").write_text(json.dumps({}))
    (ollama.path / "blobs" / "sha256-1-partial").touch()

    assert list(Ollama().models()) == []
