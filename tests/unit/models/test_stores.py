"""The folders of LM Studio and llama.cpp, the cache of the hub, and what a name means where several have it."""

import hashlib
import json
from pathlib import Path

import gguf
import pytest

from batcher.api.engines import choose_models
from batcher.errors import ModelError
from batcher.models.folder import ModelsFolder
from batcher.models.hub import HubCache, cache_folder
from batcher.models.llama_cache import LlamaCache
from batcher.models.lm_studio import LmStudio
from batcher.models.registry import all_models
from batcher.models.resolver import our_models, parse_model, served_name, spec_for
from tests.support.model_stores import OllamaStore, hub_cache

WEIGHTS = b"GGUF\x03\x00\x00\x00w"
COMMIT = "0123456789" * 4


def put(path: Path, content: bytes = WEIGHTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# -- LM Studio ----------------------------------------------------------------------------------------------------


def test_models_of_lm_studio_are_named_as_at_the_hub(home: Path) -> None:
    folder = home / ".lmstudio" / "models" / "lmstudio-community" / "Qwen3-8B-GGUF"
    file = put(folder / "Qwen3-8B-Q4_K_M.gguf")
    put(folder / "mmproj-F16.gguf")

    assert parse_model("lmstudio-community/Qwen3-8B-GGUF:Q4_K_M").path == file
    assert parse_model("lmstudio:lmstudio-community/Qwen3-8B-GGUF:Q4_K_M").path == file
    assert [model.name for model in LmStudio().models()] == ["lmstudio-community/Qwen3-8B-GGUF:Q4_K_M"]


def test_folder_that_lm_studio_was_moved_to_is_found(home: Path, tmp_path: Path) -> None:
    moved_home, moved = tmp_path / "studio", tmp_path / "disk"
    (home / ".lmstudio-home-pointer").write_text(f"{moved_home}\n")
    put(moved_home / "settings.json", json.dumps({"downloadsFolder": str(moved)}).encode())
    file = put(moved / "O" / "R" / "a-Q8_0.gguf")
    older = put(home / ".cache" / "lm-studio" / "models" / "O" / "R2" / "b-Q8_0.gguf")

    assert parse_model("lmstudio:O/R:Q8_0").path == file
    assert parse_model("lmstudio:O/R2:Q8_0").path == older


@pytest.mark.parametrize("settings", [b"", b"{", b"[]", b'{"downloadsFolder": 1}', b"\xff"])
def test_damaged_settings_of_lm_studio_hide_no_model(home: Path, settings: bytes) -> None:
    put(home / ".lmstudio" / "settings.json", settings)
    put(home / ".lmstudio" / "models" / "O" / "R" / "a-Q8_0.gguf")

    assert [model.name for model in LmStudio().models()] == ["O/R:Q8_0"]


def test_split_model_of_lm_studio_with_a_part_missing_is_said(home: Path) -> None:
    put(home / ".lmstudio" / "models" / "O" / "R" / "a-Q8_0-00001-of-00002.gguf")

    with pytest.raises(ModelError, match=r"a-Q8_0-00002-of-00002.gguf is not here; download .* again in LM Studio"):
        parse_model("O/R:Q8_0")


# -- llama.cpp ----------------------------------------------------------------------------------------------------


def test_flat_files_of_llama_cpp_are_named_after_themselves(home: Path) -> None:
    folder = home / ".cache" / "llama.cpp"
    file = put(folder / "ggml-org_gemma-3-1b-it-GGUF_gemma-3-1b-it-Q4_K_M.gguf")
    put(folder / "ggml-org_gemma-3-1b-it-GGUF_mmproj-model-f16.gguf")

    assert parse_model("ggml-org_gemma-3-1b-it-GGUF_gemma-3-1b-it-Q4_K_M").path == file
    assert len(list(LlamaCache().models())) == 1


def test_cache_of_newer_tools_is_that_of_the_hub_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(tmp_path / "llama", "O/R", {"a-Q8_0.gguf": WEIGHTS}, commit=COMMIT, revision="main")
    monkeypatch.setenv("LLAMA_CACHE", str(tmp_path / "llama"))

    assert parse_model("O/R:Q8_0").path.read_bytes() == WEIGHTS
    assert parse_model("llama.cpp:O/R").name == "O/R:Q8_0"


# -- the cache of the hub -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "home/.cache/huggingface/hub"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, "xdg/huggingface/hub"),
        ({"HF_HOME": "{}/hf", "XDG_CACHE_HOME": "{}/xdg"}, "hf/hub"),
        ({"HF_HUB_CACHE": "{}/c", "HF_HOME": "{}/hf"}, "c"),
        ({"HUGGINGFACE_HUB_CACHE": "{}/c"}, "c"),
        ({"HF_HOME": "~/hf"}, "home/hf/hub"),
    ],
)
def test_cache_is_where_the_hubs_programs_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))

    assert cache_folder() == tmp_path / expected


