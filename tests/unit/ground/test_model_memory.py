"""The memory that models take, reckoned from the headers of their files, beside what llama.cpp allocates for them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

from batcher.model_memory import model_need, whole_cells
from tests.support.tiny_engine import running
from tests.support.tiny_gguf import Shape, write_tiny_gguf
from tests.support.zoo import CONTEXT_LENGTH, ZOO, write_zoo_model
from workers.engines.llama import binding
from workers.engines.llama.model import ContextSize, Model

#: So many that the hundredths of a MiB that llama.cpp tells are exact enough.
NUM_SLOTS = 64

_BUFFER = re.compile(r"(?:KV|RS) buffer size = +([0-9.]+) MiB")


@pytest.fixture
def llama_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What llama.cpp says while it opens a context."""
    lines: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def note(_level: int, text: bytes, _user_data: Any) -> None:
        lines.append(text.decode())

    monkeypatch.setattr(binding, "_keep_errors", note)
    yield lines
    monkeypatch.undo()
    llama_cpp.llama_log_set(binding._keep_errors, None)


def allocated_mib(path: Path, log: list[str]) -> float:
    model = Model(path, num_gpu_layers=0)
    try:
        model.open_context(
            ContextSize(
                num_slots=NUM_SLOTS,
                context_length=CONTEXT_LENGTH,
                max_batch_tokens=256,
                max_micro_batch_tokens=256,
                num_threads=1,
            )
        )
        return sum(float(found) for line in log for found in _BUFFER.findall(line))
    finally:
        model.close()


def predicted_mib(path: Path) -> float:
    need = model_need(path)
    assert need is not None
    return NUM_SLOTS * need.cache.slot(CONTEXT_LENGTH) / 2**20


@pytest.mark.parametrize("architecture", ZOO)
def test_predicted_cache_is_what_llama_cpp_allocates(tmp_path: Path, architecture: str, llama_log: list[str]) -> None:
    path = write_zoo_model(tmp_path / "model.gguf", architecture)

    allocated = allocated_mib(path, llama_log)

    assert allocated > 1
    assert predicted_mib(path) == pytest.approx(allocated, rel=0.05)


@pytest.mark.parametrize("architecture", ZOO)
def test_memory_limits_the_slots(tmp_path: Path, architecture: str, llama_log: list[str]) -> None:
    path = write_zoo_model(tmp_path / "model.gguf", architecture)
    need = model_need(path)
    assert need is not None
    slot = need.cache.slot(512)

    # Half of what is left beside the weights is for computing.
    with running(path, num_slots=None, context_length=512, memory=need.weights + 2 * 20 * slot) as engine:
        # Weights are a little less than their file.
        assert 20 <= engine.num_slots <= 24
        allocated = sum(float(found) for line in llama_log for found in _BUFFER.findall(line)) * 2**20
    assert 19 * slot < allocated <= 24 * slot


@pytest.mark.parametrize("architecture", ["mamba", "rwkv7", "lfm2", "granitehybrid", "falcon-h1"])
def test_state_of_recurrent_layers_counts_for_each_slot(tmp_path: Path, architecture: str) -> None:
    need = model_need(write_zoo_model(tmp_path / "model.gguf", architecture))

    assert need is not None
    assert need.cache.state > 0
    assert (need.cache.token == 0) == (architecture in {"mamba", "rwkv7"})


def test_whole_need_is_weights_and_slots(tmp_path: Path) -> None:
    shape = Shape(num_heads=4, num_kv_heads=2, head_width=16, num_layers=3)
    path = write_tiny_gguf(tmp_path / "tiny.gguf", shape=shape)

    need = model_need(path)

    assert need is not None
    assert need.cache.token == 2 * (2 + 2) * 16 * 3
    assert need.total(num_slots=5, context_length=300) == path.stat().st_size + 5 * 512 * need.cache.token
    assert whole_cells(300) == 512


def test_split_model_is_reckoned_whole(tmp_path: Path) -> None:
    shapes = {0: (64, 32), 1: (64, 96)}
    for part, (width, heads_width) in shapes.items():
        writer = gguf.GGUFWriter(tmp_path / f"m-0000{part + 1}-of-00002.gguf", "llama")
        if part == 0:
            writer.add_block_count(2)
            writer.add_head_count(4)
            writer.add_embedding_length(width)
        for name in ("attn_k", "attn_v"):
            writer.add_tensor(f"blk.{part}.{name}.weight", np.zeros((heads_width, width), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    need = model_need(tmp_path / "m-00001-of-00002.gguf")

    assert need is not None
    assert need.cache.token == 2 * 2 * (32 + 96)
    assert need.weights == sum(path.stat().st_size for path in tmp_path.glob("m-*"))
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    assert model_need(tmp_path / "m-00001-of-00002.gguf") is None


def test_what_is_no_model_has_no_need(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF and no more")
    assert model_need(tmp_path / "x.gguf") is None
    assert model_need(tmp_path / "missing.gguf") is None
