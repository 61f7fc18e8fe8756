"""How many lines of the log clients can cause."""

import logging

import pytest

from batcher.server.app import make_api
from batcher.server.guard.log_budget import MAX_LINES, MAX_LINES_PER_ADDRESS, LogBudget, bounded_log
from tests.support.api_client import complete
from tests.support.clock import Clock
from tests.support.scripted_engine import ScriptedEngine


def record(address: str | None) -> logging.LogRecord:
    made = logging.LogRecord("batcher", logging.ERROR, __file__, 1, "%s failed", ("it",), None)
    if address is not None:
        made.address = address
    return made


def test_address_has_so_many_lines_a_minute_and_the_last_says_so() -> None:
    clock = Clock(1000.0)
    budget = LogBudget(clock=clock)
    records = [record("192.0.2.1") for _ in range(2 * MAX_LINES_PER_ADDRESS)]

    passed = [each.getMessage() for each in records if budget.filter(each)]

    assert passed[:-1] == ["it failed"] * (MAX_LINES_PER_ADDRESS - 1)
    assert passed[-1] == "it failed (further errors of the client at 192.0.2.1 are left out for a minute)"
    assert budget.filter(record("192.0.2.2"))
    clock.now += 60
    assert budget.filter(record("192.0.2.1"))


def test_all_addresses_together_have_a_bound_and_our_own_lines_have_none() -> None:
    budget = LogBudget(clock=Clock(1000.0))

    passed = sum(budget.filter(record(f"192.0.2.{number}")) for number in range(2 * MAX_LINES))

    assert passed == MAX_LINES
    assert budget.filter(record(None))


def test_requests_that_fail_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    def fail(request: object) -> list[Exception]:
        return [RuntimeError("a bug")]

    api = make_api(ScriptedEngine(script=fail), keys=None)

    with bounded_log():
        statuses = {complete(api).status_code for _ in range(2 * MAX_LINES_PER_ADDRESS)}

    assert statuses == {500}
    assert 0 < len(caplog.records) <= MAX_LINES_PER_ADDRESS
