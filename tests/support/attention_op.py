"""One attention of llama.cpp's, computed alone: a graph of a single node, on the CPU backend that is installed."""

import ctypes
from ctypes import c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

_F32 = 0
_F16 = 1
#: Bytes. For what each thread computes in, and the graph.
_SCRATCH = 1 << 25


class _Params(ctypes.Structure):
    _fields_ = [("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool)]


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "ggml_init": (c_void_p, [_Params]),
    "ggml_free": (None, [c_void_p]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_new_tensor_4d": (c_void_p, [c_void_p, c_int, *[c_int64] * 4]),
    "ggml_permute": (c_void_p, [c_void_p, c_void_p, *[c_int] * 4]),
    "ggml_flash_attn_ext": (c_void_p, [*[c_void_p] * 5, *[c_float] * 3]),
    "ggml_flash_attn_ext_add_sinks": (None, [c_void_p, c_void_p]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_graph_compute_with_ctx": (c_int, [c_void_p, c_void_p, c_int]),
}


@dataclass(frozen=True, slots=True)
class Attention:
    """What goes in.

    `queries`: (sequences, tokens, heads, width). `keys`, `values`: (sequences, cells, KV heads, width), as f16.
    `mask`: (sequences, tokens, cells), what is added to the scores, -inf where a token does not see a cell.
    `sinks`: (heads,). A `softcap` of 0 is none; `max_bias` is ALiBi's, 0 for none.
    """

    queries: npt.NDArray[np.float32]
    keys: npt.NDArray[np.float16]
    values: npt.NDArray[np.float16]
    mask: npt.NDArray[np.float16]
    sinks: npt.NDArray[np.float32] | None = None
    softcap: float = 0.0
    max_bias: float = 0.0

    @property
    def scale(self) -> float:
        return float(1 / np.sqrt(self.queries.shape[-1]))


def exact(given: Attention) -> npt.NDArray[np.float64]:
    """In 64 bits. Shape: (sequences, tokens, heads, width of values)."""
    num_sequences, num_tokens, num_heads, width = given.queries.shape
    num_kv_heads = given.keys.shape[2]
    # The query heads of a KV head are side by side.
    queries = given.queries.astype(np.float64).transpose(0, 2, 1, 3).reshape(num_sequences, num_kv_heads, -1, width)
    keys = given.keys.astype(np.float64).transpose(0, 2, 3, 1)
    values = given.values.astype(np.float64).transpose(0, 2, 1, 3)
    scores = (queries @ keys * given.scale).reshape(num_sequences, num_heads, num_tokens, -1)
    if given.softcap:
        scores = given.softcap * np.tanh(scores / given.softcap)
    slopes = _slopes(num_heads, given.max_bias)
    scores += slopes[None, :, None, None] * given.mask.astype(np.float64)[:, None]
    highest = scores.max(axis=-1, keepdims=True, initial=-1e30)
    if given.sinks is not None:
        sinks = given.sinks.astype(np.float64)[None, :, None, None]
        highest = np.maximum(highest, sinks)
    weights = np.exp(scores - highest)
    total = weights.sum(axis=-1, keepdims=True)
    if given.sinks is not None:
        total += np.exp(sinks - highest)
    weights /= np.where(total == 0, 1, total)
    attended = weights.reshape(num_sequences, num_kv_heads, -1, weights.shape[-1]) @ values
    by_heads: npt.NDArray[np.float64] = attended.reshape(num_sequences, num_heads, num_tokens, -1)
    return by_heads.transpose(0, 2, 1, 3)


def computed(given: Attention, *, num_threads: int) -> npt.NDArray[np.float32]:
    """By llama.cpp's CPU backend. Shape: (sequences, tokens, heads, width of values)."""
    lib = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-cpu.so"))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    shape = (*given.queries.shape[:3], given.values.shape[-1])
    found = np.empty(shape, np.float32)
    num_bytes = sum(array.nbytes for array in (given.queries, given.keys, given.values, given.mask, found))
    context = lib.ggml_init(_Params(num_bytes + _SCRATCH, None, False))

    def tensor(array: npt.NDArray[Any]) -> Any:
        """With the array's dimensions, the last one first."""
        shape = (1,) * (4 - array.ndim) + array.shape
        made = lib.ggml_new_tensor_4d(context, _F16 if array.dtype == np.float16 else _F32, *reversed(shape))
        array = np.ascontiguousarray(array)
        ctypes.memmove(lib.ggml_get_data(made), array.ctypes.data, array.nbytes)
        return made

    def by_heads(array: npt.NDArray[Any]) -> Any:
        return lib.ggml_permute(context, tensor(array), 0, 2, 1, 3)

    node = lib.ggml_flash_attn_ext(
        context,
        by_heads(given.queries),
        by_heads(given.keys),
        by_heads(given.values),
        tensor(given.mask[:, None]),
        given.scale,
        given.max_bias,
        given.softcap,
    )
    if given.sinks is not None:
        lib.ggml_flash_attn_ext_add_sinks(node, tensor(given.sinks))
    graph = lib.ggml_new_graph(context)
    lib.ggml_build_forward_expand(graph, node)
    assert lib.ggml_graph_compute_with_ctx(context, graph, num_threads) == 0
    ctypes.memmove(found.ctypes.data, lib.ggml_get_data(node), found.nbytes)
    lib.ggml_free(context)
    return found


def _slopes(num_heads: int, max_bias: float) -> npt.NDArray[np.float64]:
    """ALiBi's (https://arxiv.org/abs/2108.12409), as llama.cpp has them for any number of heads."""
    if max_bias == 0:
        return np.ones(num_heads)
    power = 2 ** int(np.log2(num_heads))
    heads = np.arange(num_heads)
    base, half = 2.0 ** (-max_bias / power), 2.0 ** (-max_bias / 2 / power)
    slopes: npt.NDArray[np.float64] = np.where(heads < power, base ** (heads + 1), half ** (2 * (heads - power) + 1))
    return slopes
