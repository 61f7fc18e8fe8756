"""Rows for which the model computes no numbers: their sequences fail, and what they left in memory is washed out.

A model of 16 bits overflows on some prompt, and all of its logits are NaN from there on. That is this row's misfortune;
only where most rows have it the model or the build is broken. The cells of such a sequence hold NaN as well, which
spreads to whoever takes the slot: what is hidden counts nothing, but nothing times NaN is NaN.
"""

from collections.abc import Callable
from collections.abc import Sequence as Many

from batcher.errors import EngineError
from batcher.types import ErrorCode, RowError
from workers.engines.llama.kv_cache import KvCache, Placement
from workers.engines.llama.model import Model
from workers.engines.llama.sampling.sampler import NO_TOKEN
from workers.engines.llama.scheduler import Scheduler
from workers.engines.llama.sequence import Sequence

#: Spoiled rows, in steps that most rows are spoiled in, one after the other, with which the engine is given up.
MAX_SPOILED = 8

_WHY = (
    "the model computed logits that are no numbers (NaN): its arithmetic overflows on this prompt; "
    "change the prompt, or use another quantization of the model"
)


class Spoiled:
    """What becomes of spoiled sequences of one engine. Mutates what it is given, in the engine's thread."""

    def __init__(self, model: Model, cache: KvCache, scheduler: Scheduler) -> None:
        self._model = model
        self._cache = cache
        self._scheduler = scheduler
        self._num_in_a_row = 0

    def find(self, ready: Many[Sequence], tokens: Many[int], *, unscored: set[int]) -> set[int]:
        """The slots of a step whose logits are no numbers, by the `tokens` sampled for those that were `ready`, and
        with those of prompts that could not be scored. Raises EngineError where it is so with most."""
        spoiled = unscored
        if NO_TOKEN in tokens:
            spoiled = spoiled | {s.slot for s, token in zip(ready, tokens, strict=True) if token == NO_TOKEN}
        if 2 * len(spoiled) <= len(ready):
            self._num_in_a_row = 0
            return spoiled
        self._num_in_a_row += len(spoiled)
        if self._num_in_a_row >= MAX_SPOILED:
            raise EngineError(
                f"the model computed no numbers (NaN) for {self._num_in_a_row} rows, one after the other; "
                "the GGUF file or the build of llama.cpp is broken"
            )
        return spoiled

    def fail(self, slots: set[int], *, drop: Callable[[Sequence], None]) -> None:
        """End the sequences in these slots with an error, and have nothing be computed from what is in there. `drop` is
        told of each before."""
        for sequence in [sequence for sequence in self._scheduler.running() if sequence.slot in slots]:
            drop(sequence)
            self._scheduler.finish(sequence)
            sequence.fail(RowError(ErrorCode.ENGINE_ERROR, _WHY))
        clean = next((slot for slot in range(self._cache.num_slots) if slot not in slots), None)
        if self._cache.is_sharing and clean is not None:
            for slot in slots:
                self._cache.forget(slot)
                # All cells of the clean slot go over those of this one.
                self._model.place(Placement(clean, slot, 0))
            return
        # The state of recurrent layers can be cleared for all sequences at once only.
        self._scheduler.restart_all()
        for slot in range(self._cache.num_slots):
            self._cache.forget(slot)
        self._model.clear()
