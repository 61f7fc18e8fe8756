"""What any engine must do (`workers.engines.base.Engine`), as tests: a subclass says how its engines are made."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from batcher.constraints import scored_choice
from batcher.errors import EngineError
from batcher.types import ErrorCode, SamplingParams
from tests.support.waiting import PATIENCE_S
from workers.engines.base import Ability, Engine, SequenceDelta, SequenceRequest, SequenceResult

SHORT = SamplingParams(max_tokens=5, temperature=0)
LONG = SamplingParams(max_tokens=200, temperature=0)

#: More requests than any engine has computed by the time that one of them has begun.
MANY = 1000

#: A request that needs each ability, and what it is told by an engine without.
NEEDY = {
    Ability.TOKEN_IDS: (SequenceRequest((0, 0), "[65, 66]", SHORT, is_token_ids=True), "prompt"),
    Ability.LABEL_SCORES: (
        SequenceRequest((0, 0), "AB", replace(SHORT, constraint=scored_choice(["A", "B"]))),
        "scores",
    ),
    Ability.ECHO: (SequenceRequest((0, 0), "AB", SHORT, is_echoing=True), "echo"),
    Ability.PROMPT_SCORES: (
        SequenceRequest((0, 0), "AB", replace(SHORT, logprobs=0), is_echoing=True, scores_prompt=True),
        "logprobs",
    ),
}


class Caller:
    """Submits requests and hears of them. Starts and deltas are listed, results and failures wait in `inbox`."""

    def __init__(self, engine: Engine) -> None:
        self.inbox: queue.SimpleQueue[SequenceResult | EngineError] = queue.SimpleQueue()
        self.starts: list[SequenceRequest] = []
        self.deltas: list[SequenceDelta] = []
        self.has_started = threading.Event()
        self._engine = engine

    def submit(self, *requests: SequenceRequest, is_alone: bool = False) -> None:
        self.ticket = self._engine.submit(
            requests, self.inbox.put, on_start=self._start, on_delta=self.deltas.append, is_alone=is_alone
        )

    def results(self, number: int) -> dict[tuple[int, int], SequenceResult]:
        """The next `number` results by their keys."""
        found = [self.inbox.get(timeout=PATIENCE_S) for _ in range(number)]
        assert all(isinstance(result, SequenceResult) for result in found)
        return {result.key: result for result in found if isinstance(result, SequenceResult)}

    def received(self) -> list[SequenceResult | EngineError]:
        """What is in the inbox now."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self.inbox.get_nowait())
        return found

    def _start(self, request: SequenceRequest) -> None:
        self.starts.append(request)
        self.has_started.set()


def many_long(*, is_live: bool = False) -> list[SequenceRequest]:
    return [SequenceRequest((n, 0), f"{n} AB", LONG, seed=n, is_live=is_live) for n in range(MANY)]


