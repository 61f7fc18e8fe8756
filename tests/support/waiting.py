"""Waiting for what another process does, with a limit."""

import time
from collections.abc import Callable
from typing import Any

#: Seconds. No test comes near it, but on a machine that is busy with something else.
PATIENCE_S = 120.0


def wait_for(condition: Callable[[], Any], *, what: str, timeout_s: float = PATIENCE_S) -> Any:
    """Wait until `condition()` is true and return its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)
