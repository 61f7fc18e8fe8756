"""Whether the matrix kernels that llama.cpp has for this processor compute what its plain ones do.

llama.cpp lays weights out anew for some processors ("extra buffer types": AMX, CPU_REPACK) and multiplies them by
kernels of their own. A compiler may get those wrong, as GCC 12.2 does ggml's for AMX, and a virtual machine may
announce what it lacks. So each of them is compared with the plain kernel for the same weights, on random matrices, in
every quantization and with batches of several sizes, of which each takes another path. The plain kernel gets one row at
a time, as our build and llama.cpp itself have others for more, which would be compared with themselves.

    python -m workers.engines.llama.kernels

prints a line of JSON for each layout. It ends with 2 where a kernel is wrong, or dies of a signal.
"""

import ctypes
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from workers.engines.llama.binding import llama_cpp, load_ggml

#: By ggml.h, `enum ggml_type`: those of which models are made. Types without kernels of their own are left out.
_TYPES = (1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 30, 39)
_F32 = 0

#: By ggml-backend.h, `enum ggml_backend_dev_type`.
_CPU = 0

#: One token, a few, less than a pair of tiles of 16 rows, a pair, and more than that.
_NUM_ROWS = (1, 2, 17, 32, 47)

#: A row of weights is a whole number of blocks, the largest of which have 256; a step of 32 rows is what AMX asks for.
_WIDTH = 768
_NUM_WEIGHT_ROWS = 96

#: Two threads, as each sets up its tiles.
_NUM_THREADS = 2

#: Of the products' standard deviation. Where the kernels round activations in another way, it is some thousandths.
TOLERANCE = 0.02

#: Bytes for the descriptions of a few tensors and a graph.
_CONTEXT_SIZE = 1 << 20

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class KernelCheck:
    """The kernels of one layout, e.g. AMX.

    `difference` is the largest of any product from the plain kernel's, in standard deviations of the products; of
    `worst`, e.g. "q4_K x 17". `types` are the quantizations that have kernels.
    """

    layout: str
    types: tuple[str, ...]
    difference: float
    worst: str

    @property
    def is_sound(self) -> bool:
        return self.difference <= TOLERANCE


