"""What the engine needs of llama.cpp: a model with one context, which decodes batches of tokens."""

import ctypes
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batcher.errors import EngineError, ModelError
from batcher.model_kinds import check_completes_text
from batcher.model_memory import CacheNeed, model_need, whole_cells
from workers.engines.llama.binding import chat_template, last_errors, llama_cpp, load_adapter, load_gguf, set_adapter
from workers.engines.llama.kv_cache import Placement
from workers.engines.llama.scores import max_scored_tokens
from workers.engines.llama.step import StepBatch
from workers.engines.llama.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ContextSize:
    """The shape of a llama.cpp context: `num_slots` sequences of `context_length` tokens each."""

    num_slots: int
    context_length: int
    max_batch_tokens: int
    max_micro_batch_tokens: int
    num_threads: int


class Model:
    """A loaded GGUF with one context. One thread at a time may call `decode`, `forget` and `close`."""

    def __init__(self, path: Path, *, num_gpu_layers: int) -> None:
        """Load the weights. Raises ModelError with llama.cpp's own reason."""
        check_completes_text(path)
        self._model = load_gguf(path, num_gpu_layers=num_gpu_layers, vocab_only=False)
        #: The Jinja source that the GGUF carries; None where it has none. Another can be put in its place.
        self.chat_template = chat_template(self._model)
        self._context: Any = None
        self._adapter: Any = None
        self._adapter_scale = 1.0
        self.path = path
        if llama_cpp.llama_model_has_encoder(self._model):
            raise ModelError(f"{path}: encoder models can't complete text; use a decoder-only GGUF")
        self.vocabulary = Vocabulary(self._model)
        self.trained_context_length: int = llama_cpp.llama_model_n_ctx_train(self._model)
        self.num_bytes: int = llama_cpp.llama_model_size(self._model)
        #: What each slot is going to take.
        self.cache_need = _cache_need(path)
        #: Tokens whose logits one decode may give beside one for each slot.
        self.max_scored_tokens = max_scored_tokens(self.vocabulary.size)

    def add_adapter(self, path: Path, *, scale: float) -> None:
        """Load a LoRA adapter, by which the context is going to compute. Raises ModelError."""
        assert self._context is None
        self._adapter = load_adapter(self._model, path)
        self._adapter_scale = scale

    @property
    def description(self) -> str:
        """llama.cpp's words for it, e.g. `llama 135M Q4_0`."""
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    def open_context(self, size: ContextSize) -> None:
        """Allocate KV cache and compute buffers. Raises ModelError where memory does not suffice."""
        assert self._context is None
        params = llama_cpp.llama_context_default_params()
        # Rounded as llama.cpp does it, which bounds its batch before: a prompt that filled the last cells would be more
        # than a batch may hold, and kill the process.
        params.n_ctx = size.num_slots * whole_cells(size.context_length)
        params.n_batch = size.max_batch_tokens
        params.n_ubatch = size.max_micro_batch_tokens
        params.n_seq_max = size.num_slots
        # Otherwise the logits buffer holds a row of the vocabulary for each token of a batch.
        params.n_outputs_max = size.num_slots + self.max_scored_tokens
        params.n_threads = params.n_threads_batch = size.num_threads
        # One stream per sequence: each attends to its own cells only. In a unified cache a shared prefix needs no copy,
        # but every sequence looks at the cells of all others, if only to find them masked.
        params.kv_unified = False
        # Layers with a sliding window keep the cells before it, too: a beginning is copied from them for another
        # prompt, which may be cut within them.
        params.swa_full = True
        # As llama.cpp itself chooses. It skips the masked cells that pad every sequence to a multiple of 256.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            gib = size.num_slots * self.cache_need.slot(size.context_length) / 2**30
            raise ModelError(
                f"{self.path}: llama.cpp could not make a context of {size.num_slots} slots x "
                f"{size.context_length} tokens ({gib:.1f} GiB of KV cache): {last_errors()}; "
                "use fewer --slots or a smaller --ctx"
            )
        if self._adapter is not None and not set_adapter(self._context, self._adapter, scale=self._adapter_scale):
            raise ModelError(f"{self.path}: llama.cpp can't compute with its adapter: {last_errors()}")
        self._memory = llama_cpp.llama_get_memory(self._context)
        if not self._memory:
            raise ModelError(
                f"{self.path}: {self.description} has no memory of what it read, as models for embeddings have none, "
                "and so completes no text; give the GGUF file of a model that writes text"
            )
        self._batch = BatchArrays(size.max_batch_tokens, size.num_slots)

    @property
    def context_length(self) -> int:
        """Tokens a sequence can hold, after llama.cpp's rounding."""
        return int(llama_cpp.llama_n_ctx_seq(self._context))

    def decode(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """Compute a batch, whose tokens come in ascending order of slots. Its placements must have been made.

        Returns the logits of the tokens that want them, in order. Shape: (n, vocabulary size).
        A view of llama.cpp's memory, valid until the next decode. Raises EngineError; the context is lost then.
        """
        self._batch.fill(batch)
        code = llama_cpp.llama_decode(self._context, self._batch.struct)
        if code != 0:
            raise EngineError(f"llama_decode gave {code} for {len(batch.tokens)} tokens: {last_errors()}")
        num_outputs = batch.num_logits
        if not num_outputs:
            return np.empty((0, self.vocabulary.size), np.float32)
        logits = llama_cpp.llama_get_logits(self._context)
        if not logits:
            raise EngineError(f"llama_get_logits gave nothing: {last_errors()}")
        return np.ctypeslib.as_array(logits, (num_outputs, self.vocabulary.size))

    def place(self, placement: Placement) -> bool:
        """Have the cells of a slot hold what `placement` says. Returns False where this model's memory can't be cut.

        A copy moves all cells of the slot, with the next decode.
        """
        source, target, num_kept = placement.source, placement.target, placement.num_kept
        if source != target:
            llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        start = num_kept if num_kept else -1
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, target, start, -1))

    def clear(self) -> None:
        """Empty the memory of all sequences: nothing is left of what was in it."""
        llama_cpp.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        """Free context and weights. Idempotent."""
        if self._context:
            llama_cpp.llama_free(self._context)
            self._context = None
        if self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None


