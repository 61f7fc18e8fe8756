"""llama.cpp, by the low-level API of llama-cpp-python: the only file that imports `llama_cpp`.

Others here take it from this module. Function by function they follow `include/llama.h` of the llama.cpp inside
llama-cpp-python 0.3.36.
"""

import ctypes
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

from batcher.errors import MissingPackageError, ModelError

# Before libgomp is loaded with llama.cpp. By default its threads spin at each barrier for long, and where anything else
# wants the processor too (a second worker, a browser) decoding becomes several times slower; not to spin at all is slow
# when alone (docs/performance.md).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
# A failed assertion of ggml would have a debugger print pages, where one is installed, and the process die later.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")

try:
    import llama_cpp
except (ImportError, OSError, RuntimeError) as exc:  # no such package, no such library, or one that does not fit
    raise MissingPackageError(f"llama-cpp-python can't be loaded here: {exc}; `batcher doctor` has the remedy") from exc

__all__ = [
    "address_of",
    "chat_template",
    "describe_build",
    "free_gpu_memory",
    "gpu_libraries",
    "last_errors",
    "llama_cpp",
    "load_adapter",
    "load_ggml",
    "load_gguf",
    "set_adapter",
    "supports_gpu",
    "tell_aborts",
]

#: ggml-backend.h, GGML_BACKEND_DEVICE_TYPE_GPU: one with memory of its own.
_GGML_DEVICE_GPU = 1

_GPU_KINDS = frozenset({"cuda", "hip", "musa", "sycl", "vulkan"})

_LOG_LEVEL_ERROR = 4

#: As long as ggml may call it.
_abort_callback: Any = None

#: llama.cpp's last error lines, to tell why a load failed.
_log_errors: deque[str] = deque(maxlen=8)


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def _keep_errors(level: int, text: bytes, _user_data: Any) -> None:
    if level == _LOG_LEVEL_ERROR:
        _log_errors.append(text.decode("utf-8", errors="replace").strip())


def describe_build() -> str:
    """The version of llama.cpp's binding, and what of this processor the library was built to use."""
    return f"llama-cpp-python {llama_cpp.__version__}, {llama_cpp.llama_print_system_info().decode()}"


def supports_gpu() -> bool:
    """Whether llama-cpp-python was built for a GPU, and sees one."""
    return bool(llama_cpp.llama_supports_gpu_offload())


def gpu_libraries(folder: Path = Path(llama_cpp.__file__).parent / "lib") -> tuple[str, ...]:
    """The kinds of GPU that llama-cpp-python was built for, as its libraries in `folder` are called: `cuda`."""
    names = {path.name.removeprefix("libggml-").partition(".")[0] for path in folder.glob("libggml-*")}
    return tuple(sorted(names & _GPU_KINDS))


def free_gpu_memory() -> int | None:
    """Bytes that are free in all GPUs together; None where there is none, or this build of ggml can't tell.

    By `ggml/include/ggml-backend.h`, which llama-cpp-python has no bindings of.
    """
    ggml = load_ggml()
    try:
        count, get = ggml.ggml_backend_dev_count, ggml.ggml_backend_dev_get
        kind, memory = ggml.ggml_backend_dev_type, ggml.ggml_backend_dev_memory
    except AttributeError:
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


def address_of(function: str) -> int:
    """Where a function of llama.cpp lies, for native code that calls it."""
    address = ctypes.cast(getattr(llama_cpp.llama_cpp._lib, function), ctypes.c_void_p).value
    assert address is not None
    return address


def load_ggml() -> ctypes.CDLL:
    """The library under llama.cpp, with its backends known to it. llama-cpp-python has few bindings of it.

    By the handle of libllama, which finds the functions of what it links to: the file beside it may be loaded once more
    under another name, and then knows other devices than llama.cpp does.
    """
    llama_cpp.llama_log_set(_keep_errors, None)
    llama_cpp.llama_backend_init()
    return ctypes.CDLL(llama_cpp.llama_cpp._lib._name)


def tell_aborts(tell: Callable[[str], None]) -> None:
    """Have `tell` hear of a failed assertion of ggml, such as `ggml.c:17: GGML_ASSERT(...) failed`, just before it ends
    the process. It may be called in any thread."""

    def hear(message: bytes) -> None:
        # Without the folder in which the library was built.
        where, _, what = message.decode("utf-8", errors="replace").partition(": ")
        tell(f"{PurePath(where).name}: {what}")

    global _abort_callback
    _abort_callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(hear)
    set_callback = load_ggml().ggml_set_abort_callback
    set_callback.restype = ctypes.c_void_p
    set_callback(_abort_callback)


def chat_template(model: Any) -> str | None:
    """The Jinja source that a GGUF carries; None where it has none."""
    source = llama_cpp.llama_model_chat_template(model, None)
    return source.decode("utf-8", errors="replace") if source else None


def load_gguf(path: Path, *, num_gpu_layers: int, vocab_only: bool) -> Any:
    """llama.cpp's handle of a model, for `llama_model_free`. Raises ModelError with llama.cpp's own reason."""
    llama_cpp.llama_log_set(_keep_errors, None)
    llama_cpp.llama_backend_init()
    _log_errors.clear()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = num_gpu_layers
    params.vocab_only = vocab_only
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelError(f"{path}: llama.cpp can't load it: {last_errors()}; check that the GGUF is whole")
    return model


def load_adapter(model: Any, path: Path) -> Any:
    """llama.cpp's handle of a LoRA adapter for a model, with which it is freed. Raises ModelError with its reason."""
    _log_errors.clear()
    adapter = llama_cpp.llama_adapter_lora_init(model, str(path).encode())
    if not adapter:
        raise ModelError(f"{path}: llama.cpp can't load the adapter: {last_errors()}; is it for this base model?")
    return adapter


def set_adapter(context: Any, adapter: Any, *, scale: float) -> bool:
    """Have all that a context computes changed by an adapter. Returns whether that was possible."""
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
    return bool(llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(scale)) == 0)


def last_errors() -> str:
    """What llama.cpp has complained of since the last model was loaded."""
    return "; ".join(dict.fromkeys(_log_errors)) or "no reason given"
