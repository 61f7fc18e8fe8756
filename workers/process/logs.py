"""The log of workers' processes: how they write it to stderr, and how a parent takes it into its own (`ChildLog`)."""

import logging
import os
import re
import sys
import threading
from types import TracebackType
from typing import Self

from batcher.broker.url import RedactingFormatter

logger = logging.getLogger("batcher.workers.child")

#: How a record begins: time, name of the worker, level.
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<worker>\S+) (?P<level>[A-Z]+) (?P<message>.*)")
#: Seconds for the last lines of processes that have ended.
_END_PATIENCE_S = 1.0


def set_up_logging(worker: str, *, broker_url: str, is_quiet: bool) -> None:
    """Have this process write to stderr: our own lines, with `is_quiet` only warnings, and the warnings of everybody.

    The password of `broker_url` is in none of them.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("batcher").setLevel(logging.WARNING if is_quiet else logging.INFO)
    # At WARNING it logs each message that is put back at a stop.
    logging.getLogger("celery.app.trace").setLevel(logging.ERROR)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_drop_traceback)
        handler.setFormatter(RedactingFormatter(f"%(asctime)s {worker} %(levelname)s %(message)s", broker_url))


def _drop_traceback(record: logging.LogRecord) -> bool:
    """A broker that is away is news of one line; Celery adds where in redis-py it noticed."""
    if record.name.startswith(("celery", "kombu")):
        record.exc_info = record.exc_text = None
    return True


class ChildLog:
    """A pipe for the stderr of children, in a `with` block; its lines go to the logger `batcher.workers.child`.

    `descriptor` is the children's end. A line that begins no record, such as one of llama.cpp's or of a traceback, has
    the level of the last record, at least WARNING.
    """

    def __enter__(self) -> Self:
        reading, self.descriptor = os.pipe()
        self._thread = threading.Thread(target=_forward, args=(reading,), name="child-log", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self.descriptor)
        # Not longer: something that a child has left behind may hold the other end.
        self._thread.join(_END_PATIENCE_S)


def _forward(descriptor: int) -> None:
    level = logging.WARNING
    with open(descriptor, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            found = _RECORD.match(line)
            if found is None:
                logger.log(max(level, logging.WARNING), "%s", line.rstrip("\n"))
                continue
            level = logging.getLevelNamesMapping().get(found["level"], logging.WARNING)
            logger.log(level, "%s: %s", found["worker"], found["message"])