def _cache_need(path: Path) -> CacheNeed:
    need = model_need(path)
    if need is None:
        raise ModelError(f"{path}: its header can't be read to reckon the memory that it takes; download it again")
    return need.cache


class BatchArrays:
    """A llama_batch over numpy arrays, made once and filled for each step.

    llama_batch wants for each token a pointer to its list of sequence ids; ours has one id each, so the pointers go
    into a table of all ids.
    """

    def __init__(self, capacity: int, num_slots: int) -> None:
        self._tokens = np.zeros(capacity, np.int32)
        self._positions = np.zeros(capacity, np.int32)
        self._num_ids = np.ones(capacity, np.int32)
        self._id_table = np.arange(num_slots, dtype=np.int32)
        self._pointers = self._id_table.ctypes.data + np.arange(num_slots, dtype=np.uintp) * self._id_table.itemsize
        self._id_pointers = np.zeros(capacity, np.uintp)
        self._wants_logits = np.zeros(capacity, np.int8)
        self.struct = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token)),
            embd=None,
            pos=self._positions.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_pos)),
            n_seq_id=self._num_ids.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._id_pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(llama_cpp.llama_seq_id))),
            logits=self._wants_logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def fill(self, batch: StepBatch) -> None:
        """Lay out the tokens of `batch`."""
        num_tokens = len(batch.tokens)
        self._tokens[:num_tokens] = batch.tokens
        self._positions[:num_tokens] = batch.positions
        self._id_pointers[:num_tokens] = self._pointers[batch.slots]
        self._wants_logits[:num_tokens] = batch.wants_logits
        self.struct.n_tokens = num_tokens
