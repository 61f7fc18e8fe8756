"""Files of models: names made of theirs, checksums, the parts of split ones."""

import hashlib
from pathlib import Path

import pytest

from batcher.errors import InputError, ModelError
from batcher.ids import is_model_name
from batcher.model_files import ModelRef, parse_sha256, quantization, safe_name, split_files, verify_sha256


def gguf(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    return path


@pytest.mark.parametrize("stem", ["é", "...", "--", "a" * 200, "-x", "a b/c", "Modèle 7B"])
def test_derived_names_are_always_usable(stem: str) -> None:
    assert is_model_name(safe_name(Path(f"{stem}.gguf")))


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
    assert quantization(Path(name).stem) == expected


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