def test_revisions_are_told_apart(home: Path) -> None:
    cache = home / ".cache" / "huggingface" / "hub"
    hub_cache(cache, "O/R", {"a-Q8_0.gguf": WEIGHTS}, commit=COMMIT, revision="main")
    hub_cache(cache, "O/R", {"a-Q8_0.gguf": WEIGHTS + b"1"}, commit="a" * 40, revision="refs/pr/1")
    hub_cache(cache, "O/R", {"a-Q8_0.gguf": WEIGHTS + b"2"}, commit="b" * 40, revision=None)

    names = [model.name for model in HubCache().models()]

    assert names == ["O/R:Q8_0", "O/R:Q8_0@refs/pr/1", f"O/R:Q8_0@{'b' * 40}"]
    for name, content in zip(names, (WEIGHTS, WEIGHTS + b"1", WEIGHTS + b"2"), strict=True):
        assert parse_model(name).path.read_bytes() == content
    assert parse_model("O/R:Q8_0@bbbbbbb").path.read_bytes() == WEIGHTS + b"2"


def test_blob_that_is_gone_is_said(home: Path) -> None:
    snapshot = hub_cache(home / "c", "O/R", {"a-Q8_0.gguf": WEIGHTS}, commit=COMMIT, revision="main")
    (snapshot / "a-Q8_0.gguf").resolve().unlink()

    (found,) = HubCache(home / "c").models()

    assert found.problem == "its file is not here (a-Q8_0.gguf); `batcher models pull hf:O/R:Q8_0` gets what is missing"


def test_download_that_was_begun_is_listed_with_what_goes_on_with_it(home: Path) -> None:
    put(home / "c" / "models--O--R-GGUF" / "blobs" / f"{'0' * 64}.incomplete")
    put(home / "c" / "models--O--other" / "blobs" / f"{'0' * 64}.incomplete")  # of whatever it may be

    (found,) = HubCache(home / "c").models()

    assert found.name == "O/R-GGUF"
    assert found.problem == "its download was not finished; `batcher models pull hf:O/R-GGUF` goes on with it"


def test_cache_with_what_is_no_model_or_damaged_has_the_others(home: Path) -> None:
    cache = home / "c"
    hub_cache(cache, "O/R", {"a-Q8_0.gguf": WEIGHTS}, commit=COMMIT, revision="main")
    hub_cache(cache, "O/plain", {"model.safetensors": b"x"}, commit=COMMIT, revision="main")
    put(cache / "models--O--bad" / "refs" / "main", b"\xff\xfe")
    put(cache / "version.txt")
    put(cache / "datasets--O--R" / "blobs" / "x.gguf")

    assert [model.name for model in HubCache(cache).models()] == ["O/R:Q8_0"]


# -- all of them --------------------------------------------------------------------------------------------------


def test_name_that_several_have_means_the_first_and_all_can_be_named(home: Path) -> None:
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    hub_cache(home / ".cache" / "huggingface" / "hub", "O/R", {"a-Q8_0.gguf": WEIGHTS}, commit=COMMIT, revision="main")
    other = put(home / ".lmstudio" / "models" / "O" / "R" / "a-Q8_0.gguf")

    names = [model.name for model in all_models()]

    assert names == ["smollm2-135m", "O/R:Q8_0", "lmstudio:O/R:Q8_0"]
    assert parse_model("O/R:Q8_0").path.resolve().name == digest
    # The name that rows carry is the same.
    assert parse_model("lmstudio:O/R:Q8_0").name == "O/R:Q8_0"
    assert parse_model("lmstudio:O/R:Q8_0").path == other


def test_one_that_cannot_be_used_gives_way_to_one_that_can(home: Path) -> None:
    snapshot = hub_cache(
        home / ".cache" / "huggingface" / "hub", "O/R", {"a-Q8_0.gguf": WEIGHTS}, commit=COMMIT, revision="main"
    )
    (snapshot / "a-Q8_0.gguf").resolve().unlink()
    other = put(home / ".lmstudio" / "models" / "O" / "R" / "a-Q8_0.gguf")

    assert parse_model("O/R:Q8_0").path == other


