"""Processes for workers that are launched before it is known what they will do."""

import contextlib
import logging
import signal
import subprocess
import sys

import pytest

from workers.child import EXIT_REFUSED, NEEDED_MODULES
from workers.process.launch import engine_environment, kill_child, launch_child, spare_children
from workers.process.logs import ChildLog


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


def test_what_a_child_writes_to_stderr_is_in_the_log_of_its_parent(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = (
        b"2026-01-02 03:04:05,678 w1 INFO tiny: 4 slots",
        b"2026-01-02 03:04:05,678 w1 ERROR shard 3: \xff",
        b"Traceback of it",
        b"2026-01-02 03:04:05,678 w1 DEBUG x",
        b"ggml: a line of a library",
    )
    joined = b"\n".join(lines)
    script = f"import sys; sys.stderr.buffer.write({joined!r})"

    with caplog.at_level(logging.DEBUG, logger="batcher"), ChildLog() as log:
        kill_child_after_its_end(launch_child((sys.executable, "-c", script), log=log.descriptor))

    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("batcher.workers.child", "INFO", "w1: tiny: 4 slots"),
        ("batcher.workers.child", "ERROR", "w1: shard 3: \\xff"),
        ("batcher.workers.child", "ERROR", "Traceback of it"),
        ("batcher.workers.child", "DEBUG", "w1: x"),
        ("batcher.workers.child", "WARNING", "ggml: a line of a library"),
    ]
    assert capfd.readouterr().err == ""


def kill_child_after_its_end(child: subprocess.Popen[bytes]) -> None:
    child.wait()
    kill_child(child)


def test_engine_asks_for_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("OTHER", "stays")
    environment = engine_environment()
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert environment["OTHER"] == "stays"


def test_what_the_user_has_set_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert engine_environment()["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2"
