"""The matrix kernels of this build, beside llama.cpp's plain ones: alone, and under a whole model."""

from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from tests.support.tiny_gguf import Shape, write_tiny_gguf
from workers.engines.llama import kernels

#: By llama.h, `enum llama_ftype`: those that have kernels of their own on some x86-64 processor.
QUANTIZATIONS = {"F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18, "IQ4_XS": 30}

#: Tokens of a batch: for AMX a kernel of its own, tiles in part, and tiles all full.
NUM_TOKENS = (1, 8, 31, 32)

Logits = dict[int, npt.NDArray[np.float32]]


def test_kernels_for_this_processor_compute_what_plain_ones_do() -> None:
    checks = list(kernels.check_kernels())

    assert [check for check in checks if not check.is_sound] == []
    amx = [check.types for check in checks if check.layout == "AMX"]
    types = ("f16", "q4_0", "q4_1", "q8_0", "q4_K", "q5_K", "q6_K", "iq4_xs")
    assert amx == ([types] if kernels.is_built_for_amx() else [])


def test_a_kernel_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = kernels._Ggml.multiply

    def multiply_wrong(self: kernels._Ggml, layout: int, kind: int, weights: bytes, inputs: Any) -> Any:
        products = multiply(self, self.plain_layout, kind, weights, inputs)
        # Also where weights are not laid out anew.
        if products is not None and self.type_name(kind) == "q4_K":
            products[-1, -1] += 0.1 * products.std() * (len(inputs) == 17)
        return products

    monkeypatch.setattr(kernels._Ggml, "multiply", multiply_wrong)
    monkeypatch.setattr(kernels._Ggml, "extra_layouts", lambda self: iter([0]))
    monkeypatch.setattr(kernels._Ggml, "layout_name", lambda self, layout: "AMX")

    (check,) = kernels.check_kernels()

    assert not check.is_sound
    assert (check.layout, check.worst) == ("AMX", "q4_K x 17")


@pytest.fixture(scope="module")
def full_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its rows have whole blocks of every quantization."""
    shape = Shape(num_heads=4, num_kv_heads=2, head_width=64, hidden=768)
    return write_tiny_gguf(tmp_path_factory.mktemp("full") / "f32.gguf", shape=shape)


@pytest.mark.parametrize("ftype", [pytest.param(ftype, id=name) for name, ftype in QUANTIZATIONS.items()])
def test_logits_are_those_of_plain_kernels(full_model: Path, tmp_path: Path, ftype: int) -> None:
    quantized = tmp_path / "quantized.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = ftype, True, 1
    assert llama_cpp.llama_model_quantize(str(full_model).encode(), str(quantized).encode(), params) == 0

    plain = run_model(quantized, has_own_kernels=False)
    own = run_model(quantized, has_own_kernels=True)

    exact = run_model(full_model, has_own_kernels=False)
    for num_tokens in NUM_TOKENS:
        scale = plain[num_tokens].std()
        # An activation that is halfway between two steps of 8 bits may be rounded either way.
        assert np.abs(own[num_tokens] - plain[num_tokens]).max() < 0.1 * scale
        loss = np.square(plain[num_tokens] - exact[num_tokens]).mean()
        assert np.square(own[num_tokens] - exact[num_tokens]).mean() < 1.05 * loss + 1e-6 * scale**2


def run_model(path: Path, *, has_own_kernels: bool) -> Logits:
    """The logits of each token of a sequence, by its length. Shape: (tokens, vocabulary)."""
    params = llama_cpp.llama_model_default_params()
    params.use_extra_bufts = has_own_kernels
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.n_threads = settings.n_threads_batch = 2
    context = llama_cpp.llama_init_from_model(model, settings)
    num_words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    logits: Logits = {}
    for num_tokens in NUM_TOKENS:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch = llama_cpp.llama_batch_init(num_tokens, 0, 1)
        batch.n_tokens = num_tokens
        for index in range(num_tokens):
            batch.token[index] = (index * 37 + num_tokens) % 250
            batch.pos[index], batch.n_seq_id[index], batch.logits[index] = index, 1, 1
            batch.seq_id[index][0] = 0
        assert llama_cpp.llama_decode(context, batch) == 0
        logits[num_tokens] = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (num_tokens, num_words)).copy()
        llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return logits
