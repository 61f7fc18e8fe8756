"""The attention that our build of llama.cpp has (scripts/llama_attention.cpp), beside exact ones: in a model beside
llama.cpp's way without flash attention in 32 bits, and alone beside one in 64 bits."""

from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.attention_op import Attention, computed, exact
from tests.support.tiny_gguf import Shape, write_tiny_gguf
from workers.engines.llama.model import BatchArrays
from workers.engines.llama.step import StepBatch

#: Tokens of each sequence: fewer and more than a tile of 64, and so many that cells are padded to 512.
LENGTHS = (1, 7, 40, 64, 65, 130, 300)
NUM_DECODES = 3

Logits = npt.NDArray[np.float32]


def has_avx2() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "avx2" in cpu.read_text(encoding="utf-8").split()


avx2 = pytest.mark.skipif(not has_avx2(), reason="written for x86-64 with AVX2 alone")


@avx2
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(Shape(), id="as many KV heads as query heads"),
        pytest.param(Shape(num_heads=9, num_kv_heads=3, head_width=64), id="SmolLM2-135M's heads"),
        pytest.param(Shape(num_heads=8, num_kv_heads=2, head_width=128), id="Llama 3's heads"),
        pytest.param(Shape(num_heads=14, num_kv_heads=2, head_width=16), id="seven to a KV head"),
        pytest.param(Shape(num_heads=5, num_kv_heads=1, head_width=80), id="a width that is no power of two"),
        pytest.param(Shape(num_heads=65, num_kv_heads=1, head_width=16), id="more query heads than rows of a tile"),
        pytest.param(Shape(head_width=8), id="narrow heads"),
    ],
)
def test_logits_are_those_of_exact_attention(tmp_path: Path, shape: Shape, num_threads: int) -> None:
    model = write_tiny_gguf(tmp_path / "tiny.gguf", shape=shape)
    exact = run_model(model, is_flash=False, kv_type=llama_cpp.GGML_TYPE_F32)

    flash = run_model(model, is_flash=True, kv_type=llama_cpp.GGML_TYPE_F16, num_threads=num_threads)

    # Five times nearer than llama.cpp's flash attention is, which this build would otherwise have.
    assert np.abs(flash - exact).max() < 0.01
    # And another first token would have shown in each sequence.
    other = run_model(model, is_flash=False, kv_type=llama_cpp.GGML_TYPE_F32, first_token=ord("z"))
    assert (np.abs(other - exact).max(axis=-1) > 0.1).all()


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    """Of the shapes and kinds that models have: with few tokens of many sequences and many of one, over few cells and
    many, of which some are hidden at the end, before a window, or in between, from some tokens or all."""
    num_sequences, num_tokens = draw(st.sampled_from([(1, 1), (1, 7), (1, 70), (2, 1), (3, 5), (2, 30), (9, 1)]))
    num_kv_heads, group = draw(st.sampled_from([(1, 1), (3, 1), (3, 3), (1, 4), (5, 2), (2, 8), (2, 15), (1, 71)]))
    width_k, width_v = draw(
        st.sampled_from([(8, 8), (24, 40), (64, 64), (80, 80), (120, 120), (128, 96), (256, 256), (576, 512)])
    )
    num_cells = draw(st.sampled_from([8, 64, 72, 256, 520]))
    window = draw(st.sampled_from([None, 1, 20, 130]))
    max_bias = draw(st.sampled_from([0.0, 0.0, 8.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    # The last tokens of sequences that are not equally long, and so short that a first token may see nothing.
    lengths = rng.integers(1, num_cells + 1, num_sequences)
    positions = lengths[:, None, None] - num_tokens + np.arange(num_tokens)[None, :, None]
    distance = positions - np.arange(num_cells)
    is_hidden = (distance < 0) | (rng.random(distance.shape) < draw(st.sampled_from([0.0, 0.1, 0.99])))
    if window is not None:
        is_hidden |= distance >= window
    return Attention(
        queries=rng.standard_normal((num_sequences, num_tokens, num_kv_heads * group, width_k), np.float32),
        keys=rng.standard_normal((num_sequences, num_cells, num_kv_heads, width_k), np.float32).astype(np.float16),
        values=rng.standard_normal((num_sequences, num_cells, num_kv_heads, width_v), np.float32).astype(np.float16),
        mask=np.where(is_hidden, -np.inf, -np.abs(distance) if max_bias else 0).astype(np.float16),
        sinks=rng.standard_normal(num_kv_heads * group, np.float32) if draw(st.booleans()) else None,
        softcap=draw(st.sampled_from([0.0, 0.0, 30.0])),
        max_bias=max_bias,
    )


@avx2
@given(attentions(), st.sampled_from([1, 2, 3, 8]))
def test_attention_of_every_kind_is_exact(attention: Attention, num_threads: int) -> None:
    found = computed(attention, num_threads=num_threads)

    # llama.cpp's own is a hundred times as far from it in most of these, as it has sums and queries in 16 bits.
    np.testing.assert_allclose(found, exact(attention), rtol=0, atol=2e-5)


@settings(max_examples=20)
@given(attentions(), st.sampled_from(["a width of keys", "a width of values", "a number of cells"]))
def test_shapes_that_fill_no_vectors_are_left_to_llama_cpp(attention: Attention, odd: str) -> None:
    if odd == "a width of keys":
        attention = replace(attention, queries=attention.queries[..., :-2], keys=attention.keys[..., :-2])
    elif odd == "a width of values":
        attention = replace(attention, values=attention.values[..., :-2])
    else:
        attention = replace(
            attention, keys=attention.keys[:, :-1], values=attention.values[:, :-1], mask=attention.mask[..., :-1]
        )

    found = computed(attention, num_threads=2)

    np.testing.assert_allclose(found, exact(attention), rtol=0, atol=0.02)


def run_model(path: Path, *, is_flash: bool, kv_type: int, num_threads: int = 2, first_token: int = ord("a")) -> Logits:
    """The logits after each prompt, and after each of some more tokens. Shape: (1 + NUM_DECODES, sequences, tokens)."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 512 * len(LENGTHS), 1024, 512
    params.n_seq_max = params.n_outputs_max = len(LENGTHS)
    params.n_threads = params.n_threads_batch = num_threads
    params.kv_unified, params.type_k, params.type_v = False, kv_type, kv_type
    params.flash_attn_type = (
        llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if is_flash else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    context = llama_cpp.llama_init_from_model(model, params)
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    arrays = BatchArrays(1024, len(LENGTHS))
    rng = np.random.default_rng(7)

    def decode(counts: list[int], starts: list[int]) -> Logits:
        """The next tokens of each sequence, drawn at random but for the first."""
        tokens = rng.integers(33, 127, sum(counts), np.int32)
        if not any(starts):
            tokens[np.cumsum([0, *counts[:-1]])] = first_token
        ends = np.cumsum(counts) - 1
        wants_logits = np.zeros(len(tokens), np.int8)
        wants_logits[ends] = 1
        batch = StepBatch(
            tokens=tokens,
            positions=np.concatenate([np.arange(at, at + n) for at, n in zip(starts, counts, strict=True)]),
            slots=np.repeat(np.arange(len(counts)), counts),
            wants_logits=wants_logits,
            counts=np.array(counts, np.int32),
            ready=(),
            started=(),
            placements=(),
        )
        arrays.fill(batch)
        assert llama_cpp.llama_decode(context, arrays.struct) == 0
        logits = llama_cpp.llama_get_logits(context)
        return np.ctypeslib.as_array(logits, (len(counts), size)).copy()

    found = [decode(list(LENGTHS), [0] * len(LENGTHS))]
    for i in range(NUM_DECODES):
        found.append(decode([1] * len(LENGTHS), [length + i for length in LENGTHS]))
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return np.stack(found)
