"""What workers' processes write to stderr, as records of this process's log: for a caller whose terminal is his own."""

import logging
import os
import re
import threading
from types import TracebackType
from typing import Self

logger = logging.getLogger("batcher.workers.child")

#: How `workers.child` begins a record: time, name of the worker, level.
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (?P<worker>\S+) (?P<level>[A-Z]+) (?P<message>.*)")
#: Seconds for the last lines of processes that have ended.
_END_PATIENCE_S = 1.0


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
