"""From a GGUF path and a few wishes to an engine: slots, context and threads chosen for this machine."""

import os
from dataclasses import dataclass
from pathlib import Path

from batcher.errors import ModelError
from batcher.machine import read_memory
from workers.engine.engine import Engine
from workers.engine.gate import Gate
from workers.engine.kv_cache import KvCache
from workers.engine.model import MAX_SEQUENCES, ContextSize, Model, Tokenizer, supports_gpu

#: Where throughput on 2 cores levels off for a 135M model; memory permitting, more costs little.
DEFAULT_NUM_SLOTS = 32

#: Tokens a sequence may take, prompt and completion, unless the model was trained for fewer.
DEFAULT_CONTEXT_LENGTH = 2048

#: Most tokens of one decode: enough for a chunk of prompt for every slot.
MAX_BATCH_TOKENS = 2048

#: The KV cache takes at most this share of the memory that is free once the weights are loaded.
MAX_CACHE_SHARE = 0.5

#: llama.cpp: every layer that fits.
ALL_LAYERS = -1


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What the user asked for; None means: choose. `context_length` is in tokens per sequence."""

    num_slots: int | None = None
    num_threads: int | None = None
    num_gpu_layers: int | None = None
    context_length: int | None = None
    is_deduplicating: bool = True


def load_engine(name: str, path: Path, config: EngineConfig, *, gate: Gate | None = None) -> Engine:
    """Load a model and make an engine of it, not yet started. Raises ModelError. Takes as long as reading the file.

    Engines of one process share a `gate`.
    """
    if config.num_slots is not None and not 1 <= config.num_slots <= MAX_SEQUENCES:
        raise ModelError(f"--slots is {config.num_slots}; llama.cpp takes 1 to {MAX_SEQUENCES}")
    if config.num_gpu_layers and not supports_gpu():
        raise ModelError(
            f"--gpu-layers is {config.num_gpu_layers}, but llama-cpp-python was built for CPUs only; "
            "build it for the GPU (README, GPU workers) or leave the option out"
        )
    default_layers = ALL_LAYERS if supports_gpu() else 0
    layers = default_layers if config.num_gpu_layers is None else config.num_gpu_layers
    model = Model(path, num_gpu_layers=layers)
    size = choose_size(model, config)
    model.open_context(size)
    cache = KvCache(num_slots=size.num_slots, cells_per_sequence=model.context_length)
    return Engine(
        name,
        model,
        cache=cache,
        max_batch_tokens=size.max_batch_tokens,
        is_deduplicating=config.is_deduplicating,
        gate=gate,
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """The vocabulary of a GGUF, for counting tokens without loading the weights. Raises ModelError."""
    return Tokenizer(path)


def choose_size(model: Model, config: EngineConfig) -> ContextSize:
    """The context for this machine: as many slots as asked for, else as memory has room for."""
    context_length = config.context_length or min(DEFAULT_CONTEXT_LENGTH, model.trained_context_length)
    num_slots = config.num_slots
    if num_slots is None:
        room = available_memory() * MAX_CACHE_SHARE
        num_slots = max(1, min(DEFAULT_NUM_SLOTS, int(room / max(1, context_length * model.kv_bytes_per_token))))
    return ContextSize(
        num_slots=num_slots,
        context_length=context_length,
        max_batch_tokens=max(MAX_BATCH_TOKENS, num_slots),
        num_threads=config.num_threads or len(os.sched_getaffinity(0)),
    )


def available_memory() -> int:
    """Bytes that this process can have without swapping, and within the limit of its container."""
    return read_memory().available
