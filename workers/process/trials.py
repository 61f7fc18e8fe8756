"""A trial: something measured in a process of its own, which answers once.

It runs as `python -P -m <module>`. A line of JSON on stdin says what is to be measured, a line on stdout how it went;
the end of stdin is the end of whoever asked.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from batcher.endings import describe_exit
from batcher.errors import BatcherError, ModelError
from workers.process.launch import engine_environment
from workers.process.lines import decode, encode, from_plain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T")
_C = TypeVar("_C")


@dataclass(frozen=True, slots=True)
class _Answer:
    """The result as JSON has it, or why there is none."""

    result: dict[str, Any] | None
    error: str = ""


def trial_command(module: str) -> tuple[str, ...]:
    """The command line of the trials of a module."""
    return sys.executable, "-P", "-m", module


def run_trial(
    command: tuple[str, ...],
    config: "DataclassInstance",
    kind: type[_T],
    *,
    timeout_s: float | None = None,
    grace_s: float = 0.0,
    prefix: str = "",
) -> _T:
    """Have `command` (of `trial_command`) do what `config` says, blocking. Returns its result, which is of this `kind`.

    Raises ModelError with the reason where there is none, or none within `timeout_s` (None: however long). It gets
    `grace_s` to end by itself, also where the caller is interrupted. With `prefix` begins what is said of its process.
    """
    with tempfile.TemporaryFile() as log:
        trial = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            env=engine_environment(),
        )
        timer = threading.Timer(timeout_s or 0.0, trial.kill)
        if timeout_s is not None:
            timer.start()
        try:
            line = _ask(trial, config)
            is_late = timeout_s is not None and not timer.is_alive()
        finally:
            timer.cancel()
            with contextlib.suppress(subprocess.TimeoutExpired):
                trial.wait(grace_s)
            trial.kill()
            trial.wait()
        if not line and is_late:
            raise ModelError(f"{prefix}it took longer than {timeout_s:.0f} s")
        if not line:
            log.seek(0)
            last = (log.read().decode(errors="replace").strip().splitlines() or ["nothing in its log"])[-1]
            raise ModelError(f"{prefix}its process ended with {describe_exit(trial.returncode)} ({last})")
    answer = decode(_Answer, line)
    if answer.result is None:
        raise ModelError(answer.error)
    return from_plain(kind, answer.result)


def _ask(trial: "subprocess.Popen[bytes]", config: "DataclassInstance") -> bytes:
    """The line that the trial answers; nothing if it dies first."""
    assert trial.stdin is not None
    assert trial.stdout is not None
    # Not closed before the answer: the end of the pipe tells the trial that nobody waits for it any more.
    with trial.stdout, contextlib.suppress(BrokenPipeError), trial.stdin:
        trial.stdin.write(encode(config))
        trial.stdin.flush()
        return trial.stdout.readline()
    return b""


def answer_trial(kind: type[_C], measure: "Callable[[_C], DataclassInstance]") -> None:
    """In the process of a trial: measure what stdin says, in a config of this `kind`, and answer."""
    # What llama.cpp prints must not stand before the answer.
    output = os.dup(1)
    os.dup2(2, 1)
    config = decode(kind, sys.stdin.buffer.readline())
    try:
        answer = _Answer(asdict(measure(config)))
    except BatcherError as exc:
        answer = _Answer(None, str(exc))
    with contextlib.suppress(BrokenPipeError):
        os.write(output, encode(answer))
