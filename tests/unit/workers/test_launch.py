"""Processes for workers that are launched before it is known what they will do."""

import contextlib
import signal
import subprocess
import sys

import pytest

from workers.child import EXIT_REFUSED, NEEDED_MODULES
from workers.process.launch import kill_child, spare_children


def test_spares_that_nobody_took_are_gone_at_the_end() -> None:
    with spare_children(2) as spares:
        first, second = spares
        assert first.pid != second.pid

    assert [child.returncode for child in (first, second)] == [-signal.SIGKILL] * 2
    assert all(pipe is not None and pipe.closed for child in (first, second) for pipe in (child.stdin, child.stdout))


def test_a_spare_that_was_taken_is_the_takers() -> None:
    with spare_children(1) as spares:
        taken = spares.pop()
    try:
        assert taken.poll() is None
    finally:
        kill_child(taken)


def test_spares_are_gone_when_the_command_fails() -> None:
    stack = contextlib.ExitStack()
    (child,) = stack.enter_context(spare_children(1))

    with pytest.raises(RuntimeError), stack:
        raise RuntimeError

    assert child.returncode == -signal.SIGKILL


def test_spare_ends_by_itself_when_its_parent_is_gone() -> None:
    with spare_children(1) as spares:
        (child,) = spares
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(timeout=30) == EXIT_REFUSED


def test_what_a_spare_imports_exists() -> None:
    subprocess.run([sys.executable, "-c", "".join(f"import {name}; " for name in NEEDED_MODULES)], check=True)
