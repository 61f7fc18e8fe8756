"""Files that are no models which complete text are told by their beginning, and refused by every command."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from batcher.errors import ModelError
from batcher.model_kinds import check_completes_text, other_kind
from tests.support.tiny_gguf import write_tiny_gguf
from tests.support.zoo import ZOO, write_zoo_model
from tests.unit.conftest import Run


def write_header(path: Path, architecture: str, *, num_tensors: int = 1, **values: Any) -> Path:
    """A file of this architecture with as much in it as tells what it is. `__` stands for a point."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    for name, value in values.items():
        key = name.replace("__", ".")
        add = writer.add_string if isinstance(value, str) else writer.add_bool if value is False else writer.add_uint32
        add(key if key.startswith(("general", "split")) else f"{architecture}.{key}", value)
    writer.add_token_list(["a", "b"])
    for number in range(num_tensors):
        writer.add_tensor(f"blk.{number}.x.weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "values", "kind"),
    [
        ("bert", {}, "an embedding model"),
        ("gemma-embedding", {}, "an embedding model"),
        ("qwen3", {"pooling_type": 3}, "an embedding model"),
        ("qwen3", {"pooling_type": 4}, "a reranking model"),
        ("bert", {"pooling_type": 4}, "a reranking model"),
        ("llama", {"attention__causal": False}, "a model that reads texts from both sides"),
        ("dream", {"attention__causal": False}, "a diffusion model"),
        ("llada", {}, "a diffusion model"),
        ("t5", {}, "an encoder-decoder model"),
        ("clip", {}, "a projector of images or sounds"),
        ("clip", {"general__type": "mmproj"}, "a projector of images or sounds"),
        ("llama", {"general__type": "adapter"}, "a LoRA adapter alone"),
        ("llama", {"general__type": "vocab"}, "a vocabulary without weights"),
        ("llama", {"num_tensors": 0}, "a vocabulary without weights"),
        ("eagle3", {}, "a draft of another model's texts"),
    ],
)
def test_what_completes_no_text_is_called_what_it_is(
    tmp_path: Path, architecture: str, values: dict[str, Any], kind: str
) -> None:
    path = write_header(tmp_path / "x.gguf", architecture, **values)

    with pytest.raises(ModelError, match=f"x.gguf: {kind}.*; give the GGUF file of a model that writes text"):
        check_completes_text(path)


@pytest.mark.parametrize(
    ("architecture", "values"),
    [
        ("llama", {"general__type": "model"}),
        ("qwen3", {"pooling_type": 0}),
        ("llama", {"num_tensors": 0, "split__count": 2}),
    ],
)
def test_models_that_complete_text_are_let_through(tmp_path: Path, architecture: str, values: dict[str, Any]) -> None:
    assert other_kind(write_header(tmp_path / "x.gguf", architecture, **values)) is None


@pytest.mark.parametrize("architecture", ZOO)
def test_the_zoo_completes_text(tmp_path: Path, architecture: str) -> None:
    assert other_kind(write_zoo_model(tmp_path / "x.gguf", architecture)) is None


def test_a_damaged_file_is_left_to_llama_cpp(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes()[:100])
    assert other_kind(path) is None
    assert other_kind(tmp_path / "missing.gguf") is None


@pytest.mark.parametrize(
    "command", ["run p.jsonl -o out", "worker --broker redis://127.0.0.1:1", "serve --no-auth", "tune"]
)
def test_every_command_refuses_it_before_anything_starts(workplace: Path, run: Run, command: str) -> None:
    write_header(workplace / "x.gguf", "bert")
    (workplace / "p.jsonl").write_text('{"prompt": "a"}\n')

    code, out, err = run(f"{command} --model x.gguf")

    assert (code, out) == (2, "")
    assert "x.gguf: an embedding model: it makes vectors of texts and writes none; give the GGUF file" in err
    assert not (workplace / "out").exists()


def test_it_is_refused_also_where_it_is_the_only_model_known(
    workplace: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "models").mkdir()
    write_header(workplace / "models" / "x.gguf", "bert")
    (workplace / "p.jsonl").write_text('{"prompt": "a", "model": "x"}\n')
    monkeypatch.setenv("BATCHER_MODELS_DIR", str(workplace / "models"))

    for command in ("run p.jsonl -o out --model x", "worker --broker redis://127.0.0.1:1 --model x"):
        code, _, err = run(command)
        assert code == 2
        assert "an embedding model" in err


def test_doctor_calls_it_what_it_is(workplace: Path, run: Run) -> None:
    write_header(workplace / "x.gguf", "clip")

    code, out, _ = run("doctor --model x.gguf")

    assert code == 1
    assert "x.gguf: a projector of images or sounds (mmproj), a part of a model" in out
