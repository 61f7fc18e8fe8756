"""How an engine is set up, and why so: by the user's options, else as `batcher tune` measured, else by machine and job.

Plain arithmetic, no llama.cpp. Each setting carries its reason, which workers print when they start.
"""

from dataclasses import dataclass, replace

from batcher.errors import ModelError
from batcher.machine import Cores
from batcher.model_memory import CacheNeed, whole_cells
from batcher.types import UNKNOWN_DEMAND, Demand, EngineConfig

#: llama.h, LLAMA_MAX_SEQ.
MAX_SLOTS = 256

#: Where throughput on 2 cores levels off for a 135M model; memory permitting, more costs little.
DEFAULT_NUM_SLOTS = 32

#: A GPU computes a token for many sequences in hardly more time than for one.
DEFAULT_NUM_GPU_SLOTS = 128

#: Tokens a sequence may take, prompt and completion, unless the model was trained for fewer.
DEFAULT_CONTEXT_LENGTH = 2048

#: Most tokens of one decode: enough for a chunk of prompt for every slot.
DEFAULT_BATCH_TOKENS = 2048

#: Tokens that llama.cpp computes at once; its own default.
DEFAULT_MICRO_BATCH_TOKENS = 512

#: The KV cache takes at most this share of the memory that is free once the weights are loaded.
MAX_CACHE_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class EngineValues:
    """The settings that `batcher tune` can tell apart by speed."""

    num_slots: int
    num_threads: int
    max_batch_tokens: int
    max_micro_batch_tokens: int

    def __str__(self) -> str:
        return (
            f"{_count(self.num_slots, 'slot')}, {_count(self.num_threads, 'thread')}, "
            f"batch {self.max_batch_tokens}/{self.max_micro_batch_tokens}"
        )


@dataclass(frozen=True, slots=True)
class TunedValues:
    """Values that were measured here, and in words by whom and when: `measured by batcher tune on 2026-11-24`."""

    values: EngineValues
    source: str


@dataclass(frozen=True, slots=True)
class Situation:
    """What an engine is set up for: model, machine and job.

    `free_memory` are the bytes for KV cache and all else once the weights are loaded, in the GPU where `uses_gpu`.
    `allowance` are those that `--memory` leaves beside the weights, None without it.
    """

    trained_context_length: int
    cache_need: CacheNeed
    uses_gpu: bool
    free_memory: int
    cores: Cores
    demand: Demand = UNKNOWN_DEMAND
    allowance: int | None = None

    def most_slots(self, context_length: int) -> int:
        """The slots of `context_length` tokens that memory has room for; one at least."""
        return max(1, int(self.cache_memory / self.cache_need.slot(context_length)))

    @property
    def cache_memory(self) -> float:
        """Bytes that the KV cache of one worker may take."""
        return MAX_CACHE_SHARE * (self._free_share if self.allowance is None else min(self._free_share, self.allowance))

    @property
    def _free_share(self) -> float:
        return self.free_memory / self.demand.num_workers

    def room_reason(self, context_length: int) -> str:
        """Why there are no more slots than `most_slots`."""
        slot = _size_text(self.cache_need.slot(context_length))
        if self.allowance is not None and self.allowance <= self._free_share:
            return f"half of the {_size_text(self.allowance)} that --memory leaves beside the weights / {slot} a slot"
        sharing = f", for {self.demand.num_workers} workers," if self.demand.num_workers > 1 else ""
        where = "free GPU memory" if self.uses_gpu else "free memory"
        return f"half of {_size_text(self.free_memory)} of {where}{sharing} / {slot} a slot"


