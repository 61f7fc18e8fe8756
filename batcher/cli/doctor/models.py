"""The model files: whether llama.cpp finds them whole, and whether they and their slots fit into memory.

llama.cpp itself reads a file's header and lays out its tensors, without memory for them, so the time does not grow with
the weights: a file that was cut short is found, a flipped bit among the weights is not.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from batcher.cli.doctor.finding import Check, Level, size_text
from batcher.endings import describe_exit
from batcher.errors import ModelError
from batcher.machine import Memory, read_memory
from batcher.model_files import ModelRef, is_gguf
from batcher.model_kinds import other_kind
from batcher.model_memory import CacheNeed
from batcher.types import EngineConfig
from batcher.words import counted

#: Seconds. It takes some tenths of one, and longer on a network file system that is busy.
OUTLINE_TIMEOUT_S = 60.0

_BROKEN = "download or convert it again and compare its checksum; a new kind of model needs a newer llama-cpp-python"

#: In a process of its own: llama.cpp aborts on some files. Prints what `_Outline` holds, an error, or that llama.cpp is
#: not there. The model is opened as a worker does it, but for the two parameters.
_OUTLINE_SCRIPT = """
import json, os, sys
os.environ["GGML_NO_BACKTRACE"] = "1"
try:
    from workers.engines.llama import binding, loader, model
    from workers.engines.profile import find_tuned
except (ImportError, OSError, RuntimeError) as exc:
    sys.exit(print(json.dumps({"missing": str(exc)})))
defaults = binding.llama_cpp.llama_model_default_params
def without_weights():
    params = defaults()
    params.no_alloc, params.load_mode = True, binding.llama_cpp.LLAMA_LOAD_MODE_NONE
    return params
binding.llama_cpp.llama_model_default_params = without_weights
try:
    found = model.Model(loader.Path(sys.argv[1]), num_gpu_layers=0)
except loader.ModelError as exc:
    sys.exit(print(json.dumps({"error": str(exc)})))
tuned = find_tuned(loader.Path(sys.argv[1]), uses_gpu=False)
print(json.dumps({
    "description": found.description,
    "num_bytes": found.num_bytes,
    "token_bytes": found.cache_need.token,
    "state_bytes": found.cache_need.state,
    "context_length": min(loader.DEFAULT_CONTEXT_LENGTH, found.trained_context_length),
    "num_slots": tuned.values.num_slots if tuned else loader.DEFAULT_NUM_SLOTS,
    "cache_share": loader.MAX_CACHE_SHARE,
    "has_gpu": binding.supports_gpu(),
}))
"""


@dataclass(frozen=True, slots=True)
class _Outline:
    """A model as llama.cpp understands its file, and a worker's defaults for it (see `engines.llama.loader`)."""

    description: str
    num_bytes: int
    token_bytes: int
    state_bytes: int
    context_length: int
    num_slots: int
    cache_share: float
    has_gpu: bool


@dataclass(frozen=True, slots=True)
class _Need:
    """The bytes that a worker takes for one model: its weights, and KV cache for each slot.

    What the computation takes beside them, some hundred MiB at most, is left out.
    """

    weights: int
    slot: int
    num_slots: int
    num_wanted: int
    num_possible: int
    context_length: int

    @property
    def total(self) -> int:
        return self.weights + self.num_slots * self.slot

    def __str__(self) -> str:
        cache = f"KV cache of {_slots_text(self.num_slots)} x {counted(self.context_length, 'token')}"
        return (
            f"{size_text(self.total)} (weights {size_text(self.weights)}, {cache} "
            f"{size_text(self.num_slots * self.slot)})"
        )


def check_models(
    models: Sequence[ModelRef],
    wishes: EngineConfig,
    *,
    is_one_worker: bool,
    loaded: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Check]:
    """Whether each model's file is there and whole, and whether memory has room for it and its slots.

    `is_one_worker`: a worker loads all of them, one after the other; else each is looked at alone. `loaded`: by model,
    the name of a worker of this machine that has it in memory already.
    """
    if not models:
        yield Check("models", Level.WARN, "none known", "give --model NAME=PATH, or set BATCHER_MODELS_DIR")
    memory = _allowed(read_memory(), wishes.memory)
    for model in models:
        check, outline = _check_file(model)
        yield check
        if outline is None:
            continue
        name = f"memory for {model.name}"
        if model.name in loaded:
            # What is available now is what that worker has left.
            yield Check(name, Level.OK, f"the worker {loaded[model.name]} of this machine has it loaded")
            continue
        if outline.has_gpu and wishes.num_gpu_layers != 0:
            yield Check(name, Level.OK, "the GPU's, which is not looked at")
            continue
        need = _reckon(outline, wishes, memory)
        yield _check_memory(name, need, memory, is_limited=wishes.memory is not None)
        if is_one_worker:
            memory = Memory(memory.total - need.total, memory.available - need.total)


