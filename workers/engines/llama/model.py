"""llama.cpp, by the low-level API of llama-cpp-python: the only file that imports `llama_cpp`.

`Model` is what the engine needs of it: tokens to and from text, and decode. Function by function it follows
`include/llama.h` of the llama.cpp inside llama-cpp-python 0.3.36.
"""

import ctypes
import os
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from batcher.errors import EngineError, MissingPackageError, ModelError
from workers.engines.llama.kv_cache import Placement, Tokens
from workers.engines.llama.scheduler import StepBatch
from workers.engines.llama.scores import max_scored_tokens
from workers.engines.llama.settings import whole_cells

# Before libgomp is loaded with llama.cpp. By default its threads spin at each barrier for long, and where anything else
# wants the processor too (a second worker, a browser) decoding becomes several times slower; not to spin at all is slow
# when alone. Measured on 2 cores, tokens/s alone and of two engines together: endless 498 and under 200; this 484 and
# 430; never 312 and 510.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# A failed assertion of ggml would have a debugger print pages, where one is installed, and the process die later.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

try:
    import llama_cpp
except (ImportError, OSError, RuntimeError) as exc:  # no such package, no such library, or one that does not fit
    raise MissingPackageError(f"llama-cpp-python can't be loaded here: {exc}; `batcher doctor` has the remedy") from exc

#: ggml-backend.h, GGML_BACKEND_DEVICE_TYPE_GPU: one with memory of its own.
_GGML_DEVICE_GPU = 1

_LOG_LEVEL_ERROR = 4

#: llama.cpp's last error lines, to tell why a load failed.
_log_errors: deque[str] = deque(maxlen=8)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _user_data: Any) -> None:
    if level == _LOG_LEVEL_ERROR:
        _log_errors.append(text.decode("utf-8", errors="replace").strip())


@dataclass(frozen=True, slots=True)
class ContextSize:
    """The shape of a llama.cpp context: `num_slots` sequences of `context_length` tokens each."""

    num_slots: int
    context_length: int
    max_batch_tokens: int
    max_micro_batch_tokens: int
    num_threads: int


class Vocabulary:
    """Text to tokens and back. Read-only in llama.cpp, so any thread may use it while its model is loaded."""

    def __init__(self, model: Any) -> None:
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.size: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        bos = llama_cpp.llama_vocab_bos(self._vocab)
        self._bos: int | None = bos if bos >= 0 else None
        self._adds_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))
        self._pieces: dict[int, bytes] = {}

    @property
    def bos_text(self) -> str:
        """The BOS token as it is written, which chat templates want to know; "" where there is none."""
        return self._text(self._bos)

    @property
    def eos_text(self) -> str:
        """As `bos_text`, the EOS token."""
        eos = llama_cpp.llama_vocab_eos(self._vocab)
        return self._text(eos if eos >= 0 else None)

    @property
    def fill_in_marks(self) -> tuple[int, int, int] | None:
        """The tokens before a prefix, before a suffix and before the middle; None for a model without."""
        kinds = (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
        prefix, suffix, middle = (kind(self._vocab) for kind in kinds)
        return (prefix, suffix, middle) if min(prefix, suffix, middle) >= 0 else None

    @cached_property
    def most_bytes(self) -> int:
        """No token stands for more bytes of a text than this. Looks at the whole vocabulary once."""
        texts = (llama_cpp.llama_vocab_get_text(self._vocab, token) for token in range(self.size))
        # As they are stored, tokens have at least the bytes that they stand for.
        return max(len(text or b"") for text in texts)

    def tokenize(self, text: str, *, adds_bos: bool = True) -> Tokens:
        """The prompt's tokens, special tokens in the text recognised, with a BOS in front where the model wants one.

        An empty text is a BOS alone, if the model has one at all.
        """
        data = text.encode("utf-8", errors="surrogatepass")
        capacity = len(data) + 2
        buffer = (ctypes.c_int32 * capacity)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, capacity, False, True)
        if count < 0:
            capacity = -count
            buffer = (ctypes.c_int32 * capacity)()
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), buffer, capacity, False, True)
        if count < 0:
            raise EngineError(f"llama_tokenize gave {count} for a prompt of {len(data)} bytes")
        tokens: Tokens = np.frombuffer(memoryview(buffer), np.int32, count)
        if adds_bos and self._bos is not None and (not count or (self._adds_bos and tokens[0] != self._bos)):
            return np.concatenate((np.array([self._bos], np.int32), tokens))
        return tokens.copy()

    def count_tokens(self, text: str) -> int:
        """How many tokens a prompt takes."""
        return len(self.tokenize(text))

    def detokenize(self, tokens: Tokens) -> bytes:
        """The bytes of tokens; special ones have none."""
        return b"".join(map(self.piece, tokens.tolist()))

    def piece(self, token: int) -> bytes:
        """The bytes of a token; special tokens have none."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def written(self, token: int) -> bytes:
        """As `piece`, but a special token is written by its name."""
        return self.piece(token) or self._written(token)

    @cached_property
    def is_end(self) -> npt.NDArray[np.bool_]:
        """Of each token, whether the model ends its text with it. Shape: (size,)."""
        return np.fromiter((llama_cpp.llama_vocab_is_eog(self._vocab, token) for token in range(self.size)), np.bool_)

    def _text(self, token: int | None) -> str:
        text = None if token is None else llama_cpp.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", errors="replace") if text else ""

    def _written(self, token: int) -> bytes:
        return self._read_piece(token, is_special_written=True)

    def _read_piece(self, token: int, *, is_special_written: bool = False) -> bytes:
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            count = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, capacity, 0, is_special_written)
            if count >= 0:
                return buffer.raw[:count]
            capacity = -count


class Model:
    """A loaded GGUF with one context. One thread at a time may call `decode`, `forget` and `close`."""

    def __init__(self, path: Path, *, num_gpu_layers: int) -> None:
        """Load the weights. Raises ModelError with llama.cpp's own reason."""
        self._model = _load(path, num_gpu_layers=num_gpu_layers, vocab_only=False)
        self._context: Any = None
        self.path = path
        if llama_cpp.llama_model_has_encoder(self._model):
            raise ModelError(f"{path}: encoder models can't complete text; use a decoder-only GGUF")
        self.vocabulary = Vocabulary(self._model)
        self.trained_context_length: int = llama_cpp.llama_model_n_ctx_train(self._model)
        self.num_bytes: int = llama_cpp.llama_model_size(self._model)
        #: Tokens whose logits one decode may give beside one for each slot.
        self.max_scored_tokens = max_scored_tokens(self.vocabulary.size)

    @property
    def description(self) -> str:
        """llama.cpp's words for it, e.g. `llama 135M Q4_0`."""
        buffer = ctypes.create_string_buffer(256)
        llama_cpp.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that the GGUF carries; None where it has none."""
        return _chat_template(self._model)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of KV cache (f16) a token takes."""
        heads = max(1, llama_cpp.llama_model_n_head(self._model))
        width = llama_cpp.llama_model_n_embd(self._model) // heads * llama_cpp.llama_model_n_head_kv(self._model)
        return int(2 * 2 * width * llama_cpp.llama_model_n_layer(self._model))

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
        # As llama.cpp itself chooses. It skips the masked cells that pad every sequence to a multiple of 256.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            gib = size.num_slots * size.context_length * self.kv_bytes_per_token / 2**30
            raise ModelError(
                f"{self.path}: llama.cpp could not make a context of {size.num_slots} slots x "
                f"{size.context_length} tokens ({gib:.1f} GiB of KV cache): {_last_errors()}; "
                "use fewer --slots or a smaller --ctx"
            )
        self._memory = llama_cpp.llama_get_memory(self._context)
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
            raise EngineError(f"llama_decode gave {code} for {len(batch.tokens)} tokens: {_last_errors()}")
        num_outputs = batch.num_logits
        if not num_outputs:
            return np.empty((0, self.vocabulary.size), np.float32)
        logits = llama_cpp.llama_get_logits(self._context)
        if not logits:
            raise EngineError(f"llama_get_logits gave nothing: {_last_errors()}")
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

    def close(self) -> None:
        """Free context and weights. Idempotent."""
        if self._context:
            llama_cpp.llama_free(self._context)
            self._context = None
        if self._model:
            llama_cpp.llama_model_free(self._model)
            self._model = None


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


