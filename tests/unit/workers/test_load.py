"""What a supervisor makes of the beats of its child: slots, tokens and their rate."""

from dataclasses import replace

import pytest

from workers.process.events import EngineLoad
from workers.process.load import RATE_WINDOW_S, LoadMeter


def load(completion: int, *, running: int = 2, prompt: int = 0) -> EngineLoad:
    return EngineLoad(num_slots=4, num_running=running, num_prompt_tokens=prompt, num_completion_tokens=completion)


def test_slots_are_those_of_the_models_in_memory() -> None:
    meter = LoadMeter(("a", "b"))

    meter.hear((load(0), None), now=0)
    assert (meter.num_running, meter.num_slots) == (2, 4)

    meter.hear((load(0), load(0, running=1)), now=1)
    assert (meter.num_running, meter.num_slots) == (3, 8)

    meter.forget()
    assert (meter.num_running, meter.num_slots) == (0, 0)


def test_tokens_add_up_over_engines_that_begin_anew() -> None:
    meter = LoadMeter(("a",))
    for now, completion in enumerate((10, 25, 3, 8)):
        meter.hear((load(completion, prompt=completion),), now=now)
    meter.forget()
    meter.hear((load(100, prompt=7),), now=9)

    assert meter.tokens["a"].completion == 25 + 8 + 100
    assert meter.tokens["a"].prompt == 25 + 8 + 7


def test_rate_is_of_the_last_seconds_and_nothing_once_nothing_is_computed() -> None:
    meter = LoadMeter(("a",))
    for now in range(60):
        meter.hear((load(100 * now),), now=now)
    assert meter.tokens_per_s == pytest.approx(100)

    for now in range(60, 60 + 2 * int(RATE_WINDOW_S)):
        meter.hear((load(5900 + 10 * (now - 59)),), now=now)
    assert meter.tokens_per_s == pytest.approx(10)

    for now in (200, 201):
        meter.hear((load(6200, running=0),), now=now)
    assert meter.tokens_per_s == 0.0


def test_rate_of_what_begins_after_a_pause_does_not_count_the_pause() -> None:
    meter = LoadMeter(("a",))
    for now in range(10):
        meter.hear((load(0, running=0),), now=now)
    meter.hear((load(50),), now=10)

    assert meter.tokens_per_s == pytest.approx(50)


def test_rate_moves_with_tokens_of_rows_that_are_not_finished() -> None:
    meter = LoadMeter(("a",))
    for now in range(10):
        meter.hear((replace(load(0), num_tokens_in_flight=30 * now),), now=now)
    assert meter.tokens_per_s == pytest.approx(30)

    meter.hear((load(300),), now=10)
    assert meter.tokens_per_s == pytest.approx(30)
    assert meter.tokens["a"].completion == 300
