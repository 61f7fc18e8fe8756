"""What an engine is, in a few characters."""

import re
from pathlib import Path

import pytest

import batcher
from batcher.errors import ModelError
from workers.engines.fingerprint import system_fingerprint

SIZE = 5 << 20


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(SIZE))
    return path


def test_fingerprint_is_that_of_the_content_and_not_of_the_name(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(model.read_bytes())

    found = system_fingerprint(model, backend="b")

    assert re.fullmatch(r"fp_[0-9a-f]{12}", found)
    assert found == system_fingerprint(model, backend="b") == system_fingerprint(copy, backend="b")


def test_another_version_or_backend_has_another_fingerprint(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {system_fingerprint(model, backend=backend) for backend in ("b", "c")}
    monkeypatch.setattr(batcher, "__version__", "99")
    found.add(system_fingerprint(model, backend="b"))

    assert len(found) == 3


@pytest.mark.parametrize("begin", [0, 1 << 20, SIZE // 2, SIZE - 200_000])
def test_weights_that_differ_anywhere_have_another_fingerprint(model: Path, begin: int) -> None:
    before = system_fingerprint(model, backend="b")
    with model.open("r+b") as file:
        file.seek(begin)
        # What a layer of the smallest models has.
        file.write(b"x" * 200_000)

    assert system_fingerprint(model, backend="b") != before


def test_longer_file_of_the_same_bytes_has_another_fingerprint(model: Path) -> None:
    before = system_fingerprint(model, backend="b")
    model.write_bytes(bytes(SIZE + 1))

    assert system_fingerprint(model, backend="b") != before


@pytest.mark.parametrize("size", [0, 1, 100])
def test_small_file_is_read_whole(tmp_path: Path, size: int) -> None:
    path = tmp_path / "small.gguf"
    found = set()
    for last in b"ab":
        path.write_bytes((b"x" * size)[:-1] + bytes([last]) * min(size, 1))
        found.add(system_fingerprint(path, backend="b"))

    assert len(found) == (2 if size else 1)


def test_each_file_of_a_split_model_counts(tmp_path: Path) -> None:
    first, second = (tmp_path / f"m-0000{number}-of-00002.gguf" for number in (1, 2))
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    before = system_fingerprint(first, backend="b")

    second.write_bytes(b"3")

    assert system_fingerprint(first, backend="b") != before


def test_model_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the model file"):
        system_fingerprint(tmp_path / "none.gguf", backend="b")
