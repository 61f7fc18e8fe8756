"""Rates over the last seconds, and an ETA that settles."""

import itertools
import random

import pytest

from batcher.manage.speedometer import ETA_WINDOW_S, LEAST_SPAN_S, RATE_WINDOW_S, Speedometer, Step


def test_nothing_is_said_before_enough_was_seen() -> None:
    speed = Speedometer()
    for second in range(int(LEAST_SPAN_S)):
        speed.look(Step(second, 10 * second, 100 * second))
        assert (speed.tokens_per_s, speed.work_per_s) == (None, None)
    speed.look(Step(LEAST_SPAN_S, 10 * LEAST_SPAN_S, 100 * int(LEAST_SPAN_S)))

    assert speed.tokens_per_s == pytest.approx(100)
    assert speed.work_per_s == pytest.approx(10)


def test_rate_does_not_saw_where_work_comes_in_bursts() -> None:
    """Given signs of life every 5 s, when it is looked at twice a second, then the rate stays what it is."""
    speed, seen = Speedometer(), []
    for tick in range(240):
        now = tick / 2
        tokens = int(now // 5) * 500
        speed.look(Step(now, tokens / 100, tokens))
        if now > RATE_WINDOW_S + 5:
            seen.append(speed.tokens_per_s)

    assert seen == pytest.approx([100.0] * len(seen))


def test_rate_follows_within_its_window_and_falls_where_nothing_moves() -> None:
    speed = Speedometer()
    for second in range(100):
        speed.look(Step(second, 0, 10 * second if second < 50 else 500 + 40 * (second - 50)))
    assert speed.tokens_per_s == pytest.approx(40)

    last = Step(99, 0, 500 + 40 * 49)
    rates = []
    for second in range(100, 200, 10):
        speed.look(Step(second, last.work, last.tokens))
        assert speed.tokens_per_s is not None
        rates.append(speed.tokens_per_s)
    assert rates[0] == pytest.approx(40)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 1


def test_work_that_is_lost_is_no_negative_rate() -> None:
    speed = Speedometer()
    speed.look(Step(0, 10, 1000))
    speed.look(Step(10, 5, 500))

    assert (speed.tokens_per_s, speed.work_per_s) == (0.0, 0.0)


def test_eta_settles_on_a_job_of_rows_of_all_lengths() -> None:
    """Given 10 rows a second, give or take, then from a minute on the ETA leaps by less than a tenth of itself."""
    draw = random.Random(1)
    speed, work, total = Speedometer(), 0.0, 6000.0
    etas = []
    for second in range(500):
        work += draw.uniform(0, 20)
        speed.look(Step(second, work, int(work)))
        eta = speed.eta_s(total - work, work_per_s=speed.work_per_s)
        if second > ETA_WINDOW_S:
            assert eta is not None
            etas.append((second, eta))
    for (at, eta), (later, next_eta) in itertools.pairwise(etas):
        assert abs((next_eta - eta) + (later - at)) < 0.1 * max(eta, 30)
    assert all(abs(at + eta - 600) < 100 for at, eta in etas)


def test_eta_ends_where_nothing_moves_and_begins_anew() -> None:
    speed = Speedometer()
    speed.look(Step(0, 0, 0))
    assert speed.eta_s(10, work_per_s=1.0) == 10
    assert speed.eta_s(10, work_per_s=None) is None
    assert speed.eta_s(40, work_per_s=2.0) == 20