@dataclass(frozen=True, slots=True)
class Setting:
    """A chosen value, and why it is this one."""

    value: int
    reason: str


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How an engine is set up. `max_slots` is what memory has room for, whatever was chosen."""

    num_slots: Setting
    context_length: Setting
    num_threads: Setting
    max_batch_tokens: Setting
    max_micro_batch_tokens: Setting
    max_slots: int

    @property
    def values(self) -> EngineValues:
        """Without the reasons."""
        return EngineValues(
            num_slots=self.num_slots.value,
            num_threads=self.num_threads.value,
            max_batch_tokens=self.max_batch_tokens.value,
            max_micro_batch_tokens=self.max_micro_batch_tokens.value,
        )

    def __str__(self) -> str:
        """One line; a reason that several settings share is given once, after the last of them."""
        parts = (
            (_count(self.num_slots.value, "slot"), self.num_slots.reason),
            (f"{self.context_length.value} tokens each", self.context_length.reason),
            (_count(self.num_threads.value, "thread"), self.num_threads.reason),
            (f"batch {self.max_batch_tokens.value}", self.max_batch_tokens.reason),
            (f"micro-batch {self.max_micro_batch_tokens.value}", self.max_micro_batch_tokens.reason),
        )
        texts = []
        for i, (what, reason) in enumerate(parts):
            is_shared = i + 1 < len(parts) and parts[i + 1][1] == reason
            texts.append(what if is_shared else f"{what} ({reason})")
        return ", ".join(texts)


def check_config(config: EngineConfig) -> None:
    """Refuse what contradicts itself. Raises ModelError with the remedy."""
    slots, batch, micro = config.num_slots, config.max_batch_tokens, config.max_micro_batch_tokens
    if slots is not None and not 1 <= slots <= MAX_SLOTS:
        raise ModelError(f"--slots is {slots}; llama.cpp takes 1 to {MAX_SLOTS}")
    if slots is not None and batch is not None and batch < slots:
        raise ModelError(
            f"--batch-tokens is {batch}, but each of {slots} slots takes one token of a batch; "
            f"use {slots} or more, or fewer --slots"
        )
    if batch is not None and micro is not None and micro > batch:
        raise ModelError(
            f"--micro-batch-tokens is {micro}, more than the {batch} of --batch-tokens; use {batch} or fewer"
        )


def choose_settings(config: EngineConfig, situation: Situation, *, tuned: TunedValues | None = None) -> EngineSettings:
    """Choose each setting: an option before what was measured, and that before a default. Raises like `check_config`.

    What nobody asked for by number gives way where it does not fit: to the memory there is, and to the other options.
    """
    check_config(config)
    context_length = _choose_context_length(config, situation)
    num_slots = _choose_slots(config, situation, tuned, context_length.value)
    _check_allowance(situation, num_slots.value, context_length.value)
    batch = _choose_batch(config, tuned, num_slots.value)
    return EngineSettings(
        num_slots=num_slots,
        context_length=context_length,
        num_threads=_choose_threads(config, situation, tuned),
        max_batch_tokens=batch,
        max_micro_batch_tokens=_choose_micro_batch(config, tuned, batch.value),
        max_slots=situation.most_slots(context_length.value),
    )


def _check_allowance(situation: Situation, num_slots: int, context_length: int) -> None:
    """Raises ModelError where slots take more than `--memory` allows."""
    if situation.allowance is None:
        return
    needed = num_slots * situation.cache_need.slot(context_length)
    if situation.allowance < needed:
        more = f"give it {_size_text(needed - situation.allowance)} more"
        if situation.allowance <= 0:
            raise ModelError(f"--memory has no room for the weights of the model and a slot beside them; {more}")
        raise ModelError(
            f"--memory leaves {_size_text(situation.allowance)} beside the weights, but "
            f"{_count(num_slots, 'slot')} of {context_length} tokens {'takes' if num_slots == 1 else 'take'} "
            f"{_size_text(needed)}; {more}, or use {'' if num_slots == 1 else 'fewer --slots or '}a smaller --ctx"
        )


def context_limit(context_length: int | None, *, trained: int) -> int:
    """Tokens that a sequence can hold: as `--ctx` says, else the default or what the model was trained for."""
    return whole_cells(min(trained, DEFAULT_CONTEXT_LENGTH) if context_length is None else context_length)


def _choose_context_length(config: EngineConfig, situation: Situation) -> Setting:
    if config.context_length is not None:
        return Setting(config.context_length, "--ctx")
    if situation.trained_context_length < DEFAULT_CONTEXT_LENGTH:
        bound = Setting(situation.trained_context_length, "all that the model was trained for")
    else:
        bound = Setting(DEFAULT_CONTEXT_LENGTH, "the default")
    if not situation.demand.longest_request:
        return bound
    needed = Setting(whole_cells(situation.demand.longest_request), "the longest request of the job")
    return min(bound, needed, key=lambda setting: setting.value)


def _choose_slots(
    config: EngineConfig, situation: Situation, tuned: TunedValues | None, context_length: int
) -> Setting:
    if config.num_slots is not None:
        return Setting(config.num_slots, "--slots")
    if tuned is not None:
        wish = Setting(tuned.values.num_slots, tuned.source)
    elif situation.uses_gpu:
        wish = Setting(DEFAULT_NUM_GPU_SLOTS, "the default for GPUs")
    else:
        wish = Setting(DEFAULT_NUM_SLOTS, "the default for CPUs")
    bounds = [Setting(situation.most_slots(context_length), situation.room_reason(context_length))]
    if situation.demand.num_prompts is not None:
        bounds.append(Setting(max(1, situation.demand.num_prompts), "one for each prompt of the job"))
    if config.max_batch_tokens is not None:
        bounds.append(Setting(config.max_batch_tokens, "no more than --batch-tokens"))
    return min(wish, *bounds, key=lambda setting: setting.value)


def _choose_threads(config: EngineConfig, situation: Situation, tuned: TunedValues | None) -> Setting:
    cores = situation.cores
    if config.num_threads is not None:
        return Setting(config.num_threads, "--threads")
    if situation.demand.num_workers > 1:
        share = max(1, cores.num_usable // situation.demand.num_workers)
        return Setting(share, f"{_count(cores.num_usable, 'core')} shared by {situation.demand.num_workers} workers")
    if tuned is not None:
        return Setting(tuned.values.num_threads, tuned.source)
    if cores.quota is not None and cores.num_usable < cores.num_physical:
        return Setting(cores.num_usable, f"the container's quota of {cores.quota:.4g} cores")
    if cores.num_physical < cores.num_logical:
        return Setting(cores.num_usable, f"one for each physical core, of {cores.num_logical} logical ones")
    return Setting(cores.num_usable, "all cores")


def _choose_batch(config: EngineConfig, tuned: TunedValues | None, num_slots: int) -> Setting:
    if config.max_batch_tokens is not None:
        return Setting(config.max_batch_tokens, "--batch-tokens")
    wish = Setting(DEFAULT_BATCH_TOKENS, "the default")
    if tuned is not None:
        wish = Setting(tuned.values.max_batch_tokens, tuned.source)
    bounds = [Setting(num_slots, "one for each slot")]
    if config.max_micro_batch_tokens is not None:
        bounds.append(Setting(config.max_micro_batch_tokens, "no less than --micro-batch-tokens"))
    return max(wish, *bounds, key=lambda setting: setting.value)


def _choose_micro_batch(config: EngineConfig, tuned: TunedValues | None, max_batch_tokens: int) -> Setting:
    if config.max_micro_batch_tokens is not None:
        return Setting(config.max_micro_batch_tokens, "--micro-batch-tokens")
    wish = Setting(DEFAULT_MICRO_BATCH_TOKENS, "the default")
    if tuned is not None:
        wish = Setting(tuned.values.max_micro_batch_tokens, tuned.source)
    return min(wish, Setting(max_batch_tokens, "no more than the batch"), key=lambda setting: setting.value)


def with_values(config: EngineConfig, values: EngineValues) -> EngineConfig:
    """`config`, asking for exactly these values."""
    return replace(
        config,
        num_slots=values.num_slots,
        num_threads=values.num_threads,
        max_batch_tokens=values.max_batch_tokens,
        max_micro_batch_tokens=values.max_micro_batch_tokens,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _size_text(num_bytes: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"