class EngineContract:
    """The tests. `make` gives an engine that has not started; `hold` and `release` are for one that must be told."""

    def make(self) -> Engine:
        raise NotImplementedError

    def hold(self, engine: Engine) -> None:
        """Have it begin one more request, but not end all there are."""

    def release(self, engine: Engine) -> None:
        """Have it go on."""

    @pytest.fixture
    def engine(self) -> Iterator[Engine]:
        engine = self.make()
        engine.start()
        yield engine
        engine.close()

    def test_each_request_gets_one_result_by_its_key_and_number(self, engine: Engine) -> None:
        caller = Caller(engine)

        caller.submit(*(SequenceRequest((n // 2, n % 2), f"{n} A", SHORT) for n in range(20)))

        results = caller.results(20)
        assert sorted(results) == [(n // 2, n % 2) for n in range(20)]
        assert all(found.choice is not None and found.choice.index == key[1] for key, found in results.items())

    def test_deltas_make_up_the_text(self, engine: Engine) -> None:
        caller = Caller(engine)

        caller.submit(*(SequenceRequest((n, 0), f"{n} A", SHORT) for n in range(5)))

        for key, result in caller.results(5).items():
            assert result.choice is not None
            assert "".join(delta.text for delta in caller.deltas if delta.key == key) == result.choice.text

    def test_each_start_is_told_before_the_result(self, engine: Engine) -> None:
        caller, requests = Caller(engine), [SequenceRequest((n, 0), f"{n} A", SHORT) for n in range(8)]

        caller.submit(*requests)

        for number in range(1, 9):
            caller.results(1)
            assert len(caller.starts) >= number
        assert sorted(caller.starts, key=lambda request: request.key) == requests

    def test_callers_do_not_hear_of_each_other(self, engine: Engine) -> None:
        callers = [Caller(engine) for _ in range(4)]
        threads = [
            threading.Thread(target=caller.submit, args=[SequenceRequest((at, 0), f"{at} A", SHORT)] * 3)
            for at, caller in enumerate(callers)
        ]

        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        for at, caller in enumerate(callers):
            assert set(caller.results(3)) == {(at, 0)}
            assert caller.received() == []

    def test_cancelled_requests_make_room_for_others(self, engine: Engine) -> None:
        first, second = Caller(engine), Caller(engine)
        self.hold(engine)
        first.submit(*many_long())
        assert first.has_started.wait(PATIENCE_S)

        first.ticket.cancel()
        second.submit(SequenceRequest((0, 0), "B", SHORT))
        self.release(engine)

        assert second.results(1)[0, 0].choice is not None
        assert len(first.received()) < MANY

    def test_engine_that_is_closed_fails_what_is_open_and_takes_nothing_more(self) -> None:
        engine = self.make()
        engine.start()
        first, second = Caller(engine), Caller(engine)
        self.hold(engine)
        first.submit(*many_long())
        second.submit(*many_long())
        assert first.has_started.wait(PATIENCE_S)

        engine.close()

        for caller in (first, second):
            *results, failure = caller.received()
            assert isinstance(failure, EngineError)
            assert all(isinstance(result, SequenceResult) for result in results)
            assert len(results) < MANY
        with pytest.raises(EngineError):
            first.submit(SequenceRequest((0, 0), "A", SHORT))

    @pytest.mark.parametrize("ability", NEEDY)
    def test_request_that_needs_what_the_engine_cannot_is_an_error_of_its_own(
        self, engine: Engine, ability: Ability
    ) -> None:
        caller, (request, field) = Caller(engine), NEEDY[ability]

        caller.submit(request, SequenceRequest((1, 0), "A", SHORT))

        results = caller.results(2)
        assert results[1, 0].choice is not None
        if request.needs & ~engine.abilities:
            error = results[0, 0].error
            assert error is not None
            assert error.code is ErrorCode.INVALID_REQUEST
            assert error.message.startswith(f"{field}: ")
        else:
            assert results[0, 0].choice is not None

    def test_live_requests_go_first_where_the_engine_says_so(self, engine: Engine) -> None:
        if Ability.PRIORITY not in engine.abilities:
            pytest.skip("it makes no difference between requests")
        rows, live = Caller(engine), Caller(engine)
        rows.submit(*many_long())
        assert rows.has_started.wait(PATIENCE_S)

        live.submit(SequenceRequest((0, 0), "B", SHORT, is_live=True))

        assert live.results(1)[0, 0].choice is not None
        assert len(rows.received()) < MANY
        rows.ticket.cancel()

    def test_request_that_is_alone_is_answered_like_any_other(self, engine: Engine) -> None:
        caller = Caller(engine)

        caller.submit(SequenceRequest((0, 0), "A", SHORT, is_alone=True), is_alone=True)

        assert caller.results(1)[0, 0].choice is not None

    def test_stats_and_pulse_tell_of_work(self, engine: Engine) -> None:
        caller, before = Caller(engine), engine.num_steps
        assert not engine.is_busy
        self.hold(engine)
        caller.submit(*many_long())
        assert caller.has_started.wait(PATIENCE_S)

        assert engine.is_busy
        stats = engine.stats()
        assert stats.num_slots == engine.num_slots
        assert 0 < stats.num_running + stats.num_waiting <= MANY

        self.release(engine)
        caller.results(1)
        assert engine.num_steps > before
        assert engine.longest_step_s >= 0
        caller.ticket.cancel()
