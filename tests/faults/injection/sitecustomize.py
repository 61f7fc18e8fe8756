"""Makes a worker's child fail for real, as its environment says; harmless in every other process.

What fails, when the engine decodes a prompt that holds TEXT (or tokenizes it, or loads its model):

    FAULT_SEGFAULT_ON=TEXT            a read of address 0
    FAULT_ABORT_ON=TEXT               abort(), as a failed assertion of ggml
    FAULT_ENGINE_ERROR_ON=TEXT        llama_decode reports that it failed
    FAULT_HANG_ON=TEXT                the engine's thread never comes back; the others go on
    FAULT_FREEZE_ON=TEXT              the same with the GIL held, so no thread of the process goes on
    FAULT_EAT_MEMORY_ON=TEXT          takes memory until something stops it
    FAULT_EAT_ADDRESSES_ON=TEXT       takes addresses, and no memory behind them, until something stops it
    FAULT_SEGFAULT_TOKENIZING=TEXT    as the first, in the thread of the shard
    FAULT_SEGFAULT_LOADING=PATH       as the first, at a model's load, while the file PATH exists
    FAULT_SLOW_STEP_S=SECONDS         every decode takes so much longer
    FAULT_MEMORY_GROUP=PATH           its memory is limited by this control group

and what keeps it from failing:

    FAULT_ONLY_ONCE=PATH              the first time makes the file PATH; while that is there, no prompt fails again
    FAULT_ONLY_IN_COMPANY=1           fails only where the same step computes other sequences too
"""

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_MODULE = "workers.engines.llama.model"


def _segfault() -> None:
    ctypes.string_at(0)


def _fail_in_engine() -> None:
    from batcher.errors import EngineError

    raise EngineError("llama_decode gave -3 for 7 tokens: a fault of the test")


def _hang() -> None:
    while True:
        ctypes.CDLL(None).pause()


def _freeze() -> None:
    while True:
        ctypes.PyDLL(None).pause()


def _eat_memory() -> None:
    eaten = []
    while True:
        eaten.append(b"x" * 2**24)


def _eat_addresses() -> None:
    eaten = []
    while True:
        # Zeros that nobody writes: the kernel gives no memory for them.
        eaten.append(bytes(2**28))


_FAULTS: dict[str, Callable[[], None]] = {
    "FAULT_SEGFAULT_ON": _segfault,
    "FAULT_ABORT_ON": os.abort,
    "FAULT_ENGINE_ERROR_ON": _fail_in_engine,
    "FAULT_HANG_ON": _hang,
    "FAULT_FREEZE_ON": _freeze,
    "FAULT_EAT_MEMORY_ON": _eat_memory,
    "FAULT_EAT_ADDRESSES_ON": _eat_addresses,
}


class _Watch:
    """Knows the tokens of each slot, and does what is due when those of a marked prompt are among them."""

    def __init__(self, vocabulary: Any) -> None:
        self._faults = [
            (vocabulary.tokenize(os.environ[name]).tolist(), fault)
            for name, fault in _FAULTS.items()
            if name in os.environ
        ]
        self._tokens: dict[int, list[int]] = {}

    def place(self, placement: Any) -> None:
        self._tokens[placement.target] = self._tokens.get(placement.source, [])[: placement.num_kept]

    def look_at(self, batch: Any) -> None:
        slots = list(dict.fromkeys(batch.slots.tolist()))
        for slot in slots:
            is_its = batch.slots == slot
            new, position = batch.tokens[is_its].tolist(), int(batch.positions[is_its][0])
            tokens = self._tokens.get(slot, [])[:position] + new
            self._tokens[slot] = tokens
            for marker, fault in self._faults:
                # A prompt longer than a step's batch comes in chunks, and the marker may lie across two of them.
                if _holds(tokens[-len(new) - len(marker) :], marker) and _is_due(len(slots)):
                    fault()


def _holds(tokens: list[int], marker: list[int]) -> bool:
    return any(tokens[start : start + len(marker)] == marker for start in range(len(tokens) - len(marker) + 1))


def _is_due(num_slots: int) -> bool:
    if "FAULT_ONLY_IN_COMPANY" in os.environ and num_slots == 1:
        return False
    once = os.environ.get("FAULT_ONLY_ONCE")
    if once is None:
        return True
    try:
        Path(once).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _patch(module: Any) -> None:
    """Put the faults into `workers.engines.llama.model`."""
    load, decode, place, tokenize = (
        module.Model.__init__,
        module.Model.decode,
        module.Model.place,
        module.Vocabulary.tokenize,
    )
    loading = os.environ.get("FAULT_SEGFAULT_LOADING")
    tokenizing = os.environ.get("FAULT_SEGFAULT_TOKENIZING")
    delay_s = float(os.environ.get("FAULT_SLOW_STEP_S", "0"))
    watches: dict[int, _Watch] = {}

    def faulty_load(self: Any, *args: Any, **kwargs: Any) -> None:
        if loading is not None and Path(loading).exists():
            _segfault()
        load(self, *args, **kwargs)

    def watch(model: Any) -> _Watch:
        if id(model) not in watches:
            watches[id(model)] = _Watch(model.vocabulary)
        return watches[id(model)]

    def faulty_decode(self: Any, batch: Any) -> Any:
        watch(self).look_at(batch)
        time.sleep(delay_s)
        return decode(self, batch)

    def watched_place(self: Any, placement: Any) -> Any:
        watch(self).place(placement)
        return place(self, placement)

    def faulty_tokenize(self: Any, text: str) -> Any:
        if tokenizing is not None and tokenizing in text:
            _segfault()
        return tokenize(self, text)

    module.Model.__init__ = faulty_load
    module.Model.decode = faulty_decode
    module.Model.place = watched_place
    module.Vocabulary.tokenize = faulty_tokenize


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the engine's model module as ever, and has it patched once it is executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            _patch(module)

        spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


if "workers.child" in sys.orig_argv and any(name.startswith("FAULT_") for name in os.environ):
    # The crashes are wanted; files with a dead process's memory are not.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if "FAULT_MEMORY_GROUP" in os.environ:
        Path(os.environ["FAULT_MEMORY_GROUP"], "cgroup.procs").write_text(str(os.getpid()))
    sys.meta_path.insert(0, _Finder())
