"""The search for the fastest settings, on machines whose speed is a formula; and the meter, by a fake clock."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from batcher.errors import ModelError
from batcher.machine import Cores
from batcher.types import EngineConfig, SamplingParams
from tests.support.clock import Clock
from workers.engines.llama.settings import EngineValues
from workers.engines.profile import Profile
from workers.process.lines import decode, encode
from workers.tuning import trial
from workers.tuning.search import Measurement, tune
from workers.tuning.trial import Meter, TrialConfig, TrialPrompt, TrialResult, run_trial

DEFAULT = EngineValues(num_slots=32, num_threads=4, max_batch_tokens=2048, max_micro_batch_tokens=512)
PROMPT = TrialPrompt("hello", SamplingParams(max_tokens=8, stop=("x", "y"), temperature=0.5))

Rate = Callable[[EngineValues, int], float]


def search(model: Path, rate: Rate, *, max_slots: int = 1000) -> tuple[Profile, list[Measurement]]:
    """Tune where `rate` gives the tokens/s of some values at the n-th measurement."""
    measured: list[Measurement] = []
    num_trials = 0

    def run(config: TrialConfig) -> TrialResult:
        nonlocal num_trials
        num_trials += 1
        engine = config.engine
        if engine.num_slots is None:
            values = DEFAULT
        else:
            assert engine.num_threads
            assert engine.max_batch_tokens
            assert engine.max_micro_batch_tokens
            values = EngineValues(
                engine.num_slots, engine.num_threads, engine.max_batch_tokens, engine.max_micro_batch_tokens
            )
        return TrialResult(rate(values, num_trials), values, max_slots, 2048, uses_gpu=False)

    profile = tune(
        *("tiny", model),
        prompts=[PROMPT],
        workload="one prompt",
        config=EngineConfig(context_length=2048),
        seconds=1,
        on_measured=measured.append,
        trial=run,
        cores=Cores(8, 4),
    )
    return profile, measured


def test_default_stays_where_nothing_is_faster(model: Path) -> None:
    profile, measured = search(model, lambda values, n: 100.0)

    assert profile.values == DEFAULT
    assert profile.reason == "nothing was more than 3% faster than the default"
    assert [one.what for one in measured] == [
        "default: 32 slots, 4 threads, batch 2048/512",
        "2 threads",
        "3 threads",
        "8 threads",
        "64 slots",
        "16 slots",
        "batch 512/512",
        "batch 2048/2048",
    ]
    assert {one.ratio for one in measured} == {1.0}


def test_gain_of_three_percent_is_noise(model: Path) -> None:
    profile, _ = search(model, lambda values, n: 100.0 if values == DEFAULT else 103.0)

    assert profile.values == DEFAULT


def test_search_goes_along_one_setting_after_the_other(model: Path) -> None:
    def rate(values: EngineValues, n: int) -> float:
        threads = 1.2 if values.num_threads == 3 else 1.0
        slots = {32: 1.0, 64: 1.5, 128: 1.9, 256: 1.8}[values.num_slots]
        batch = 1.1 if values.max_micro_batch_tokens == 2048 else 1.0
        return 100 * threads * slots * batch

    profile, measured = search(model, rate)

    assert profile.values == EngineValues(128, 3, 2048, 2048)
    assert profile.reason == "2.51 times the default's speed, side by side"
    assert (profile.tokens_per_s, profile.default_tokens_per_s) == (250.8, 100.0)
    assert [one.what.split(":")[0] for one in measured[-4:]] == ["again"] * 4
    assert "16 slots" not in [one.what for one in measured]


def test_slots_are_halved_where_doubling_does_not_pay(model: Path) -> None:
    profile, measured = search(model, lambda values, n: 1000.0 / values.num_slots)

    assert profile.values.num_slots == 4
    assert [one.what for one in measured if "slots" in one.what.split(":")[0]] == [
        "64 slots",
        "16 slots",
        "8 slots",
        "4 slots",
    ]


def test_no_more_slots_are_tried_than_memory_has_room_for(model: Path) -> None:
    profile, _ = search(model, lambda values, n: float(values.num_slots), max_slots=100)

    assert profile.values.num_slots == 64


def test_winner_by_chance_is_found_out_beside_the_default(model: Path) -> None:
    def rate(values: EngineValues, n: int) -> float:
        # Somebody else's work slowed the machine while the default was measured.
        return 50.0 if n == 1 else 100.0

    profile, _ = search(model, rate)

    assert profile.values == DEFAULT
    assert "was not clearly faster side by side (1.00 times), so the default stays" in profile.reason
    assert profile.tokens_per_s == profile.default_tokens_per_s == 100.0


def test_winner_whose_measurements_overlap_the_defaults_does_not_win(model: Path) -> None:
    def rate(values: EngineValues, n: int) -> float:
        if values == DEFAULT:
            return 125.0 if n > 10 else 100.0
        return 150.0 if n < 11 else 120.0

    profile, measured = search(model, rate)

    assert profile.values == DEFAULT, measured


def test_candidate_that_can_not_be_had_is_passed_over(model: Path) -> None:
    def rate(values: EngineValues, n: int) -> float:
        if values.num_slots == 64:
            raise ModelError("no room for 64 slots")
        return 100.0

    profile, measured = search(model, rate)

    assert profile.values == DEFAULT
    assert Measurement("64 slots", None, None, "no room for 64 slots") in measured


def test_default_that_can_not_be_measured_ends_the_search(model: Path) -> None:
    def rate(values: EngineValues, n: int) -> float:
        raise ModelError("can't load it")

    with pytest.raises(ModelError, match="can't load it"):
        search(model, rate)


# -- the meter ----------------------------------------------------------------------------------------------------


def test_meter_counts_from_the_end_of_the_warm_up() -> None:
    clock = Clock()
    meter = Meter(seconds=2, clock=clock)
    meter.add(1000)  # before the warm-up is known
    meter.num_warm_up_tokens = 100
    for now, num_tokens in ((1.0, 60), (2.0, 60), (3.0, 10), (4.0, 20)):
        clock.now = now
        meter.add(num_tokens)
        for _ in range(trial.MIN_STARTS):
            meter.start_prompt()

    assert meter.is_over.is_set()
    assert meter.tokens_per_s == 15.0


def test_meter_waits_for_prompts_to_begin_but_not_for_ever() -> None:
    clock = Clock()
    meter = Meter(seconds=2, num_warm_up_tokens=0, clock=clock)
    ends = []
    for now in range(20):
        clock.now = float(now)
        meter.add(10)
        if meter.is_over.is_set():
            ends.append(now)

    assert ends[0] == 2 * trial.MAX_STRETCH
    assert meter.tokens_per_s == 10.0


# -- the measuring process ----------------------------------------------------------------------------------------


def test_what_is_to_be_measured_travels_whole() -> None:
    params = SamplingParams(logit_bias=((5, 1.0), (6, -1.0)), stop_token_ids=(3,), bad_words=("a b",))
    config = TrialConfig("/m.gguf", EngineConfig(num_slots=3), (PROMPT, TrialPrompt("é\n", params)), 0.5)

    line = encode(config)

    assert line.count(b"\n") == 1
    assert decode(TrialConfig, line) == config


def test_engine_is_measured_in_a_process_of_its_own(model: Path) -> None:
    engine = EngineConfig(num_slots=3, num_threads=1, context_length=64, max_batch_tokens=32, max_micro_batch_tokens=16)

    result = run_trial(TrialConfig(str(model), engine, (PROMPT,), 0.05))

    assert result.tokens_per_s > 0
    assert result.values == EngineValues(3, 1, 32, 16)
    assert result.max_slots > 3
    assert (result.context_length, result.uses_gpu) == (64, False)


def test_prompts_that_do_not_fit_are_left_out(model: Path) -> None:
    long = replace(PROMPT, text="word " * 200)
    engine = EngineConfig(num_slots=2, num_threads=1, context_length=64)

    assert run_trial(TrialConfig(str(model), engine, (long, PROMPT), 0.05)).tokens_per_s > 0
    with pytest.raises(ModelError, match="none of 1 prompts fits into 64 tokens"):
        run_trial(TrialConfig(str(model), engine, (long,), 0.05))


def test_settings_that_can_not_be_had_say_why(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--slots is 300"):
        run_trial(TrialConfig(str(model), EngineConfig(num_slots=300), (PROMPT,), 0.05))
    with pytest.raises(ModelError, match="took longer than 0 s"):
        run_trial(TrialConfig(str(model), EngineConfig(num_slots=1), (PROMPT,), 60), timeout_s=0.3)


def test_process_that_dies_is_told_of(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_COMMAND", ("bash", "-c", "echo broken >&2; kill -SEGV $$"))

    with pytest.raises(ModelError, match=r"signal SIGSEGV \(broken\)"):
        run_trial(TrialConfig(str(model), EngineConfig(), (PROMPT,), 0.05))


def test_trial_travels_as_json_with_every_parameter() -> None:
    params = SamplingParams(stop=("a", "b"), logit_bias=((5, -1.5), (7, 2.0)), logprobs=3, n=2)
    config = TrialConfig("m.gguf", EngineConfig(), (TrialPrompt("p", params),), 1.0)
    assert decode(TrialConfig, encode(config)) == config
