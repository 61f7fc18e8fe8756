"""A model with a LoRA adapter computes as the one does into which it was merged."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from batcher.errors import ModelError
from batcher.model_files import Adapter, ModelRef
from batcher.models.resolver import parse_model
from batcher.types import UNKNOWN_DEMAND, EngineConfig, SamplingParams
from tests.support.tiny_engine import choices_of
from tests.support.tiny_gguf import Shape, write_tiny_gguf
from workers.engines.llama.engine import LlamaEngine
from workers.engines.open import load_engines

RANK, ALPHA = 4, 16.0
TARGETS = ("blk.0.attn_q.weight", "blk.1.ffn_down.weight")
CONFIG = EngineConfig(num_slots=4, num_threads=1)


def read(path: Path) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in gguf.GGUFReader(path).tensors}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "base.gguf", end_bias=-30.0)


@pytest.fixture(scope="module")
def factors(base: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B of each tensor that the adapter changes, large enough to change every text."""
    rng, shapes = np.random.default_rng(7), read(base)
    return {
        name: (
            rng.standard_normal((RANK, shapes[name][1]), np.float32) / 8,
            rng.standard_normal((shapes[name][0], RANK), np.float32) / 8,
        )
        for name in TARGETS
    }


@pytest.fixture(scope="module")
def adapter(base: Path, factors: dict[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    path = base.with_name("adapter.gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", ALPHA)
    for name, (a, b) in factors.items():
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def merge(base: Path, factors: dict[str, tuple[np.ndarray, np.ndarray]], *, scale: float) -> Path:
    path = base.with_name(f"merged-{scale}.gguf")
    shutil.copy(base, path)
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.name in factors:
            a, b = factors[tensor.name]
            tensor.data[:] += scale * ALPHA / RANK * (b @ a)
    return path


def texts(models: Sequence[ModelRef]) -> Iterator[list[str]]:
    """What each model writes, all of them in one process."""
    loaded = load_engines(
        [(model.name, str(model.path)) for model in models],
        CONFIG,
        UNKNOWN_DEMAND,
        adapters=[
            (model.name, str(model.adapter.path), model.adapter.scale) for model in models if model.adapter is not None
        ],
    )
    for each in loaded:
        each.engine.start()
    prompts = [(f"prompt {number}", SamplingParams(max_tokens=24, temperature=0.0)) for number in range(8)]
    try:
        for each in loaded:
            assert isinstance(each.engine, LlamaEngine)
            yield [choice.text for choice in choices_of(each.engine, prompts)]
    finally:
        for each in loaded:
            each.engine.close()


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_adapter_writes_what_the_merged_model_does(
    base: Path, adapter: Path, factors: dict[str, tuple[np.ndarray, np.ndarray]], scale: float
) -> None:
    merged = merge(base, factors, scale=scale)

    plain, adapted, expected = texts(
        [
            ModelRef("plain", base),
            parse_model(f"tuned={base}+{adapter}:{scale:g}"),
            ModelRef("merged", merged),
        ]
    )

    assert adapted == expected
    assert sum(a != b for a, b in zip(plain, adapted, strict=True)) >= 6


def test_spec_says_base_adapter_and_scale(base: Path, adapter: Path) -> None:
    assert parse_model(f"a={base}+{adapter}") == ModelRef("a", base, Adapter(adapter, 1.0))
    tuned = parse_model(f"a={base}+{adapter}:-0.25")
    assert tuned == ModelRef("a", base, Adapter(adapter, -0.25))
    assert parse_model(f"a={tuned.file_spec}") == tuned


def test_file_with_a_plus_in_its_name_is_a_file(base: Path, adapter: Path) -> None:
    odd = base.with_name("base.gguf+adapter.gguf")
    shutil.copy(base, odd)

    assert parse_model(f"a={odd}") == ModelRef("a", odd)
    odd.unlink()


def test_what_is_wrong_with_an_adapter_is_said(base: Path, adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"base\.gguf: no LoRA adapter; give one as GGUF"):
        parse_model(f"a={base}+{base}")
    with pytest.raises(ModelError, match=r"none\.gguf: no such model file"):
        parse_model(f"a={base}+{tmp_path / 'none.gguf'}")
    with pytest.raises(ModelError, match="needs a name of its own; write NAME="):
        parse_model(f"{base}+{adapter}")
    with pytest.raises(ModelError, match="a LoRA adapter alone"):
        next(texts([ModelRef("alone", adapter)]))


def test_adapter_of_another_model_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = write_tiny_gguf(tmp_path / "other.gguf", shape=Shape(head_width=64))

    with pytest.raises(ModelError, match=r"adapter\.gguf: llama\.cpp can't load the adapter: .*; is it for this base"):
        next(texts([ModelRef("a", other, Adapter(adapter))]))
