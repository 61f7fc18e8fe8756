"""The memory that a model takes, by the header of its file alone: weights, KV cells, the state of recurrent layers.

What llama.cpp's caches hold, without llama.cpp: `llama_kv_cache` has for each token and each layer with attention a row
of keys and one of values, in 16 bits; `llama_memory_recurrent` has for each sequence and each recurrent layer what its
convolution looks back at and its state, in 32 bits (llama-hparams.cpp: `n_embd_k_gqa`, `n_embd_r`, `n_embd_s`). Layers
with a sliding window have cells for the whole sequence as well, as ours are opened with `swa_full`.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batcher.gguf import GgufHeader, read_header
from batcher.model_files import split_files

#: llama.cpp gives each sequence a multiple of so many cells.
CELLS_STEP = 256

_CELL_NUMBER_BYTES = 2
_STATE_NUMBER_BYTES = 4

_LAYER_TENSOR = re.compile(r"blk\.(\d+)\.(.+)")
#: Beginnings of the names of tensors that only layers with a state have: Mamba's and its kin's, RWKV's, LFM2's.
_RECURRENT = ("ssm_", "time_mix_", "shortconv.")
#: Those of layers with attention; in recurrent layers of some models the second projects for them.
_KEYS, _FUSED, _LATENT = "attn_k.weight", "attn_qkv.weight", "attn_kv_a_mqa.weight"


@dataclass(frozen=True, slots=True)
class CacheNeed:
    """Bytes that sequences take: `token` for each token that a slot has room for, `state` for each slot."""

    token: int
    state: int

    def slot(self, context_length: int) -> int:
        """Bytes of a slot of so many tokens; at least one."""
        return max(1, whole_cells(context_length) * self.token + self.state)


@dataclass(frozen=True, slots=True)
class ModelNeed:
    """Bytes that a model takes: its weights once, and for each slot what `cache` says.

    What computing takes beside them, some hundred MiB at most, is in neither.
    """

    weights: int
    cache: CacheNeed

    def total(self, *, num_slots: int, context_length: int) -> int:
        """Weights and the cache of so many slots."""
        return self.weights + num_slots * self.cache.slot(context_length)


def whole_cells(num_tokens: int) -> int:
    """The cells that llama.cpp gives a sequence of so many tokens."""
    return -(-num_tokens // CELLS_STEP) * CELLS_STEP


def model_need(path: Path) -> ModelNeed | None:
    """What the model at `path` takes, of a split one all of it. Reads headers only, some 50 ms for a large vocabulary.

    None where a file can't be read or is no GGUF file.
    """
    headers = []
    for part in split_files(path):
        header = read_header(part)
        if header is None:
            return None
        headers.append(header)
    return ModelNeed(sum(header.num_bytes for header in headers), _cache_need(headers))


def _cache_need(headers: list[GgufHeader]) -> CacheNeed:
    """By the headers of all files of a model, of which the first has the values."""
    first = headers[0]
    layers = defaultdict[int, dict[str, tuple[int, ...]]](dict)
    for header in headers:
        for name, tensor in header.tensors.items():
            if found := _LAYER_TENSOR.fullmatch(name):
                layers[int(found[1])][found[2]] = tensor.shape
    num_sharing = first.number("attention.shared_kv_layers")
    num_own = first.number("block_count") - num_sharing if num_sharing else len(layers)
    widths = [sum(_cell_widths(first, layer, layers[layer])) for layer in sorted(layers) if layer < num_own]
    num_recurrent = sum(_is_recurrent(tensors) for tensors in layers.values())
    state = sum(_state_widths(first)) if num_recurrent else 0
    return CacheNeed(_CELL_NUMBER_BYTES * sum(widths), _STATE_NUMBER_BYTES * state * num_recurrent)


def _is_recurrent(tensors: dict[str, tuple[int, ...]]) -> bool:
    return any(name.startswith(_RECURRENT) for name in tensors)


def _cell_widths(header: GgufHeader, layer: int, tensors: dict[str, tuple[int, ...]]) -> Iterator[int]:
    """Numbers that a token takes in a layer, of its keys and of its values."""
    is_fused = _FUSED in tensors and not _is_recurrent(tensors)
    heads = _of_layer(header.numbers("attention.head_count_kv") or header.numbers("attention.head_count"), layer)
    if not heads or not (is_fused or _KEYS in tensors or _LATENT in tensors):
        return
    default = header.number("embedding_length") // max(1, _of_layer(header.numbers("attention.head_count"), 0))
    keys = heads * header.number("attention.key_length", default)
    values = heads * header.number("attention.value_length", default)
    if _KEYS in tensors:
        # Layers of one model may have heads of two widths, and values that are the keys.
        keys = tensors[_KEYS][-1]
        values = tensors.get("attn_v.weight", tensors[_KEYS])[-1]
    yield keys
    if not header.number("attention.key_length_mla"):
        yield values


def _state_widths(header: GgufHeader) -> Iterator[int]:
    """Numbers that a sequence takes in a recurrent layer, of the convolution and of the state."""
    width, heads = header.number("embedding_length"), header.number("attention.head_count")
    convolved = max(0, header.number("ssm.conv_kernel") - 1)
    if head_size := header.number("wkv.head_size"):
        yield width * header.number("token_shift_count", 2)
        yield width * head_size
    elif length := header.number("shortconv.l_cache"):
        yield width * (length - 1)
    elif head_dim := header.number("kda.head_dim"):
        yield 3 * (convolved or 3) * heads * head_dim
        yield head_dim**2 * heads
    else:
        inner, state = header.number("ssm.inner_size"), header.number("ssm.state_size")
        yield convolved * (inner + 2 * header.number("ssm.group_count") * state)
        yield inner * state


def _of_layer(numbers: tuple[int, ...], layer: int) -> int:
    """A layer's own number, or the one for all; 0 where there is none."""
    if len(numbers) > 1:
        return numbers[layer] if layer < len(numbers) else 0
    return numbers[0] if numbers else 0
