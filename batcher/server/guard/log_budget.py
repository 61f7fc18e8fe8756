"""How many lines of the log clients can cause: nobody should fill a disk by requests that fail, or hide what others
do."""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator

from batcher.server.guard.answers import logger as logger_of_failures

#: Seconds for which lines are counted.
_WINDOW_S = 60.0
MAX_LINES_PER_ADDRESS = 20
MAX_LINES = 200


class LogBudget(logging.Filter):
    """Lets so many lines a minute through for each address, and for all together; the last one says so.

    A record's address is its attribute `address`; records without one are of nobody, and pass. For all threads.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._began_at = clock()
        self._num_lines: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        address = getattr(record, "address", None)
        if address is None:
            return True
        if self._clock() - self._began_at >= _WINDOW_S:
            self._began_at = self._clock()
            self._num_lines.clear()
        num_all = self._num_lines.total()
        if num_all >= MAX_LINES or self._num_lines[address] >= MAX_LINES_PER_ADDRESS:
            return False
        self._num_lines[address] += 1
        if num_all + 1 == MAX_LINES or self._num_lines[address] == MAX_LINES_PER_ADDRESS:
            whose = "all clients" if num_all + 1 == MAX_LINES else f"the client at {address}"
            record.msg = f"{record.getMessage()} (further errors of {whose} are left out for a minute)"
            record.args = ()
        return True


@contextlib.contextmanager
def bounded_log() -> Iterator[None]:
    """Have what is logged of clients' failures keep within a budget."""
    budget = LogBudget()
    logger_of_failures.addFilter(budget)
    try:
        yield
    finally:
        logger_of_failures.removeFilter(budget)