class _InitParams(ctypes.Structure):
    """`struct ggml_init_params`."""

    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Ggml:
    """The part of ggml.h and ggml-backend.h that multiplies two matrices on the CPU. Pointers are plain numbers."""

    def __init__(self) -> None:
        self.library: Any = load_ggml()
        size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
        for name, result, arguments in (
            ("ggml_init", pointer, (_InitParams,)),
            ("ggml_free", None, (pointer,)),
            ("ggml_type_name", ctypes.c_char_p, (number,)),
            ("ggml_row_size", size, (number, ctypes.c_int64)),
            ("ggml_quantize_chunk", size, (number, pointer, pointer, *(ctypes.c_int64,) * 3, pointer)),
            ("ggml_new_tensor_2d", pointer, (pointer, number, ctypes.c_int64, ctypes.c_int64)),
            ("ggml_mul_mat", pointer, (pointer,) * 3),
            ("ggml_new_graph", pointer, (pointer,)),
            ("ggml_build_forward_expand", None, (pointer,) * 2),
            ("ggml_backend_dev_by_type", pointer, (number,)),
            ("ggml_backend_dev_init", pointer, (pointer, ctypes.c_char_p)),
            ("ggml_backend_dev_backend_reg", pointer, (pointer,)),
            ("ggml_backend_dev_buffer_type", pointer, (pointer,)),
            ("ggml_backend_dev_supports_op", ctypes.c_bool, (pointer,) * 2),
            ("ggml_backend_reg_get_proc_address", pointer, (pointer, ctypes.c_char_p)),
            ("ggml_backend_buft_name", ctypes.c_char_p, (pointer,)),
            ("ggml_backend_alloc_ctx_tensors_from_buft", pointer, (pointer,) * 2),
            ("ggml_backend_buffer_free", None, (pointer,)),
            ("ggml_backend_tensor_set", None, (pointer, pointer, size, size)),
            ("ggml_backend_tensor_get", None, (pointer, pointer, size, size)),
            ("ggml_backend_graph_compute", number, (pointer,) * 2),
        ):
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        self.device = self.library.ggml_backend_dev_by_type(_CPU)
        self.backend = self.library.ggml_backend_dev_init(self.device, None)
        self.plain_layout: int = self.library.ggml_backend_dev_buffer_type(self.device)
        self._entry("ggml_backend_set_n_threads", None, pointer, number)(self.backend, _NUM_THREADS)

    def _entry(self, name: str, result: Any, *arguments: Any) -> Any:
        """A function that the CPU backend gives out by name."""
        backend = self.library.ggml_backend_dev_backend_reg(self.device)
        address = self.library.ggml_backend_reg_get_proc_address(backend, name.encode())
        return ctypes.CFUNCTYPE(result, *arguments)(address)

    def extra_layouts(self) -> Iterator[int]:
        pointers = ctypes.POINTER(ctypes.c_void_p)
        found = self._entry("ggml_backend_dev_get_extra_bufts", pointers, ctypes.c_void_p)(self.device)
        index = 0
        while found[index]:
            yield found[index]
            index += 1

    def layout_name(self, layout: int) -> str:
        return str(self.library.ggml_backend_buft_name(layout).decode())

    def type_name(self, kind: int) -> str:
        return str(self.library.ggml_type_name(kind).decode())

    def quantize(self, weights: Matrix, kind: int) -> bytes:
        num_rows, width = weights.shape
        quantized = ctypes.create_string_buffer(num_rows * self.library.ggml_row_size(kind, width))
        self.library.ggml_quantize_chunk(kind, weights.ctypes.data, quantized, 0, num_rows, width, None)
        return quantized.raw

    def multiply(self, layout: int, kind: int, weights: bytes, inputs: Matrix) -> Matrix | None:
        """The product of inputs (rows, width) and weights (weight rows, width) as (rows, weight rows).

        None where the layout has no kernel for this type.
        """
        ggml = self.library
        products = np.empty((len(inputs), _NUM_WEIGHT_ROWS), np.float32)
        contexts = [ggml.ggml_init(_InitParams(_CONTEXT_SIZE, None, True)) for _ in range(2)]
        left = ggml.ggml_new_tensor_2d(contexts[0], kind, _WIDTH, _NUM_WEIGHT_ROWS)
        buffers = [ggml.ggml_backend_alloc_ctx_tensors_from_buft(contexts[0], layout)]
        right = ggml.ggml_new_tensor_2d(contexts[1], _F32, _WIDTH, len(inputs))
        product = ggml.ggml_mul_mat(contexts[1], left, right)
        has_kernel = ggml.ggml_backend_dev_supports_op(self.device, product)
        if has_kernel:
            buffers.append(ggml.ggml_backend_alloc_ctx_tensors_from_buft(contexts[1], self.plain_layout))
            ggml.ggml_backend_tensor_set(left, weights, 0, len(weights))
            ggml.ggml_backend_tensor_set(right, inputs.ctypes.data, 0, inputs.nbytes)
            graph = ggml.ggml_new_graph(contexts[1])
            ggml.ggml_build_forward_expand(graph, product)
            if ggml.ggml_backend_graph_compute(self.backend, graph) != 0:
                products.fill(np.nan)
            else:
                ggml.ggml_backend_tensor_get(product, products.ctypes.data, 0, products.nbytes)
        for buffer in buffers:
            ggml.ggml_backend_buffer_free(buffer)
        for context in contexts:
            ggml.ggml_free(context)
        return products if has_kernel else None

    def multiply_plain(self, kind: int, weights: bytes, inputs: Matrix) -> Matrix:
        """The same by the plain kernel, which every type has."""
        rows = (self.multiply(self.plain_layout, kind, weights, row) for row in inputs[:, None])
        return np.concatenate([row for row in rows if row is not None])


def is_built_for_amx() -> bool:
    """Whether this build of llama.cpp has kernels for AMX, which run where processor and Linux have it."""
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


def check_kernels() -> Iterator[KernelCheck]:
    """Compare each layout that llama.cpp has for this processor with the plain one. Takes some tenths of a second.

    A kernel that the processor can't run, or that the compiler has broken, may end the process by a signal.
    """
    ggml = _Ggml()
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((_NUM_WEIGHT_ROWS, _WIDTH), np.float32)
    inputs = rng.standard_normal((max(_NUM_ROWS), _WIDTH), np.float32)
    quantized = {kind: ggml.quantize(weights, kind) for kind in _TYPES}
    plain = {kind: ggml.multiply_plain(kind, quantized[kind], inputs) for kind in _TYPES}
    for layout in ggml.extra_layouts():
        differences: dict[tuple[int, int], float] = {}
        for kind in _TYPES:
            for num_rows in _NUM_ROWS:
                found = ggml.multiply(layout, kind, quantized[kind], inputs[:num_rows])
                if found is not None:
                    expected = plain[kind][:num_rows]
                    largest = float(np.max(np.abs(found - expected)) / np.std(expected))
                    # Neither NaN nor infinity can be written as JSON, and both are as wrong as can be.
                    differences[kind, num_rows] = largest if np.isfinite(largest) else sys.float_info.max
        if differences:
            worst = max(differences, key=differences.__getitem__)
            yield KernelCheck(
                layout=ggml.layout_name(layout),
                types=tuple(dict.fromkeys(ggml.type_name(kind) for kind, _ in differences)),
                difference=differences[worst],
                worst=f"{ggml.type_name(worst[0])} x {worst[1]}",
            )


def main() -> None:
    is_sound = True
    for check in check_kernels():
        print(json.dumps(asdict(check)), flush=True)
        is_sound &= check.is_sound
    sys.exit(0 if is_sound else 2)


if __name__ == "__main__":
    main()
