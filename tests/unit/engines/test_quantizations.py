"""The matrix products of our build of llama.cpp, in each type of weights, beside ggml's own plain kernels."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.bare_llama import BareLlama, Logits, quantize
from tests.support.tiny_gguf import Shape, write_tiny_gguf

#: Blocks of all types fit into its rows, and kernels that work on 64 outputs at a time into its layers.
SHAPE = Shape(num_heads=8, num_kv_heads=4, head_width=64, hidden=768, num_layers=1)

#: Of the tokens decoded together: fewer and more than the 4, 8, 16 and 32 that kernels take at a time.
NUM_ROWS = (1, 3, 7, 13, 40)
NUM_POSITIONS = 2


@pytest.fixture(scope="module")
def exact_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("exact") / "f32.gguf", shape=SHAPE)


@pytest.mark.parametrize(
    "tensor_type",
    [
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "IQ4_NL",
        "MXFP4",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_XS",
        "BF16",
    ],
)
def test_rows_together_have_the_logits_of_plain_kernels(exact_model: Path, tmp_path: Path, tensor_type: str) -> None:
    model = quantize(exact_model, tmp_path / "quantized.gguf", tensor_type=tensor_type)

    with BareLlama(model, num_sequences=max(NUM_ROWS)) as installed:
        together = {num_rows: decode_rows(installed, num_rows, num_at_once=num_rows) for num_rows in NUM_ROWS}

    # A row alone is what ggml computes by its plain dot products, where no extra kernels have weights of their own.
    with BareLlama(model, num_sequences=max(NUM_ROWS), has_extra_kernels=False) as plain:
        alone = {num_rows: decode_rows(plain, num_rows, num_at_once=1) for num_rows in NUM_ROWS}
    # In another order of adding, an activation is here and there rounded to the next of its 255 values.
    assert all(deviation(together[num_rows], alone[num_rows]) < 0.01 for num_rows in NUM_ROWS)
    # While other tokens give other logits.
    assert deviation(np.roll(alone[13], 1, axis=1), alone[13]) > 0.1


def deviation(logits: Logits, reference: Logits) -> float:
    """The root of the mean square of the differences, as a share of the logits' own."""
    return float(np.sqrt(np.mean((logits - reference) ** 2) / np.mean(reference**2)))


def decode_rows(model: BareLlama, num_rows: int, *, num_at_once: int) -> Logits:
    """The logits of random tokens of some sequences. Shape: (positions, rows, tokens)."""
    rng = np.random.default_rng(3)
    model.forget()
    found = []
    for position in range(NUM_POSITIONS):
        tokens = rng.integers(33, 127, num_rows, np.int32)
        for rows in np.split(np.arange(num_rows, dtype=np.int32), num_rows // num_at_once):
            found.append(model.decode(tokens[rows], sequences=rows, position=position).copy())
    return np.concatenate(found).reshape(NUM_POSITIONS, num_rows, -1)
