"""When an engine counts as stalled."""

from workers.process.stall import MIN_LIMIT_S, StallMeter, stall_limit_s


def pass_time(meter: StallMeter, start: float, seconds: int) -> float:
    """Look once a second."""
    for second in range(1, seconds + 1):
        meter.look(now=start + second)
    return meter.stalled_s


def test_engine_that_moves_is_not_stalled() -> None:
    meter = StallMeter(now=0)
    for second in range(1, 50):
        meter.look(now=second)
        meter.hear(steps=(second,), is_busy=(True,))
        assert meter.stalled_s == 0


def test_engine_without_work_is_not_stalled() -> None:
    meter = StallMeter(now=0)
    for second in range(1, 50):
        meter.look(now=second)
        meter.hear(steps=(7,), is_busy=(False,))
        assert meter.stalled_s == 0


def test_busy_engine_that_makes_no_step_is_stalled_until_it_does() -> None:
    meter = StallMeter(now=0)
    meter.hear(steps=(7,), is_busy=(True,))
    for second in range(1, 31):
        meter.look(now=second)
        meter.hear(steps=(7,), is_busy=(True,))
    assert meter.stalled_s == 30

    meter.hear(steps=(8,), is_busy=(True,))
    assert meter.stalled_s == 0


def test_one_stuck_engine_among_moving_ones_counts() -> None:
    meter = StallMeter(now=0)
    for second in range(1, 31):
        meter.look(now=second)
        meter.hear(steps=(second, 4), is_busy=(True, True))
    assert meter.stalled_s > 28


def test_child_that_says_nothing_is_stalled() -> None:
    assert pass_time(StallMeter(now=0), 0, 40) == 40


def test_time_in_which_the_supervisor_was_frozen_too_hardly_counts() -> None:
    meter = StallMeter(now=0)
    meter.hear(steps=(7,), is_busy=(True,))

    assert meter.look(now=3600) == StallMeter.MAX_GAP_S


def test_limit_grows_with_the_engine_s_pace_unless_chosen() -> None:
    assert stall_limit_s(0.1, None) == MIN_LIMIT_S
    assert stall_limit_s(100, None) == 300
    assert stall_limit_s(100, 5) == 5