def test_our_own_folder_and_files_come_before_other_programs_names(
    home: Path, ollama: OllamaStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ollama.add("registry.ollama.ai/library/mine:latest", ollama.blob(WEIGHTS))
    ollama.add("registry.ollama.ai/library/here:latest", ollama.blob(WEIGHTS))
    mine = put(tmp_path / "models" / "mine.gguf")
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    here = put(tmp_path / "here")

    assert parse_model("mine").path == mine
    assert parse_model("here").path == here
    assert parse_model("mine:latest").path != mine


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("qwen", "qwen"),
        ("gemma3:270m", "gemma3:270m"),
        ("ollama:gemma3:270m", "gemma3:270m"),
        ("hf:O/R:q4_k_m", "O/R:Q4_K_M"),
        ("hf:O/R/sub/a.gguf@v1", "O/R/sub/a.gguf@v1"),
        ("lmstudio:O/R:Q8_0", "O/R:Q8_0"),
    ],
)
def test_name_for_workers_elsewhere_follows_from_the_words(spec: str, name: str) -> None:
    assert served_name(spec) == name


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        ("gemma3:1b", "gemma3:270m"),
        ("gemma", "gemma3:270m"),
        ("GEMA3", "gemma3:270m"),
        ("qwen3-8b", "O/Qwen3-8B:Q8_0"),
    ],
)
def test_name_that_is_nowhere_gets_those_near_it(home: Path, ollama: OllamaStore, asked: str, near: str) -> None:
    ollama.add("registry.ollama.ai/library/gemma3:270m", ollama.blob(WEIGHTS))
    put(home / ".lmstudio" / "models" / "O" / "Qwen3-8B" / "a-Q8_0.gguf")

    with pytest.raises(
        ModelError, match=rf"not a known name; near it: [^.]*{near}.*`batcher models pull hf:OWNER/REPO"
    ):
        parse_model(asked)


def test_name_of_the_hubs_form_gets_the_line_that_fetches_it() -> None:
    with pytest.raises(ModelError, match="`batcher models pull hf:Qwen/Qwen3-8B-GGUF:Q4_K_M` gets one from the hub"):
        parse_model("Qwen/Qwen3-8B-GGUF:Q4_K_M")


def test_source_without_the_model_says_what_it_has(ollama: OllamaStore) -> None:
    ollama.add("registry.ollama.ai/library/gemma3:270m", ollama.blob(WEIGHTS))

    with pytest.raises(ModelError, match=r"ollama has no such model here \(it has gemma3:270m\)"):
        parse_model("ollama:qwen3:8b")


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("gemma3:270m", "gemma3:270m"),
        ("qwen3:8b", "qwen3:8b=PATH"),
        ("someone/tuned:latest", "someone/tuned:latest=PATH"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B=PATH"),
        ("Qwen/Qwen3-8B-GGUF:Q4_K_M", "hf:Qwen/Qwen3-8B-GGUF:Q4_K_M"),
        ("O/R:UD-Q4_K_XL@v1", "hf:O/R:UD-Q4_K_XL@v1"),
        ("O/R/a.gguf", "hf:O/R/a.gguf"),
    ],
)
def test_model_that_a_job_needs_is_asked_for_in_words_that_get_it(ollama: OllamaStore, name: str, spec: str) -> None:
    ollama.add("registry.ollama.ai/library/gemma3:270m", ollama.blob(WEIGHTS))

    assert spec_for(name) == spec


# -- the folder of models -----------------------------------------------------------------------------------------


def test_files_of_the_folder_that_are_no_models_are_told_apart(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them beside the only model made `which model?` of a command, and a worker of all took it for a model."""
    model = put(tmp_path / "good.gguf")
    put(tmp_path / "junk.gguf", b"<html>not found</html>")
    put(tmp_path / "empty.gguf", b"")
    projector = gguf.GGUFWriter(tmp_path / "mmproj.gguf", "clip")
    projector.write_header_to_file()
    projector.write_kv_data_to_file()
    projector.write_tensors_to_file()
    projector.close()
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path))
    left: list[str] = []

    found = choose_models((), takes_all=True, tell=left.append)

    assert [each.name for each in found] == ["good"]
    assert [line.partition("; ")[0] for line in left] == [
        f"left out: {tmp_path}/empty.gguf: not a GGUF file (it does not begin with 'GGUF')",
        f"left out: {tmp_path}/junk.gguf: not a GGUF file (it does not begin with 'GGUF')",
        f"left out: {tmp_path}/mmproj.gguf: a projector of images or sounds (mmproj), a part of a model",
    ]
    assert "good" in {each.name for each in our_models()}
    assert {each.name for each in our_models()}.isdisjoint({"junk", "empty", "mmproj"})
    assert {each.name: each.problem is None for each in ModelsFolder().models()} == {
        "empty": False,
        "good": True,
        "junk": False,
        "mmproj": False,
    }
    with pytest.raises(ModelError, match=r"junk\.gguf: not a GGUF file .*; convert the model"):
        parse_model("junk")
    assert parse_model("good").path == model
