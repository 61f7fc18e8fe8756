"""Memory, descriptors and threads of processes, from /proc (Linux only)."""

import contextlib
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

#: Seconds between two looks at the memory.
_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Reading:
    """What processes have together; `rss_bytes` is resident memory."""

    num_processes: int
    rss_bytes: int
    num_descriptors: int
    num_threads: int


def read(pids: Iterable[int]) -> Reading:
    """What these processes have now; one that ended meanwhile has nothing."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            num_descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            found.append((int(status["VmRSS"].split()[0]) << 10, num_descriptors, int(status["Threads"])))
    return Reading(len(found), *(sum(each[column] for each in found) for column in range(3)))


class PeakMeter:
    """The most resident memory that processes had together, looked at twice a second, within a `with` block."""

    def __init__(self, find: Callable[[], Iterable[int]]) -> None:
        self.peak_bytes = 0
        self._find = find
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)

    def __enter__(self) -> "PeakMeter":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_INTERVAL_S):
            self.peak_bytes = max(self.peak_bytes, read(self._find()).rss_bytes)