def _check_file(model: ModelRef) -> tuple[Check, _Outline | None]:
    """What there is to say of the file, and its outline if llama.cpp is there and takes it."""
    name = f"model {model.name}"
    try:
        size = model.path.stat().st_size
        is_model = is_gguf(model.path)
    except OSError as exc:
        what = f"{model.path}: cannot read: {exc.strerror or exc}"
        return Check(name, Level.FAIL, what, "correct its path or permissions"), None
    if not is_model:
        what = f"{model.path}: not a GGUF file (it does not begin with 'GGUF')"
        return Check(name, Level.FAIL, what, "download or convert it again"), None
    if kind := other_kind(model.path):
        return Check(name, Level.FAIL, f"{model.path}: {kind}", "give the GGUF file of a model that writes text"), None
    try:
        outline = _outline(model.path)
    except ModelError as exc:
        return Check(name, Level.FAIL, f"{model.path}: {size_text(size)}, {exc}", _BROKEN), None
    what = (
        f"{outline.description}, whole by its header" if outline else "begins as a GGUF file; no llama.cpp to say more"
    )
    return Check(name, Level.OK, f"{model.path}: {size_text(size)}, {what}"), outline


def _outline(path: Path) -> _Outline | None:
    """What llama.cpp makes of the file; None where llama.cpp is not there. Raises ModelError with the bare reason."""
    command = [sys.executable, "-P", "-c", _OUTLINE_SCRIPT, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=OUTLINE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as exc:
        raise ModelError(f"its header could not be read within {OUTLINE_TIMEOUT_S:.0f} s") from exc
    if done.returncode:
        ending = describe_exit(done.returncode) if done.returncode < 0 else "an unexpected error"
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        # An assertion is told without the folder in which the library was built.
        last = re.sub(r"^\S*/(?=[^/\s]+:\d+: )", "", last)
        raise ModelError(f"llama.cpp ended with {ending} on its header: {last}")
    found = json.loads(done.stdout)
    if "missing" in found:
        return None
    if "error" in found:
        # llama.cpp gives its reasons from the innermost outwards, each after the function's name; the first has it all.
        reason = found["error"].removeprefix(f"{path}: ").partition("; ")[0]
        raise ModelError(re.sub(r"(?<=: )(?:\w+: )+", "", reason))
    return _Outline(**found)


def _allowed(memory: Memory, num_bytes: int | None) -> Memory:
    """The memory that a worker may take, by `--memory`."""
    if num_bytes is None:
        return memory
    return Memory(min(memory.total, num_bytes), min(memory.available, num_bytes))


def _reckon(outline: _Outline, wishes: EngineConfig, memory: Memory) -> _Need:
    """What a worker would take, by the rules of workers/engines/llama/loader.py."""
    context_length = wishes.context_length or outline.context_length
    slot = CacheNeed(outline.token_bytes, outline.state_bytes).slot(context_length)
    room = max(0, memory.available - outline.num_bytes)
    return _Need(
        weights=outline.num_bytes,
        slot=slot,
        num_slots=wishes.num_slots or max(1, min(outline.num_slots, int(room * outline.cache_share / slot))),
        num_wanted=wishes.num_slots or outline.num_slots,
        num_possible=room // slot,
        context_length=context_length,
    )


def _check_memory(name: str, need: _Need, memory: Memory, *, is_limited: bool) -> Check:
    remedy = "use a smaller --ctx or a smaller quantization, or give it more memory"
    if need.total > memory.available:
        # What others hold may come free; what the machine or the container lacks, it lacks for good.
        level, have = Level.WARN, f"{size_text(max(0, memory.available))} are available now"
        if need.total > memory.total:
            whose = "--memory" if is_limited else "this machine or container"
            level, have = Level.FAIL, f"{whose} has {size_text(max(0, memory.total))} for it"
        fewer = f"use --slots {need.num_possible}, or " if 0 < need.num_possible < need.num_slots else ""
        return Check(name, level, f"a worker takes {need}, but {have}", fewer + remedy)
    if need.num_slots < need.num_wanted:
        return Check(
            name,
            Level.WARN,
            f"room for {_slots_text(need.num_slots)} instead of {need.num_wanted:,}, so a worker is slower: it takes "
            f"{need} of {size_text(memory.available)} available",
            remedy,
        )
    return Check(name, Level.OK, f"a worker takes {need} of {size_text(memory.available)} available")


def _slots_text(number: int) -> str:
    return f"{number:,} slot" if number == 1 else f"{number:,} slots"
