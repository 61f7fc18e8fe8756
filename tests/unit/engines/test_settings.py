"""How an engine is set up: each setting by option, by profile or by machine and job, and the reason that is given."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from batcher.errors import ModelError
from batcher.machine import Cores, read_memory
from batcher.model_memory import CacheNeed
from batcher.types import Demand, EngineConfig
from workers.engines.llama import loader
from workers.engines.llama.binding import free_gpu_memory, gpu_libraries, supports_gpu
from workers.engines.llama.loader import available_memory
from workers.engines.llama.settings import (
    EngineSettings,
    EngineValues,
    Setting,
    Situation,
    TunedValues,
    choose_settings,
    with_values,
)

GIB = 2**30
MEASURED = "measured by batcher tune on 2026-11-24"
TUNED = TunedValues(
    EngineValues(num_slots=64, num_threads=3, max_batch_tokens=512, max_micro_batch_tokens=256), MEASURED
)
CHOOSE_ALL = EngineConfig()

#: A model of 128 KiB a token, which is 256 MiB a slot, on four cores with plenty of memory.
ROOMY = Situation(
    trained_context_length=8192,
    cache_need=CacheNeed(128 * 1024, 0),
    uses_gpu=False,
    free_memory=200 * GIB,
    cores=Cores(4, 4),
)


def choose(
    config: EngineConfig = CHOOSE_ALL, situation: Situation = ROOMY, tuned: TunedValues | None = None
) -> EngineSettings:
    return choose_settings(config, situation, tuned=tuned)


def test_defaults_of_a_machine_with_room() -> None:
    settings = choose()

    assert settings.num_slots == Setting(32, "the default for CPUs")
    assert settings.context_length == Setting(2048, "the default")
    assert settings.num_threads == Setting(4, "all cores")
    assert settings.max_batch_tokens == Setting(2048, "the default")
    assert settings.max_micro_batch_tokens == Setting(512, "the default")
    assert str(settings) == (
        "32 slots (the default for CPUs), 2048 tokens each (the default), 4 threads (all cores), "
        "batch 2048, micro-batch 512 (the default)"
    )


def test_gpu_has_more_slots_by_default_where_its_memory_has_room() -> None:
    assert choose(situation=replace(ROOMY, uses_gpu=True)).num_slots == Setting(128, "the default for GPUs")
    small = choose(situation=replace(ROOMY, uses_gpu=True, free_memory=16 * GIB))
    assert small.num_slots == Setting(32, "half of 16 GiB of free GPU memory / 256 MiB a slot")


def test_slots_are_those_that_memory_has_room_for() -> None:
    tight = replace(ROOMY, free_memory=int(3.1 * GIB))

    assert choose(situation=tight).num_slots == Setting(6, "half of 3.1 GiB of free memory / 256 MiB a slot")
    assert choose(EngineConfig(context_length=512), tight).num_slots.value == 24
    shared = choose(situation=replace(tight, demand=Demand(num_workers=2)))
    assert shared.num_slots == Setting(3, "half of 3.1 GiB of free memory, for 2 workers, / 256 MiB a slot")
    assert choose(situation=replace(ROOMY, free_memory=0)).num_slots.value == 1


def test_slots_are_those_that_memory_leaves_room_for() -> None:
    limited = replace(ROOMY, allowance=3 * GIB)
    reason = "half of the 3 GiB that --memory leaves beside the weights / 256 MiB a slot"

    assert choose(situation=limited).num_slots == Setting(6, reason)
    assert choose(situation=replace(limited, free_memory=2 * GIB)).num_slots == Setting(
        4, "half of 2 GiB of free memory / 256 MiB a slot"
    )
    # What was asked for by number may take all of it.
    assert choose(EngineConfig(num_slots=12), limited).num_slots == Setting(12, "--slots")


@pytest.mark.parametrize(
    ("config", "allowance", "message"),
    [
        (
            EngineConfig(num_slots=13),
            3 * GIB,
            "--memory leaves 3 GiB beside the weights, but 13 slots of 2048 tokens take 3.25 GiB; "
            "give it 256 MiB more, or use fewer --slots or a smaller --ctx",
        ),
        (
            CHOOSE_ALL,
            100 * 2**20,
            "--memory leaves 100 MiB beside the weights, but 1 slot of 2048 tokens takes 256 MiB; "
            "give it 156 MiB more, or use a smaller --ctx",
        ),
        (
            CHOOSE_ALL,
            -GIB,
            "--memory has no room for the weights of the model and a slot beside them; give it 1.25 GiB more",
        ),
    ],
)
def test_less_memory_than_is_needed_is_refused(config: EngineConfig, allowance: int, message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        choose(config, replace(ROOMY, allowance=allowance))


def test_a_small_job_takes_no_more_slots_than_it_has_prompts() -> None:
    assert choose(situation=replace(ROOMY, demand=Demand(num_prompts=5))).num_slots == Setting(
        5, "one for each prompt of the job"
    )
    assert choose(situation=replace(ROOMY, demand=Demand(num_prompts=0))).num_slots.value == 1
    assert choose(situation=replace(ROOMY, demand=Demand(num_prompts=500))).num_slots.value == 32


def test_context_of_a_model_that_was_trained_for_less_is_its_own() -> None:
    settings = choose(situation=replace(ROOMY, trained_context_length=512))

    assert settings.context_length == Setting(512, "all that the model was trained for")


@pytest.mark.parametrize(
    ("cores", "num_workers", "expected"),
    [
        (Cores(8, 4), 1, Setting(4, "one for each physical core, of 8 logical ones")),
        (Cores(8, 8, quota=1.5), 1, Setting(2, "the container's quota of 1.5 cores")),
        (Cores(8, 8, quota=0.2), 1, Setting(1, "the container's quota of 0.2 cores")),
        (Cores(2, 2, quota=4), 1, Setting(2, "all cores")),
        (Cores(8, 8), 3, Setting(2, "8 cores shared by 3 workers")),
        (Cores(1, 1), 2, Setting(1, "1 core shared by 2 workers")),
    ],
)
def test_threads_are_the_cores_that_are_there_for_this_worker(
    cores: Cores, num_workers: int, expected: Setting
) -> None:
    situation = replace(ROOMY, cores=cores, demand=Demand(num_workers=num_workers))

    assert choose(situation=situation).num_threads == expected


def test_profile_goes_before_the_machine() -> None:
    settings = choose(tuned=TUNED)

    assert settings.values == TUNED.values
    assert str(settings) == (
        f"64 slots ({MEASURED}), 2048 tokens each (the default), 3 threads, batch 512, micro-batch 256 ({MEASURED})"
    )


def test_option_goes_before_the_profile() -> None:
    config = EngineConfig(num_slots=8, num_threads=1, max_batch_tokens=1024, max_micro_batch_tokens=128)

    settings = choose(config, tuned=TUNED)

    assert settings.num_slots == Setting(8, "--slots")
    assert settings.num_threads == Setting(1, "--threads")
    assert settings.max_batch_tokens == Setting(1024, "--batch-tokens")
    assert settings.max_micro_batch_tokens == Setting(128, "--micro-batch-tokens")
    assert choose(EngineConfig(context_length=100)).context_length == Setting(100, "--ctx")


def test_profile_gives_way_to_memory_and_to_workers_beside() -> None:
    settings = choose(situation=replace(ROOMY, free_memory=8 * GIB, demand=Demand(num_workers=2)), tuned=TUNED)

    assert settings.num_slots.value == 8
    assert settings.num_threads == Setting(2, "4 cores shared by 2 workers")


def test_what_was_not_asked_for_gives_way_to_what_was() -> None:
    assert choose(EngineConfig(max_batch_tokens=16)).num_slots == Setting(16, "no more than --batch-tokens")
    assert choose(EngineConfig(max_batch_tokens=16)).max_micro_batch_tokens == Setting(16, "no more than the batch")
    large = choose(EngineConfig(max_micro_batch_tokens=4096))
    assert large.max_batch_tokens == Setting(4096, "no less than --micro-batch-tokens")
    narrow = TunedValues(replace(TUNED.values, max_batch_tokens=8, max_micro_batch_tokens=8), MEASURED)
    assert choose(tuned=narrow).max_batch_tokens == Setting(64, "one for each slot")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (EngineConfig(num_slots=257), "--slots is 257; llama.cpp takes 1 to 256"),
        (EngineConfig(num_slots=32, max_batch_tokens=16), "use 32 or more, or fewer --slots"),
        (EngineConfig(max_batch_tokens=512, max_micro_batch_tokens=513), "use 512 or fewer"),
    ],
)
def test_options_that_contradict_each_other_are_refused(config: EngineConfig, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        choose(config)


def test_values_given_as_options_come_out_as_they_are() -> None:
    assert choose(with_values(EngineConfig(), TUNED.values)).values == TUNED.values


@pytest.mark.skipif(supports_gpu(), reason="a GPU's memory is its own")
def test_without_a_gpu_the_memory_is_the_process_own() -> None:
    assert free_gpu_memory() is None
    assert 0 < available_memory(on_gpu=True) <= read_memory().total


@pytest.mark.parametrize(
    ("longest", "context_length", "reason"),
    [
        (300, 512, "the longest request of the job"),
        (512, 512, "the longest request of the job"),
        (9000, 2048, "the default"),
        (0, 2048, "the default"),
        (None, 2048, "the default"),
    ],
)
def test_slots_are_no_longer_than_the_job_needs(longest: int | None, context_length: int, reason: str) -> None:
    settings = choose(situation=replace(ROOMY, demand=Demand(longest_request=longest)))
    assert settings.context_length == Setting(context_length, reason)


def test_short_requests_leave_room_for_more_slots() -> None:
    little = replace(ROOMY, free_memory=4 * GIB)
    assert choose(situation=replace(little, demand=Demand(longest_request=400))).num_slots.value == min(
        32, 4 * choose(situation=little).num_slots.value
    )


def test_kinds_of_gpu_are_those_of_the_libraries(tmp_path: Path) -> None:
    for name in ("libggml-cuda.so", "libggml-cuda.so.0", "libggml-cpu-haswell.so", "libggml-base.so", "libllama.so"):
        (tmp_path / name).touch()

    assert gpu_libraries(tmp_path) == ("cuda",)


@pytest.mark.skipif(supports_gpu(), reason="a GPU is seen here")
def test_build_for_gpus_that_sees_none_does_not_compute_on_cpus_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "gpu_libraries", lambda: ("cuda",))
    path = tmp_path / "none.gguf"

    for config in (EngineConfig(), EngineConfig(num_gpu_layers=10)):
        with pytest.raises(ModelError, match=r"built for GPUs \(cuda\), but sees none: .*--gpu-layers 0"):
            loader.load_model(path, config)
    with pytest.raises(ModelError, match=r"none\.gguf"):
        loader.load_model(path, EngineConfig(num_gpu_layers=0))