class Tokenizer(Vocabulary):
    """The vocabulary of a GGUF alone: no weights are read."""

    def __init__(self, path: Path) -> None:
        # Kept: the vocabulary lives in it.
        self._vocab_model = _load(path, num_gpu_layers=0, vocab_only=True)
        super().__init__(self._vocab_model)

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that the GGUF carries; None where it has none."""
        return _chat_template(self._vocab_model)


def describe_build() -> str:
    """The version of llama.cpp's binding, and what of this processor the library was built to use."""
    return f"llama-cpp-python {llama_cpp.__version__}, {llama_cpp.llama_print_system_info().decode()}"


def supports_gpu() -> bool:
    """Whether llama-cpp-python was built for a GPU."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def free_gpu_memory() -> int | None:
    """Bytes that are free in all GPUs together; None where there is none, or this build of ggml can't tell.

    By `ggml/include/ggml-backend.h`, which llama-cpp-python has no bindings of.
    """
    try:
        from llama_cpp._ggml import libggml

        count, get = libggml.ggml_backend_dev_count, libggml.ggml_backend_dev_get
        kind, memory = libggml.ggml_backend_dev_type, libggml.ggml_backend_dev_memory
    except (ImportError, AttributeError):
        return None
    count.restype, get.restype, get.argtypes = ctypes.c_size_t, ctypes.c_void_p, [ctypes.c_size_t]
    kind.argtypes = [ctypes.c_void_p]
    memory.restype, memory.argtypes = None, [ctypes.c_void_p, *[ctypes.POINTER(ctypes.c_size_t)] * 2]
    found = []
    for device in map(get, range(count())):
        if kind(device) == _GGML_DEVICE_GPU:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free), ctypes.byref(total))
            found.append(free.value)
    return sum(found) or None


def _chat_template(model: Any) -> str | None:
    source = llama_cpp.llama_model_chat_template(model, None)
    return source.decode("utf-8", errors="replace") if source else None


def _load(path: Path, *, num_gpu_layers: int, vocab_only: bool) -> Any:
    llama_cpp.llama_log_set(_keep_errors, None)
    llama_cpp.llama_backend_init()
    _log_errors.clear()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = num_gpu_layers
    params.vocab_only = vocab_only
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelError(f"{path}: llama.cpp can't load it: {_last_errors()}; check that the GGUF is whole")
    return model


def _last_errors() -> str:
    return "; ".join(dict.fromkeys(_log_errors)) or "no reason given"
