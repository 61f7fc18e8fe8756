"""Memory that was freed, and is still this process's.

glibc keeps what lies between blocks that are in use, in a heap for each of several threads. So a server whose threads
each read something large now and then would keep more and more of it, and nobody else could have that.
"""

import contextlib
import ctypes

#: Seconds between two times that a process which lives for long gives memory back.
GIVE_BACK_INTERVAL_S = 60.0


def give_memory_back() -> None:
    """Give back to the system what this process has freed. Takes some milliseconds. Without glibc it does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
