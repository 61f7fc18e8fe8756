"""llama.cpp alone, without our engine around it: quantizes models, and decodes a token of each sequence at a time."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from workers.engines.llama.binding import llama_cpp
from workers.engines.llama.model import BatchArrays
from workers.engines.llama.step import StepBatch

#: By the names that they have in GGUF files. (ggml.h, enum ggml_type)
GGML_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30, "MXFP4": 39,
}  # fmt: skip

#: Tokens of each sequence.
CONTEXT_LENGTH = 256


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _drop_log(_level: int, _text: bytes, _user_data: Any) -> None:
    """llama.cpp says hundreds of lines of each model."""


Logits = npt.NDArray[np.float32]


def quantize(source: Path, target: Path, *, tensor_type: str) -> Path:
    """Write `source` with all its matrices as `tensor_type`, and return `target`. llama.cpp logs each to stderr."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.allow_requantize = True
    # A label here, as all names get `tensor_type`; as one of 32 or 16 bits it would have nothing quantized.
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    overrides = (llama_cpp.llama_model_tensor_override * 2)()
    overrides[0].pattern, overrides[0].type = b".*", GGML_TYPES[tensor_type]
    params.tt_overrides = overrides
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        raise RuntimeError(f"{source} can't be quantized as {tensor_type}")
    return target


class BareLlama:
    """A model with a context. Sequences share nothing, as in our engine."""

    def __init__(
        self,
        path: Path,
        *,
        num_sequences: int,
        num_threads: int = 2,
        has_extra_kernels: bool = True,
    ) -> None:
        """Load it. Without `has_extra_kernels` weights stay as they are in the file (`use_extra_bufts`): no AMX, and
        nothing repacked."""
        llama_cpp.llama_log_set(_drop_log, None)
        model_params = llama_cpp.llama_model_default_params()
        model_params.use_extra_bufts = has_extra_kernels
        self._model: Any = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        assert self._model, path
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT_LENGTH * num_sequences, 2048, 512
        params.n_seq_max = params.n_outputs_max = num_sequences
        params.n_threads = params.n_threads_batch = num_threads
        params.kv_unified, params.flash_attn_type = False, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context: Any = llama_cpp.llama_init_from_model(self._model, params)
        assert self._context, path
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = BatchArrays(2048, num_sequences)

    def decode(self, tokens: npt.NDArray[np.int32], *, sequences: npt.NDArray[np.int32], position: int) -> Logits:
        """Compute a token of each of some sequences, in ascending order. Shape: (sequences, vocabulary).

        The logits are a view of llama.cpp's memory, valid until the next decode.
        """
        count = len(sequences)
        batch = StepBatch(
            tokens=tokens,
            positions=np.full(count, position),
            slots=sequences,
            wants_logits=np.ones(count, np.int8),
            counts=np.ones(count, np.int32),
            ready=(),
            started=(),
            placements=(),
        )
        self._batch.fill(batch)
        assert llama_cpp.llama_decode(self._context, self._batch.struct) == 0
        logits = llama_cpp.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, (count, self.vocab_size))

    def forget(self) -> None:
        """Empty all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)
