"""From a GGUF path and a few wishes to an engine: model, settings for this machine (`settings`), context, engine."""

from collections.abc import Callable
from pathlib import Path

from batcher.errors import ModelError
from batcher.machine import read_cores, read_memory
from batcher.types import UNKNOWN_DEMAND, Demand, EngineConfig
from workers.engines.llama.binding import describe_build, free_gpu_memory, gpu_libraries, supports_gpu, tell_aborts
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.gate import Gate
from workers.engines.llama.kv_cache import KvCache
from workers.engines.llama.model import ContextSize, Model
from workers.engines.llama.sampling.logits import Floats
from workers.engines.llama.settings import (
    DEFAULT_CONTEXT_LENGTH,
    DEFAULT_NUM_GPU_SLOTS,
    DEFAULT_NUM_SLOTS,
    MAX_CACHE_SHARE,
    EngineSettings,
    Situation,
    TunedValues,
    check_config,
    choose_settings,
)
from workers.engines.llama.step import StepBatch
from workers.engines.llama.vocabulary import Tokenizer

__all__ = [
    "DEFAULT_CONTEXT_LENGTH",
    "DEFAULT_NUM_SLOTS",
    "MAX_CACHE_SHARE",
    "available_memory",
    "bytes_taken",
    "choose",
    "describe_backend",
    "load_engine",
    "load_model",
    "load_tokenizer",
    "make_engine",
    "tell_aborts",
    "uses_gpu",
    "usual_slots",
]

#: llama.cpp: every layer that fits.
ALL_LAYERS = -1

#: Receives how many tokens a step computed, and for how many sequences one is drawn from it.
OnDecoded = Callable[[int, int], None]


def load_engine(name: str, path: Path, config: EngineConfig, *, gate: Gate | None = None) -> LlamaEngine:
    """Load a model and make an engine of it, not yet started. Raises ModelError. Takes as long as reading the file.

    Engines of one process share a `gate`.
    """
    model = load_model(path, config)
    return make_engine(name, model, choose(model, config), is_deduplicating=config.is_deduplicating, gate=gate)


def load_model(path: Path, config: EngineConfig, *, on_decoded: OnDecoded | None = None) -> Model:
    """Load the weights. Raises ModelError, and before it loads anything for options that contradict each other.

    `on_decoded` is told of each decode, in the engine's thread.
    """
    check_config(config)
    if config.num_gpu_layers != 0 and (kinds := gpu_libraries()) and not supports_gpu():
        raise ModelError(
            f"llama-cpp-python is built for GPUs ({', '.join(kinds)}), but sees none: check the driver's version "
            "(`nvidia-smi`) and that a container is given the GPU (--gpus all), or compute on CPUs with --gpu-layers 0"
        )
    if config.num_gpu_layers and not supports_gpu():
        raise ModelError(
            f"--gpu-layers is {config.num_gpu_layers}, but llama-cpp-python was built for CPUs only; "
            "build it for the GPU (docs/operations.md) or leave the option out"
        )
    default_layers = ALL_LAYERS if supports_gpu() else 0
    layers = default_layers if config.num_gpu_layers is None else config.num_gpu_layers
    if on_decoded is None:
        return Model(path, num_gpu_layers=layers)
    return _MeteredModel(path, num_gpu_layers=layers, on_decoded=on_decoded)


class _MeteredModel(Model):
    """Tells of each decode."""

    def __init__(self, path: Path, *, num_gpu_layers: int, on_decoded: OnDecoded) -> None:
        super().__init__(path, num_gpu_layers=num_gpu_layers)
        self._on_decoded = on_decoded

    def decode(self, batch: StepBatch) -> Floats:
        logits = super().decode(batch)
        self._on_decoded(len(batch.tokens), len(batch.ready))
        return logits


def choose(
    model: Model,
    config: EngineConfig,
    *,
    tuned: TunedValues | None = None,
    demand: Demand = UNKNOWN_DEMAND,
) -> EngineSettings:
    """The settings for this machine, whose memory is looked at now, with the weights of `model` in it."""
    situation = Situation(
        trained_context_length=model.trained_context_length,
        cache_need=model.cache_need,
        uses_gpu=uses_gpu(config),
        free_memory=available_memory(on_gpu=uses_gpu(config)),
        cores=read_cores(),
        demand=demand,
        allowance=None if config.memory is None else config.memory - model.num_bytes,
    )
    return choose_settings(config, situation, tuned=tuned)


def bytes_taken(model: Model, settings: EngineSettings) -> int:
    """What weights and slots take, in bytes."""
    return model.num_bytes + settings.num_slots.value * model.cache_need.slot(settings.context_length.value)


def usual_slots(config: EngineConfig) -> int:
    """The slots of an engine of which no more is known."""
    return config.num_slots or (DEFAULT_NUM_GPU_SLOTS if uses_gpu(config) else DEFAULT_NUM_SLOTS)


def make_engine(
    name: str,
    model: Model,
    settings: EngineSettings,
    *,
    is_deduplicating: bool = True,
    gate: Gate | None = None,
    system_fingerprint: str | None = None,
) -> LlamaEngine:
    """Open the context and make an engine of the model, not yet started. Raises ModelError."""
    size = ContextSize(
        num_slots=settings.num_slots.value,
        context_length=settings.context_length.value,
        max_batch_tokens=settings.max_batch_tokens.value,
        max_micro_batch_tokens=settings.max_micro_batch_tokens.value,
        num_threads=settings.num_threads.value,
    )
    model.open_context(size)
    cache = KvCache(num_slots=size.num_slots, cells_per_sequence=model.context_length)
    return LlamaEngine(
        name,
        model,
        cache=cache,
        max_batch_tokens=size.max_batch_tokens,
        num_sampling_threads=size.num_threads,
        is_deduplicating=is_deduplicating,
        gate=gate,
        system_fingerprint=system_fingerprint,
    )


def load_tokenizer(path: Path) -> Tokenizer:
    """The vocabulary of a GGUF, for counting tokens without loading the weights. Raises ModelError."""
    return Tokenizer(path)


def describe_backend(config: EngineConfig) -> str:
    """What computes: its build, and whether on a GPU."""
    return f"{describe_build()} {'GPU' if uses_gpu(config) else 'CPU'}"


def uses_gpu(config: EngineConfig) -> bool:
    """Whether a GPU is going to compute."""
    return supports_gpu() and config.num_gpu_layers != 0


def available_memory(*, on_gpu: bool = False) -> int:
    """Bytes that this process can have without swapping, and within the limit of its container.

    On a GPU, those of the GPUs that are free; where llama.cpp can't tell, the process's instead.
    """
    on_device = free_gpu_memory() if on_gpu else None
    return read_memory().available if on_device is None else on_device
