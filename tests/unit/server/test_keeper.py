"""The thread that carries batches on."""

import logging
import threading

import pytest

from batcher.server.batches.keeper import BatchKeeper
from tests.support.waiting import wait_for


class Rounds:
    """Batches that count their rounds; the first `num_bad` of them fail."""

    def __init__(self, *, num_bad: int = 0) -> None:
        self.woken = threading.Event()
        self.num_rounds = 0
        self.is_stopped = False
        self._num_bad = num_bad

    def tick(self) -> None:
        self.woken.clear()
        self.num_rounds += 1
        if self.num_rounds <= self._num_bad:
            raise RuntimeError("a bug")

    def stop(self) -> None:
        self.is_stopped = True


def test_round_is_made_as_soon_as_something_is_new() -> None:
    batches = Rounds()

    with BatchKeeper(batches):
        wait_for(lambda: batches.num_rounds == 1, what="the first round")
        batches.woken.set()
        wait_for(lambda: batches.num_rounds >= 2, what="a second round")

    assert batches.is_stopped


def test_round_that_fails_is_logged_and_followed_by_others(caplog: pytest.LogCaptureFixture) -> None:
    batches = Rounds(num_bad=1)

    with caplog.at_level(logging.ERROR), BatchKeeper(batches):
        wait_for(lambda: batches.num_rounds >= 2, what="a second round")

    assert "a bug" in caplog.text
